"""DiT, told classes; with a table of their embeddings and a grid of patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fitspace.bases.blocks import ADALN_ZERO
from fitspace.bases.family import Conditions, Family, by_name
from fitspace.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn


def share_embedders(model: nn.Module) -> None:
    """Give all blocks of a DiT the first one's time and class embedder, as its authors do."""
    import torch

    blocks = model.transformer_blocks
    first = blocks[0].norm1.emb
    for i, block in enumerate(blocks):
        own = block.norm1.emb.state_dict()
        for name, value in first.state_dict().items():
            if not value.is_meta and not torch.equal(value, own[name]):
                raise UserError(f"transformer_blocks.{i}.norm1.emb.{name}: differs between blocks")
        block.norm1.emb = first


def class_table(model: nn.Module) -> tuple[str, torch.nn.Parameter]:
    """Name and values of a DiT's shared class embeddings: (classes + 1, dim), last row: none."""
    name = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    return name, model.get_parameter(name)


def own_classes(model: nn.Module) -> int | None:
    """How many classes :func:`new_classes` gave a DiT; None where they are the base's."""
    return getattr(model, "_fitspace_classes", None)


def new_classes(model: nn.Module, count: int, seed: int) -> Callable[[], None]:
    """Give a DiT a new class table for ``count`` classes; returns what undoes it.

    Rows are drawn from a normal distribution of standard deviation 0.02, as DiT's authors do;
    ``count + 1`` of them, the last for no class.

    Raises
    ------
    UserError : a model without classes.
    """
    import torch

    from fitspace.core import rng

    if type(model).__name__ != DIT.kind:
        raise UserError(
            f"model: {type(model).__name__} has no classes; allowed: DiTTransformer2DModel"
        )
    share_embedders(model)
    embedder = model.transformer_blocks[0].norm1.emb.class_embedder
    old, before, own = embedder.embedding_table, embedder.num_classes, own_classes(model)
    name, values = class_table(model)
    draw = rng.generator(seed, f"init/{name}")
    rows = draw.standard_normal((count + 1, values.shape[1]), dtype="float32") * 0.02
    table = torch.from_numpy(rows).to(values.device, values.dtype)
    embedder.embedding_table = torch.nn.Embedding.from_pretrained(table, freeze=True)
    embedder.num_classes, model._fitspace_classes = count, count

    def undo() -> None:
        embedder.embedding_table, embedder.num_classes = old, before
        model._fitspace_classes = own

    return undo


def scale(model: nn.Module) -> int:
    """Side of the images that a denoiser makes, as a multiple of its base's own."""
    if type(model).__name__ != DIT.kind:
        return 1
    return model.pos_embed.height // model.pos_embed.base_size


def extrapolates(model: nn.Module) -> bool:
    """Whether :func:`at_scale` gave a denoiser positions beyond those that its base knows."""
    return getattr(model, "_fitspace_extrapolated", False)


def at_scale(model: nn.Module, factor: int, extrapolated: bool = False) -> Callable[[], None]:
    """Let a DiT make images of ``factor`` times its base's side; returns what undoes it.

    Patch (i, j) of the finer grid gets the position (i/factor, j/factor), so that the base sees
    positions it knows (2304.06648, "positional encoding trick"); if ``extrapolated``, (i, j). A
    pipeline around the model draws noise of the new size. What ``save_pretrained`` writes of such a
    model is of no use: diffusers would number the patches of the finer grid anew.

    Raises
    ------
    UserError : a model without a grid of patches.
    """
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    if type(model).__name__ != DIT.kind:
        raise UserError(
            f"scale: {factor}: {type(model).__name__} has no grid of patches; allowed on a "
            "DiTTransformer2DModel"
        )
    grid = model.pos_embed
    before = scale(model), grid.pos_embed, extrapolates(model)

    def put(factor: int, positions: torch.Tensor, extrapolated: bool) -> None:
        model._fitspace_extrapolated = extrapolated
        # A grid of another size than these would be computed again at every step.
        grid.height = grid.width = factor * grid.base_size
        grid.pos_embed = positions
        model.register_to_config(sample_size=grid.height * grid.patch_size)

    positions = get_2d_sincos_pos_embed(
        model.inner_dim,
        factor * grid.base_size,
        base_size=grid.base_size * (factor if extrapolated else 1),
        interpolation_scale=grid.interpolation_scale,
        device=grid.pos_embed.device,
    )
    put(factor, positions.to(grid.pos_embed.dtype)[None], extrapolated)
    return lambda: put(*before)


def _hand(conditions: Conditions) -> dict[str, torch.Tensor]:
    return {"class_labels": conditions["labels"]}


def _blank(config: Any, images: int, tokens: int, dtype: torch.dtype) -> Conditions:
    import torch

    return {"labels": torch.empty(images, dtype=torch.long)}


def _is_early(kind: str, config: dict[str, Any]) -> bool:
    """Saved when diffusers had one class for all transformers, as DiT's authors' are."""
    return kind == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"


def _problems(config: dict[str, Any]) -> list[str]:
    classes = config.get("num_embeds_ada_norm")
    if isinstance(classes, int) and classes > 0:
        return []
    return [f"num_embeds_ada_norm: {classes!r}; allowed: the number of classes"]


DIT = Family(
    name="dit",
    title="DiT",
    component="transformer",
    kind="DiTTransformer2DModel",
    needs=(),
    told={"labels": "I64 n"},
    ask=by_name(_hand),
    blank=_blank,
    sizes={"classes": "num_embeds_ada_norm"},
    blocks=(ADALN_ZERO,),
    scales=True,
    controls=("img2img",),
    final=("proj_out_1", "proj_out_2"),
    also=_is_early,
    settle=share_embedders,
    problems=_problems,
)
