"""Every tuner of peft that works on a denoiser, under its own name and with its own settings.

``lora``, ``loha``, ``lokr``, ``ia3`` and ``oft`` are short forms: fitspace's names and defaults for
what is here ``peft_type: LORA`` and so on. Defaults here are peft's. What peft draws follows from
the run's seed and the layer's path.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, field_validator

from fitspace.bases.blocks import layers
from fitspace.bases.families import FAMILIES
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.core.reading import short
from fitspace.methods.attachment import Attachment
from fitspace.methods.blocks import inside
from fitspace.methods.ia3 import FEED_FORWARD
from fitspace.methods.peft_layers import (
    TARGETS,
    TargetedSettings,
    attachment,
    inject,
    linear_layers,
)
from fitspace.methods.tuners import FROM_WEIGHTS, READS, REFUSED, TUNERS, fields, seeds

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

trains = True
AT_REST = {name: value for tuner in TUNERS.values() for name, value in tuner.rest.items()}
NORMS = ("LN_TUNING",)  # tuners that change the layer norms, whatever the target
Scalar = bool | int | float | str


class Tuned(TargetedSettings):
    """Which tuner, and which layers it changes; `Settings` adds the fields of all tuners."""

    peft_type: str = Field(description="peft's name of the method, such as VERA.")
    target: Literal["qkv", "attention", "attention+ff", "resnets"] = Field(
        "qkv",
        description="Layers that are changed: the query, key and value projections; also the "
        "output projections; also the feed-forward layers; or the convolutions of the ResNet "
        "blocks. LN_TUNING trains the layer norms instead.",
    )

    @field_validator("peft_type")
    @classmethod
    def _works(cls, value: str) -> str:
        if value in REFUSED:
            raise ValueError(f"{value} does not work on a denoiser: {REFUSED[value]}")
        if value not in TUNERS:
            raise ValueError(f"{short(value)}; allowed: {', '.join(TUNERS)}")
        return value

    @property
    def own(self) -> dict[str, Any]:
        """The settings of the tuner that are given."""
        names = self.model_fields_set - Tuned.model_fields.keys()
        return {name: getattr(self, name) for name in sorted(names)}

    def resolved(self, family: str) -> dict[str, Any]:
        """Every setting that is given, and those that all tuners have."""
        kept = {*Tuned.model_fields, *self.own} - ({"target"} if self.peft_type in NORMS else set())
        return {name: v for name, v in super().resolved(family).items() if name in kept}


def __getattr__(name: str) -> Any:
    # Made when it is asked for: it reads the source of every tuner.
    if name == "Settings":
        return _settings()
    raise AttributeError(name)


@cache
def _settings() -> type[Tuned]:
    of: dict[str, list[str]] = {}
    for peft_type in TUNERS:
        for name in fields(peft_type):
            of.setdefault(name, []).append(peft_type)
    described = {
        name: (Scalar | None, Field(None, description=f"Field of peft's {', '.join(types)}."))
        for name, types in sorted(of.items())
    }
    return create_model("Settings", __base__=Tuned, __module__=__name__, **described)


def problems(settings: Tuned, family: str) -> list[str]:
    """Why these settings cannot be built on this family of denoisers; empty if they can."""
    own, found = fields(settings.peft_type), []
    for name, value in settings.own.items():
        if name not in own:
            allowed = ", ".join(own) or "no field"
            found.append(
                f"{name}: peft's {settings.peft_type} has no such field; allowed: {allowed}"
            )
        elif said := own[name].problem(value):
            found.append(f"{name}: {said}")
    if settings.peft_type in NORMS:
        if "target" in settings.model_fields_set:
            found.append("target: LN_TUNING trains the layer norms; leave it out")
        if not FAMILIES[family].norms:
            title = FAMILIES[family].title
            found.append(f"peft_type: LN_TUNING: a {title}'s layer norms have no parameters")
    if settings.target == "resnets":
        if not FAMILIES[family].has("Res_in"):
            found.append(f"target: 'resnets': a {FAMILIES[family].title} has no ResNet block")
        if not TUNERS[settings.peft_type].convolutions:
            able = ", ".join(name for name, tuner in TUNERS.items() if tuner.convolutions)
            found.append(f"target: 'resnets': only with peft_type {able}")
    if settings.own.get("init_lora_weights") in FROM_WEIGHTS:
        if settings.own.get("use_dora"):
            found.append("use_dora: True: not with initial values from the weights")
        if settings.target == "resnets":
            found.append("target: 'resnets': no convolution starts from its weights")
    return found


def not_linear(settings: dict[str, Any]) -> str | None:
    """Why these settings have no strength, in words; None if they have."""
    peft_type = settings["peft_type"]
    if not TUNERS[peft_type].rest:
        return peft_type
    nonlinear = {"use_dora": True, "weight_tying": settings.get("weight_tying") or None}
    nonlinear |= {"init_weights": "bat"} if peft_type == "MISS" else {}
    return next((n for n, v in nonlinear.items() if v is not None and settings.get(n) == v), None)


def needs_whole(settings: dict[str, Any], control: str | None) -> str | None:
    """Why the base's weights cannot be stored in fewer bits; None if they can."""
    peft_type = settings["peft_type"]
    if TUNERS[peft_type].reads:
        return f"with peft_type {peft_type} {READS}"
    reading = {"use_dora": True, "init_weights": "bat"}
    return next((f"with {n} {READS}" for n, v in reading.items() if settings.get(n) == v), None)


