"""A DiT's block written out from its paper (2212.09748, figure 3), position by position."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F


class Positions:
    """Visits the positions in order; adds at ``target`` what ``delta`` makes of ``source``."""

    def __init__(self, delta: Callable, source: str, target: str):
        self.delta, self.source, self.target, self.seen = delta, source, target, {}

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        self.seen[name] = tensor
        return tensor + self.delta(self.seen[self.source]) if name == self.target else tensor


def forward(block, at, h, timestep, class_labels):
    """adaLN-zero around self-attention and feed-forward: (b, tokens, dim) -> the same shape."""
    condition = block.norm1.emb(timestep, class_labels, hidden_dtype=h.dtype)
    modulation = block.norm1.linear(F.silu(condition))[:, None].chunk(6, dim=-1)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
    dim = h.shape[-1:]
    h = at("SA_in", h)
    attended = block.attn1(F.layer_norm(h, dim, eps=1e-6) * (1 + scale_1) + shift_1)
    h = at("FFN_in", h + at("SA_out", gate_1 * attended))
    fed = block.ff(F.layer_norm(h, dim, eps=block.norm3.eps) * (1 + scale_2) + shift_2)
    return at("Trans_out", h + at("FFN_out", gate_2 * fed))


def rewritten(base, delta_of: Callable[[str], Callable], source: str, target: str):
    """A copy of the base whose blocks are :func:`forward`; ``delta_of`` a block's path."""
    model = copy.deepcopy(base)
    for i, block in enumerate(model.transformer_blocks):
        delta = delta_of(f"transformer_blocks.{i}")

        def run(h, timestep, class_labels, _block=block, _delta=delta, **_):
            return forward(_block, Positions(_delta, source, target), h, timestep, class_labels)

        block.forward = run
    return model
