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
import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.methods.attachment import Attachment, PartialSettings

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from torch import nn

ADAPTER = "default"  # peft's name for an adapter, a part of its parameters' names
QKV = ("to_q", "to_k", "to_v")
# Target -> layers of an Attention, layers of a FeedForward.
TARGETS = {
    "qkv": (QKV, ()),
    "attention": ((*QKV, "to_out.0"), ()),
    "attention+ff": ((*QKV, "to_out.0"), ("net.0.proj", "net.2")),
}


class TargetedSettings(PartialSettings):
    """Settings of a method that changes linear layers of the transformer blocks."""

    target: Literal["qkv", "attention", "attention+ff"] = Field(
        "qkv",
        description="Layers that are changed: the query, key and value projections (those of "
        "LoRA in 2304.06648); also the output projections; also the feed-forward layers.",
    )


def linear_layers(
    model: nn.Module, attention: tuple[str, ...], feed_forward: tuple[str, ...]
) -> dict[str, nn.Linear]:
    """Path -> layer, for the named layers of every Attention and every FeedForward.

    Raises
    ------
    UserError : the model has none.
    """
    from diffusers.models.attention import FeedForward
    from diffusers.models.attention_processor import Attention

    layers = {}
    for path, module in model.named_modules():
        kinds = ((Attention, attention), (FeedForward, feed_forward))
        parts = next((parts for kind, parts in kinds if isinstance(module, kind)), ())
        layers |= {f"{path}.{part}": module.get_submodule(part) for part in parts}
    if not layers:
        raise UserError("model: has no attention layer to change")
    return layers


def inject(model: nn.Module, config: PeftConfig) -> BaseTuner:
    """Let peft replace the configuration's layers in place; returns its tuner.

    The state of torch's global generator is preserved.
    """
    from fitspace.core.imports import import_peft

    peft = import_peft()
    import torch

    modes = {path: module.training for path, module in model.named_modules()}
    device = next(model.parameters()).device
    allocate = torch.device("meta") if device.type == "meta" else contextlib.nullcontext()
    with torch.random.fork_rng(devices=[]), allocate:
        tuner = peft.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, ADAPTER)
    for path in tuner.targeted_module_names:
        model.get_submodule(path).train(modes[path])
    return tuner


def attachment(tuner: BaseTuner, drawn: set[str], seed: int, dropout: float = 0.0) -> Attachment:
    """The attachment of an injected tuner; its parameters keep peft's names and initial values.

    Parameters
    ----------
    drawn : peft's names of the parameters that it draws; they are drawn again from the same
        distribution, but by (seed, parameter name), see :func:`draw`.
    dropout : the method's dropout rate. If it is not 0, peft's layers count as the dropout
        layers, because DoRA reads their mode and not that of the dropout layer inside.
    """
    import torch

    model = tuner.model
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trainable.items():
        if not parameter.is_meta and drawn.intersection(name.split(".")):
            draw(parameter, name, seed)
    layers = [model.get_submodule(path) for path in tuner.targeted_module_names]

    @torch.no_grad()
    def fold() -> None:
        tuner.merge_and_unload()

    return Attachment(
        model,
        trainable,
        identity_at_start=True,
        undo=tuner.unload,
        fold=fold,
        dropouts=layers if dropout else [],
    )


def draw(parameter: nn.Parameter, name: str, seed: int) -> None:
    """Uniform on ±1/√fan_in, for a matrix (out, fan_in): Kaiming with a = √5.

    This is PyTorch's default for linear layers, and peft draws all its matrices from it.
    """
    import torch

    shape = tuple(parameter.shape)
    uniform = rng.symmetric(seed, f"init/{name}", shape)
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(uniform / math.sqrt(shape[1])))