def sizes(settings: Tuned) -> dict[str, int]:
    """The settings by which memory is taken: in a file, no tensor is much smaller than they are."""
    free = {"delora_lambda", *(n for n in settings.own if "alpha" in n)}
    free |= {"r"} if settings.peft_type == "LOKR" else set()  # a rank too large is no rank
    return {n: v for n, v in settings.own.items() if type(v) is int and n not in free}


def peft_config(settings: Tuned, layers: Iterable[str]) -> PeftConfig:
    """peft's configuration for the layers of these paths.

    Raises UserError for settings that peft refuses.
    """
    from fitspace.core.imports import import_peft

    peft, layers = import_peft(), list(layers)
    where: dict[str, Any] = {"target_modules": layers}
    if settings.peft_type == "IA3":
        where["feedforward_modules"] = [p for p in layers if p.endswith(FEED_FORWARD)]
    kind = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[settings.peft_type]]
    try:
        return kind(**where, **settings.own)
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{settings.peft_type}: peft refuses its settings: {said}") from None


def attach(model: nn.Module, settings: Tuned, seed: int) -> Attachment:
    """Let peft change the layers of the target.

    Raises
    ------
    UserError : settings that peft refuses on these layers.
    """
    config = peft_config(settings, layers_of(model, settings))
    for name in seeds(settings.peft_type):
        setattr(config, name, int(rng.generator(seed, f"init/{name}").integers(2**31)))
    rates = [value for name, value in settings.own.items() if name.endswith("dropout")]
    return attachment(inject(model, config, seed), seed, max(rates, default=0.0))


def layers_of(model: nn.Module, settings: Tuned) -> list[str]:
    """The paths of the layers that a tuner changes. Raises UserError if the model has none."""
    from torch import nn

    chosen = inside(model, settings.blocks)
    modules = [(path, module) for path, module in model.named_modules() if chosen(path)]
    if settings.peft_type in NORMS:
        found = [p for p, m in modules if isinstance(m, nn.LayerNorm) and m.elementwise_affine]
    elif settings.target == "resnets":
        found = [path for path in layers(model, ("conv",)) if chosen(path)]
    else:
        return list(linear_layers(model, TARGETS[settings.target], settings.blocks))
    if not found:
        raise UserError(f"blocks: {settings.blocks!r}: no layer that the target means is there")
    return found
