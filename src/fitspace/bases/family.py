"""What differs from one family of denoisers to another, for all who are not of a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def _nothing(model: nn.Module) -> None:
    """Most models are what they should be as diffusers loads them."""


def _never(kind: str, config: dict[str, Any]) -> bool:
    return False


def _no_problems(config: dict[str, Any]) -> list[str]:
    return []


@dataclass(frozen=True)
class Family:
    """A family of denoisers.

    Attributes
    ----------
    name : in settings and messages.
    title : as prose writes it.
    component : the pipeline's folder that holds the denoiser.
    kind : the class of diffusers that loads it today.
    needs : components of its pipeline beside the denoiser, the autoencoder and the scheduler.
    told : what it is told beside the time step: ``words`` or ``classes``.
    scales : whether it makes images of a multiple of its own side.
    also : whether a denoiser saved as another class, with this configuration, is one of these.
    settle : called once with a model as diffusers loads it.
    problems : what in a denoiser's configuration nothing here knows how to use, as ``key: value;
        allowed``.
    """

    name: str
    title: str
    component: str
    kind: str
    needs: tuple[str, ...]
    told: str
    scales: bool
    also: Callable[[str, dict[str, Any]], bool] = _never
    settle: Callable[[nn.Module], None] = _nothing
    problems: Callable[[dict[str, Any]], list[str]] = _no_problems

    @property
    def by_class(self) -> bool:
        return self.told == "classes"
