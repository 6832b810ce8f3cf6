"""SVDiff: the singular values of every weight matrix are shifted (2303.11305).

W = U·diag(σ)·Vᵀ becomes U·diag(relu(σ + δ))·Vᵀ. Only the shifts δ are trained; they start at zero.
A convolution (out, in, k, k) counts as a matrix of in·k·k columns. A matrix of m rows and n columns
adds min(m, n) parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fitspace.methods.attachment import Attachment, PartialSettings

if TYPE_CHECKING:
    from torch import nn

trains = True
AT_REST = {"shift": 0.0}


class Settings(PartialSettings):
    """Which matrices are shifted."""

    layers: Literal["all", "linear"] = Field(
        "all", description="Linear layers and convolutions, or linear layers alone."
    )


def problems(settings: Settings, family: str) -> list[str]:
    """None: every denoiser has linear layers."""
    return []


def needs_whole(settings: dict[str, Any], control: str | None) -> str:
    """Why the base's weights cannot be stored in fewer bits."""
    return "holds them as singular vectors, which are as large as the whole weights"


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Give every matrix in the blocks its shifts.

    Raises
    ------
    UserError : there is none.
    """
    from fitspace.methods.svdiff_layers import attach_layers

    return attach_layers(model, settings)
