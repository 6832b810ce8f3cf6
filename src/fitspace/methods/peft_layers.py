"""Methods of peft: which layers they change, and how peft's tuner becomes an attachment.

peft implements the methods' mathematics. Its tuner replaces a linear layer by one of its own that
keeps the layer as ``base_layer``. ``unload`` puts the layer back, ``merge_and_unload`` first folds
the change into its weights. This module adds what peft leaves open: it chooses layers by type,
makes initial values depend on (seed, parameter name), and draws and allocates nothing on the meta
device.

torch, diffusers and peft are imported where they are used, because a study's settings are checked
without them.
"""

from __future__ import annotations

import contextlib
import copy
import math
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, field_validator

from fitspace.bases.blocks import layers
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.core.reading import short
from fitspace.methods.attachment import Attachment, PartialSettings
from fitspace.methods.blocks import ALL, inside
from fitspace.methods.tuners import FROM_WEIGHTS, TUNERS

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from torch import nn

ADAPTER = "default"  # peft's name for an adapter, a part of its parameters' names
# Target -> roles of the layers.
TARGETS = {
    "qkv": ("q", "k", "v"),
    "attention": ("q", "k", "v", "out"),
    "attention+ff": ("q", "k", "v", "out", "ff_in", "ff_out"),
}


class TargetedSettings(PartialSettings):
    """Settings of a method that changes linear layers of the transformer blocks."""

    target: Literal["qkv", "attention", "attention+ff"] = Field(
        "qkv",
        description="Layers that are changed: the query, key and value projections (those of "
        "LoRA in 2304.06648); also the output projections; also the feed-forward layers.",
    )

    @field_validator("target", mode="before")
    @classmethod
    def _of_the_denoiser(cls, value: Any) -> Any:
        if isinstance(value, str) and "text" in value:
            allowed = ", ".join(get_args(cls.model_fields["target"].annotation))
            raise ValueError(
                f"{short(value)}: no text encoder is trained here, because captions are encoded "
                f"once, before any training; allowed: {allowed}"
            )
        return value


def linear_layers(
    model: nn.Module, roles: tuple[str, ...], blocks: str = ALL
) -> dict[str, nn.Linear]:
    """Path -> layer, for the layers in the blocks that have one of the roles.

    Raises
    ------
    UserError : there is none.
    """
    chosen = inside(model, blocks)
    found = {path: layer for path, layer in layers(model, roles).items() if chosen(path)}
    if not found:
        raise UserError(f"blocks: {blocks!r}: no layer to change is there")
    return found


def inject(model: nn.Module, config: PeftConfig, seed: int) -> BaseTuner:
    """Let peft replace the configuration's layers in place; returns its tuner.

    What peft draws for a layer depends on the seed and the layer's path. The state of torch's
    global generator is preserved.

    Raises
    ------
    UserError : peft cannot put this tuner on these layers; the model is as it was.
    """
    from fitspace.core.imports import import_peft

    peft = import_peft()
    import torch

    from fitspace.methods.lora_layers import keep_base

    layers = {path: model.get_submodule(path) for path in config.target_modules}
    modes = {path: module.training for path, module in model.named_modules()}
    device, name = next(model.parameters()).device, config.peft_type.name
    meta = device.type == "meta"
    real = list(layers.values()) if meta and not TUNERS[name].on_meta else []
    allocate = torch.device("meta") if meta and not real else contextlib.nullcontext()
    for layer in real:  # memory that nothing is written to
        layer.to_empty(device="cpu")
    from_weights = initial_values(config) in FROM_WEIGHTS
    before = {path: layer.weight.detach().clone() for path, layer in layers.items() if from_weights}
    if from_weights and meta:  # nothing to decompose
        config = copy.copy(config)
        config.init_lora_weights = True
    kind = _seeded(peft.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], seed)
    try:
        with torch.random.fork_rng(devices=[]), allocate:
            _reseed(seed, f"init/{name}")
            tuner = kind(model, config, ADAPTER)
    except Exception as error:  # of another library, which raises what it likes
        for path, layer in layers.items():
            model.set_submodule(path, layer.to(device))
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: peft cannot put it on these layers: {said}") from None
    for path, weight in before.items():
        keep_base(model.get_submodule(path), weight, ADAPTER)
    if real:
        model.to("meta")
    for path in tuner.targeted_module_names:
        model.get_submodule(path).train(modes[path])
    return tuner


