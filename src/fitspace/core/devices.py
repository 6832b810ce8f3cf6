"""Device settings: everything that makes a model faster or smaller on a device is decided here.

These settings change results by rounding at most. On a CPU they change no bit, because a key
stands for exact bits there. torch is imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fitspace.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

# Pixels that an autoencoder encodes or decodes at once, 4 images of 512 px: their activations
# take about 1 GB in encoding and 2 GB in decoding.
PIXELS = 2**20
# CUDA graphs: shapes do not change from step to step.
COMPILE: dict[str, Any] = {"mode": "reduce-overhead"}


def device() -> str:
    """The device that models run on: the one visible GPU, else the CPU.

    Raises UserError if several GPUs are visible: a run is one process on one device, and a
    launcher that starts it once per GPU would do the work twice.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count > 1:
        raise UserError(f"CUDA_VISIBLE_DEVICES: {count} GPUs are visible; allowed: 1 for each job")
    return "cuda" if count else "cpu"


def set_up() -> None:
    """Make this process's numbers reproducible; call it before anything is computed.

    - Use deterministic algorithms. cuBLAS has them only with a workspace of fixed size; without
      one the first matrix product raises an error.
    - Compute in single precision: cuDNN would otherwise compute convolutions in TF32, with the
      10 bits of half precision. A study that wants half precision says so.
    - On a GPU do not fill the memory of each new tensor, which costs a kernel per operation; no
      computation reads this memory.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = not torch.cuda.is_available()
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def prepare(
    model: nn.Module, precision: str, gradient_checkpointing: bool = False, compiled: bool = False
) -> list[str]:
    """Prepare a model with its method for training, in place; returns what was done, in words.

    With ``precision`` bf16 the frozen layers' weights are stored in bf16, see
    :func:`halve_frozen`, and on a GPU a U-Net's tensors are stored channels last, as tensor cores
    read them. diffusers already uses ``scaled_dot_product_attention`` for attention.

    Parameters
    ----------
    gradient_checkpointing : keep only the blocks' inputs for the backward pass, and compute the
        rest again: the same gradients, less memory, about a third more time.
    compiled : compile the model and replay its kernels as CUDA graphs.

    Raises
    ------
    UserError : ``compiled`` without a GPU.
    """
    import torch

    on_gpu = next(model.parameters()).device.type == "cuda"
    if compiled and not on_gpu:
        raise UserError("--compile: 1: no GPU here, and a CPU's bits would change; allowed: 0")
    done = []
    if precision == "bf16" and halve_frozen(model):
        done.append("frozen layers in bf16")
    if precision == "bf16" and on_gpu and hasattr(model, "conv_in"):
        model.to(memory_format=torch.channels_last)
        done.append("channels last")
    if gradient_checkpointing:
        model.enable_gradient_checkpointing()
        done.append("gradient checkpointing")
    if compiled:
        model.compile(**COMPILE)
        done.append("compiled")
    return done


def halve_frozen(model: nn.Module) -> int:
    """Store the weights in bf16 that autocast casts at every step; returns the number of tensors.

    These are the frozen weights and biases of linear layers and convolutions. Trainables, norms
    and embeddings stay in fp32, and so do layers whose weights DoRA reads. Do not use it for a
    fold on a CPU, where autocast does not cast vmap's convolutions.
    """
    import torch
    from torch import nn

    read = {
        id(module.get_base_layer())
        for module in model.modules()
        if any(getattr(module, "use_dora", {}).values())
    }
    found = [
        parameter
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and id(module) not in read
        for parameter in module.parameters(recurse=False)
        if not parameter.requires_grad
    ]
    for parameter in found:
        parameter.data = parameter.data.to(torch.bfloat16)
    return len(found)


def one_at_a_time(models: Sequence[nn.Module], device: str | torch.device) -> None:
    """Let only one of some frozen models be on the device: each comes when it is called, and the
    one before it goes back to where it was, without a copy of what never changed. Of one model
    alone this is ``model.to(device)``."""
    if len(models) == 1:
        models[0].to(device)
        return
    from torch import nn

    here: nn.Module | None = None
    home: list[tuple[dict[str, Any], str, torch.Tensor]] = []

    def bring(model: nn.Module, args: Any) -> None:
        nonlocal here
        if model is here:
            return
        while home:
            held, name, tensor = home.pop()
            held[name] = tensor
        moved: dict[int, torch.Tensor] = {}  # tied weights stay one
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in [(n, t) for n, t in held.items() if t is not None]:
                    home.append((held, name, tensor))
                    if id(tensor) not in moved:
                        there = tensor.to(device)
                        frozen = isinstance(tensor, nn.Parameter)
                        moved[id(tensor)] = nn.Parameter(there, False) if frozen else there
                    held[name] = moved[id(tensor)]
        here = model

    for model in models:
        model.register_forward_pre_hook(bring)


def adamw(groups: list[dict[str, Any]], **settings: Any) -> torch.optim.AdamW:
    """AdamW of groups of parameters (``params``); on a GPU in one kernel for all of a group."""
    import torch

    on_gpu = all(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, fused=on_gpu or None, **settings)  # None: torch's own choice


def images_at_once(most: int, side: int) -> int:
    """How many images of this side [px] an autoencoder takes at once, up to ``most``."""
    return max(1, min(most, PIXELS // side**2))
