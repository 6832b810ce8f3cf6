"""Visual prompt tuning, deep: every block gets prompt tokens of its own (2203.12119, section 3.2).

A block's input is ``[P_i, x]`` with trained prompts ``P_i``. Only ``x`` of its output goes on to
the next block, which has prompts of its own. A DiT modulates all tokens of an image alike, so
prompts pass through a block like patches. They get no position embedding.

Number of prompts: 2304.06648 reports 2.81 M trainable parameters on DiT-XL/2. The final layer
(2,693,408) and the class table (117,504) alone have 2,810,912, and one prompt in every block adds
28·1152 = 32,256. No number of prompts fits; the published figure seems to exclude them. The default
of one is the nearest (2,843,168). 2203.12119 chose between 1 and 200 for each task.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from fitspace.bases.families import FAMILIES, family_of
from fitspace.core.errors import UserError
from fitspace.methods.attachment import Attachment, PartialSettings, restoring
from fitspace.methods.blocks import inside

if TYPE_CHECKING:
    import torch
    from diffusers.models.attention import BasicTransformerBlock
    from torch import nn
    from torch.utils.hooks import RemovableHandle

trains = True
folds = True
budget = "prompts"


class Settings(PartialSettings):
    """How many prompts, and whether the layers after the last block are trained too."""

    prompts: int = Field(1, ge=1, le=4096, description="Prompt tokens before every block's input.")
    final_layer: bool = Field(
        True, description="Also train the final layer, as in the table of 2304.06648."
    )


def problems(settings: Settings, family: str) -> list[str]:
    """Why these settings cannot be built on this family of denoisers; empty if they can."""
    if FAMILIES[family].final:
        return []
    able = ", ".join(f"a {f.title}" for f in FAMILIES.values() if f.final)
    title = FAMILIES[family].title
    return [
        "vpt: prompts need blocks that take one sequence of any length, and a last layer to train "
        f"with them: not on a {title}; allowed on {able}"
    ]


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Give every block its prompts, and make the final layer trainable.

    Prompts have shape (prompts, D) and start uniform in ±√(6 / (3p² + D)), with patches of side p
    and D channels per token, as in the authors' code; 3p² is the number of RGB values of a patch.
    """
    import torch

    dim, patch = model.inner_dim, model.config.patch_size
    bound = math.sqrt(6 / (3 * patch**2 + dim))
    device = next(model.parameters()).device
    trainable, handles = {}, []
    chosen = inside(model, settings.blocks)
    named = {f"transformer_blocks.{i}": b for i, b in model.transformer_blocks.named_children()}
    blocks = {path: block for path, block in named.items() if chosen(path)}
    if not blocks:
        raise UserError(f"blocks: {settings.blocks!r}: no transformer block is there")
    for path, block in blocks.items():
        name = f"{path}.prompts"
        block.prompts = torch.nn.Parameter(torch.empty(settings.prompts, dim, device=device))
        if device.type != "meta":
            _draw(block.prompts, bound, seed, name)
        handles += _prompt(block)
        trainable[name] = block.prompts
    final = _final_layer(model) if settings.final_layer else {}
    restore = restoring(final)

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for block in blocks.values():
            del block.prompts
        restore()

    return Attachment(model, trainable | final, identity_at_start=False, undo=undo)


def _draw(prompts: nn.Parameter, bound: float, seed: int, name: str) -> None:
    import torch

    from fitspace.core import rng

    uniform = rng.symmetric(seed, f"init/{name}", tuple(prompts.shape))
    with torch.no_grad():
        prompts.copy_(torch.from_numpy(uniform * bound))


def _prompt(block: BasicTransformerBlock) -> list[RemovableHandle]:
    """Hooks: prepend the prompts, (b, n, D) -> (b, prompts + n, D), and cut them off afterwards."""
    import torch

    def prepend(block: BasicTransformerBlock, args: tuple) -> tuple:
        tokens, *others = args
        fresh = block.prompts.to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([fresh, tokens], dim=1), *others

    def cut(block: BasicTransformerBlock, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return output[:, len(block.prompts) :]

    return [block.register_forward_pre_hook(prepend), block.register_forward_hook(cut)]


def _final_layer(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of the modulation and the projection after the last block."""
    return {
        f"{layer}.{name}": parameter
        for layer in family_of(model).final
        for name, parameter in model.get_submodule(layer).named_parameters()
    }