def _seeded(kind: type[BaseTuner], seed: int) -> type[BaseTuner]:
    """A tuner that draws for each layer from a generator of its own."""
    import torch

    class Seeded(kind):
        def _create_and_replace(self, *args, current_key: str, **kwargs) -> None:
            with torch.random.fork_rng(devices=[]):
                _reseed(seed, f"init/{current_key}")
                super()._create_and_replace(*args, current_key=current_key, **kwargs)

    return Seeded


def _reseed(seed: int, stream: str) -> None:
    import torch

    value = int(rng.generator(seed, stream).integers(2**63))
    # torch.manual_seed, but that it keeps a stack trace for each kind of device not yet in use
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)


def attachment(tuner: BaseTuner, seed: int, dropout: float = 0.0) -> Attachment:
    """The attachment of an injected tuner; its parameters keep peft's names.

    What peft draws by its default for linear layers is drawn again from the same distribution, by
    (seed, parameter name), see :func:`draw`.

    Parameters
    ----------
    dropout : the method's dropout rate. If it is not 0, peft's layers count as the dropout
        layers, because DoRA reads their mode and not that of the dropout layer inside.
    """
    import torch

    model, config = tuner.model, tuner.peft_config[ADAPTER]
    row = TUNERS[config.peft_type.name]
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        tuner.unload()
        raise UserError(f"{config.peft_type.name}: these settings leave nothing to train")
    values = initial_values(config)
    for name, parameter in trainable.items():
        drawn = values is True and row.drawn.intersection(name.split("."))
        if drawn and not parameter.is_meta:
            draw(parameter, name, seed)
    layers = {path: model.get_submodule(path) for path in tuner.targeted_module_names}
    starts = {
        path: layer.lora_start for path, layer in layers.items() if hasattr(layer, "lora_start")
    }
    own = {
        f"{path}.lora_start.{name}": buffer
        for path, start in starts.items()
        for name, buffer in start.named_buffers()
    }

    @torch.no_grad()
    def fold() -> None:
        for path, start in starts.items():
            start[ADAPTER].fold(layers[path].get_base_layer())
        tuner.merge_and_unload()

    return Attachment(
        model,
        trainable,
        identity_at_start=values not in row.moves,
        undo=tuner.unload,
        fold=fold if row.merges else None,
        dropouts=list(layers.values()) if dropout or row.random else [],
        frozen=_kept(layers, row.kept) | own,
    )


def initial_values(config: PeftConfig) -> bool | str:
    """What a configuration says of initial values: True, a kind by name, or False for any."""
    names = ("init_weights", "init_lora_weights", "init_ia3_weights")
    return next((getattr(config, name) for name in names if hasattr(config, name)), True)


def _kept(layers: dict[str, nn.Module], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Name -> tensor, for those of these names in the layers; what layers share, once."""
    found, seen = {}, set()
    for path, layer in layers.items():
        for name in names:
            tensor = getattr(layer, name)[ADAPTER]
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{path}.{name}.{ADAPTER}"] = tensor
    return found


def draw(parameter: nn.Parameter, name: str, seed: int) -> None:
    """Uniform on ±1/√fan_in, for a weight (out, fan_in, ...): Kaiming with a = √5.

    This is PyTorch's default for linear layers and convolutions, and peft draws most of its
    matrices from it.
    """
    import torch

    shape = tuple(parameter.shape)
    uniform = rng.symmetric(seed, f"init/{name}", shape)
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(uniform / math.sqrt(math.prod(shape[1:]))))
