"""A trained method at a strength, and at work in a part of the denoiser: nothing is trained again.

The base has the parameters θ0; a method that was trained has θ. At strength s each parameter that
carries the change is ``θ0 + s·(θ - θ0)``: 0 is the base, 1 the method as trained. A parameter of
the base carries its own change. Of the parameters that a method adds, those of ``AT_REST`` carry
it: its module gives the values at which they change nothing, such as 0 for the last layer of an
adapter and for LoRA's B, 1 for a factor. The others keep their trained values.

What a layer adds is then linear in s, but for OFT, where s turns the generator of the rotation.
DoRA divides by a length that depends on B, and prompts change something at any value: both are
refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fitspace.methods.attachment import MethodSettings
from fitspace.methods.blocks import prefixes, within
from fitspace.methods.registry import get

if TYPE_CHECKING:
    import torch


def problems_of_strength(
    method: str, settings: MethodSettings | dict[str, Any], control: str | None = None
) -> list[str]:
    """Why a method has no strength to be sampled at; empty if it has."""
    if control == "controlnet":
        return ["a copy of the encoder has its own zero convolutions: no change is linear in it"]
    if isinstance(settings, MethodSettings):
        settings = settings.model_dump()
    if not get(method).trains:
        return [f"method {method!r} adds nothing to the base"]
    if not hasattr(get(method), "AT_REST"):
        return [f"method {method!r} changes the base whatever its parameters' values"]
    said = getattr(get(method), "not_linear", lambda _: None)(settings)
    return [f"method {method!r} with {said} is not linear in its change"] if said else []


def strengths(names: Iterable[str], strength: float, blocks: str | None) -> dict[str, float]:
    """Parameter's name -> its strength: 0 outside of ``blocks``, where there are any."""
    if blocks is None:
        return dict.fromkeys(names, strength)
    inside = within(prefixes(blocks))
    return {name: strength if inside(name) else 0.0 for name in names}


def at(
    name: str, trained: torch.Tensor, own: torch.Tensor | None, method: str, strength: float
) -> torch.Tensor:
    """A parameter's value at a strength; ``own``: the base's value of a parameter of the base."""
    if strength == 1:
        return trained
    if own is not None:
        return own + strength * (trained - own)
    rest = get(method).AT_REST
    carried = next((rest[part] for part in name.split(".") if part in rest), None)
    return trained if carried is None else carried + strength * (trained - carried)
