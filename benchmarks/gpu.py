"""Training steps of full-size models on a GPU, against each other and against plain loops.

    python benchmarks/gpu.py                          # both bases, all methods, bf16
    python benchmarks/gpu.py --bases sd15 --batch 4   # a smaller GPU
    python benchmarks/gpu.py --device cpu --tiny      # the same code, tiny widths, in seconds

Weights are random: they decide no time. Ours is `training.fit` as the train stage calls it. The
plain loop is what diffusers' example scripts do: the autoencoder and the text encoder at work in
every step, frozen models in the lower precision, trainables in fp32, torch's AdamW, peft for LoRA,
and plain modules for the other methods. Prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
WARM_UP, SEEDS, CLASSES = 5, 4, 101
BATCH = {"sd15": 8, "dit-xl": 32}
# Method -> its settings on a U-Net, and on a DiT, which has no cross-attention.
METHODS = {
    "full": ("full", {}, {}),
    "adapter": (
        "adapter",
        {"input": "CA_out", "output": "FFN_in", "width": 60},
        {"input": "SA_out", "output": "FFN_in", "width": 60},
    ),
    "difffit": ("difffit", {}, {}),
    "bitfit": ("bitfit", {}, {}),
    "lora": ("lora", {"rank": 8}, {"rank": 8}),
}
# The papers' times and memory, full fine-tuning's being 1: 2303.18181; 2304.06648, table 1.
PAPERS = {
    ("sd15", "adapter"): (0.69, 22.5 / 31.4),
    ("dit-xl", "difffit"): (0.49, None),
    ("dit-xl", "bitfit"): (0.45, None),
    ("dit-xl", "lora"): (0.63, None),
}
TINY = {
    "sd15": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    "dit-xl": {
        "sample_size": 8,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_embeds_ada_norm": CLASSES,
    },
}


@dataclass(frozen=True)
class Measured:
    """Of one way to train: seconds and peak memory [bytes] of a step, FLOPs, trainables."""

    step: float
    samples: int
    memory: int | None
    flops: int | None = None
    trainable: int | None = None
    done: str = ""


class Timer:
    """Seconds between calls, the device idle at each."""

    def __init__(self, device: str):
        self.device, self.times = device, []

    def __call__(self, _step: int = 0) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    @property
    def median(self) -> float:
        seconds = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(seconds[WARM_UP:])


def denoiser(name: str, tiny: bool):
    """A denoiser with random weights, on the CPU; a DiT's embedders are alike in all blocks."""
    import diffusers
    import torch

    from fitspace import bases

    settings = bases.named_config(name) | (TINY[name] if tiny else {})
    torch.manual_seed(0)
    model = getattr(diffusers, settings["_class_name"]).from_config(settings)
    blocks = getattr(model, "transformer_blocks", ())
    for block in blocks:
        block.norm1.emb.load_state_dict(blocks[0].norm1.emb.state_dict())
    return model.requires_grad_(False).eval()


def forget_peak(device: str) -> None:
    import gc

    import torch

    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def a_task(model):
    """A prepared task of random numbers, of the sizes that the model takes."""
    import torch

    from fitspace.data.prepared import PreparedTask

    side, text = model.config.sample_size, model.config.get("cross_attention_dim")
    shape = (64, model.config.in_channels, side, side)
    return PreparedTask(
        mean=torch.randn(shape),
        std=torch.rand(shape),
        captions=torch.arange(64) % 8 + 1,
        groups=[[i] for i in range(64)],
        conditions={"embeddings": torch.randn(9, 77, text)}
        if text
        else {"labels": torch.arange(9)},
        prompts=[1],
    )


def ours(
    master,
    method: str,
    settings: dict,
    options: argparse.Namespace,
    batch: int,
    seeds: int = 1,
    prepare: bool = True,
    channels_last: bool = True,
    count_flops: bool = False,
    **how,
) -> Measured:
    """Train by fitspace; ``seeds`` > 1 in one folded batch, ``how`` as `devices.prepare` has it."""
    import torch

    from fitspace import bases, methods, training
    from fitspace.bases.process import Diffusion
    from fitspace.core import devices

    forget_peak(options.device)
    model = copy.deepcopy(master).to(options.device)
    bases.family_of(model).settle(model)
    attachment = methods.attach(model, method, settings, 0)
    done = devices.prepare(model, options.precision, **how) if prepare else []
    if not channels_last:
        model.to(memory_format=torch.contiguous_format)
    train = {
        "steps": WARM_UP + options.steps + 1, "batch_size": batch, "lr": 1e-4,
        "lr_schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "grad_clip": 1.0,
        "ema": None, "caption_dropout": 0.1, "min_snr_gamma": None,
        "precision": options.precision,
    }  # fmt: skip
    process = Diffusion({"beta_schedule": "scaled_linear"})
    task, timer, flops = a_task(model), Timer(options.device), None
    if count_flops:
        inputs = training.make_batch(task, process, 0.18, train, 0, 0).to(options.device)
        flops = flops_of(model, process, inputs, attachment.trainable, options)
        forget_peak(options.device)
    with tempfile.TemporaryDirectory() as folder:
        members = []
        for seed in range(seeds):
            own = attachment.trainable
            if seeds > 1:
                own = training.leaves(own, options.device)
            path = Path(folder) / f"{seed}.safetensors"
            members.append(training.Member(own, train, seed, path))
        results = training.fit_members(
            model, members, task, process, 0.18, checkpoint_seconds=math.inf, on_step=timer,
            dropouts=attachment.dropouts, folded=seeds > 1,
        )  # fmt: skip
    if any(result.examples_at_once < batch for result in results):
        raise torch.OutOfMemoryError
    trainable = sum(p.numel() for p in attachment.trainable.values())
    memory = peak(options.device)
    return Measured(timer.median, seeds * batch, memory, flops, trainable, ", ".join(done))


def flops_of(model, process, batch, trainable, options) -> int:
    """FLOPs of the forward pass and the backward pass that the trainables need."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fitspace import bases

    half = options.precision == "bf16"
    with FlopCounterMode(display=False) as counter:
        with torch.autocast(options.device, dtype=torch.bfloat16, enabled=half):
            family = bases.family_of(model)
            predicted = family.predict(model, batch.noisy, batch.t, batch.conditions)
        loss = batch.losses(process, predicted.float()).mean()
        torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    return counter.get_total_flops()


# --- the plain loop ---------------------------------------------------------------------


def plainly_trainable(model, method: str) -> tuple:
    """The model with the method, and its parameters in fp32, as a user would write it."""
    import torch
    from diffusers.models.attention import BasicTransformerBlock
    from torch import nn

    class WithAdapter(nn.Module):
        def __init__(self, part: nn.Module, dim: int, width: int = 60):
            super().__init__()
            self.part, self.down, self.up = part, nn.Linear(dim, width), nn.Linear(width, dim)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

        def forward(self, *args, **kwargs):
            y = self.part(*args, **kwargs)
            return y + self.up(torch.relu(self.down(y)))

    class Scaled(nn.Module):
        def __init__(self, part: nn.Module, dim: int):
            super().__init__()
            self.part, self.gamma = part, nn.Parameter(torch.ones(dim))

        def forward(self, *args, **kwargs):
            return self.part(*args, **kwargs) * self.gamma

    device, norms = next(model.parameters()).device, (nn.LayerNorm, nn.GroupNorm)
    if method == "full":
        model.requires_grad_(True)
    if method == "lora":
        from fitspace.core.imports import import_peft

        peft = import_peft()
        config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v"])
        model = peft.get_peft_model(model, config)
    if method in ("bitfit", "difffit"):
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "class_embedder" in name:
                parameter.requires_grad_(True)
    if method == "difffit":
        for module in list(model.modules()):
            if isinstance(module, norms):
                module.requires_grad_(True)
    blocks = [m for m in model.modules() if isinstance(m, BasicTransformerBlock)]
    if method == "adapter":
        for block in blocks:
            part = "attn1" if block.attn2 is None else "attn2"
            setattr(block, part, WithAdapter(getattr(block, part), block.dim).to(device))
    if method == "difffit":
        for block in blocks[: (len(blocks) + 1) // 2]:
            for part in ("attn1", "attn2"):
                attention = getattr(block, part)
                if attention is None:
                    continue
                for name in ("to_q", "to_k", "to_v"):
                    layer = getattr(attention, name)
                    setattr(attention, name, Scaled(layer, layer.out_features).to(device))
                attention.to_out[0] = Scaled(attention.to_out[0], block.dim).to(device)
                setattr(block, part, Scaled(attention, block.dim).to(device))
            block.ff = Scaled(block.ff, block.dim).to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    for module in model.modules():  # a norm's weight and bias have to be of one precision
        if isinstance(module, norms) and any(p.requires_grad for p in module.parameters()):
            module.float()
    return model, parameters


def plain(master, method: str, options: argparse.Namespace, batch: int) -> Measured:
    """Train by a plain loop of diffusers, transformers and peft."""
    import torch
    import torch.nn.functional as F
    from diffusers import AutoencoderKL, DDPMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    forget_peak(options.device)
    device, half = options.device, options.precision == "bf16"
    lower = torch.bfloat16 if half else torch.float32
    widths = (8, 8, 8, 8) if options.tiny else (128, 256, 512, 512)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1 if options.tiny else 2,
        norm_num_groups=4 if options.tiny else 32,
    ).to(device, lower)
    vae.requires_grad_(False).eval()
    model = copy.deepcopy(master)
    side, dim = model.config.sample_size, model.config.get("cross_attention_dim")
    if dim:
        small = {"num_hidden_layers": 1, "num_attention_heads": 2} if options.tiny else {
            "num_hidden_layers": 12, "num_attention_heads": 12}  # fmt: skip
        config = CLIPTextConfig(hidden_size=dim, intermediate_size=4 * dim, **small)
        text = CLIPTextModel(config).to(device, lower).requires_grad_(False).eval()
    model = model.to(device, torch.float32 if method == "full" else lower)
    model, parameters = plainly_trainable(model, method)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    scheduler, timer = DDPMScheduler(beta_schedule="scaled_linear"), Timer(device)
    for _ in range(WARM_UP + options.steps + 1):
        # A loader of images would give these.
        pixels = torch.rand(batch, 3, 8 * side, 8 * side).mul_(2).sub_(1).to(device, lower)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            if dim:
                tokens = torch.randint(0, 49408, (batch, 77)).to(device)
                condition = {"encoder_hidden_states": text(tokens)[0]}
            else:
                condition = {"class_labels": torch.randint(0, 9, (batch,)).to(device)}
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (batch,), device=device)
        noisy = scheduler.add_noise(latents, noise, t)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            predicted = model(noisy, timestep=t, **condition).sample
        predicted = predicted[:, : noise.shape[1]]
        loss = F.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        timer()
    return Measured(timer.median, batch, peak(device))


# --- tables -----------------------------------------------------------------------------


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def gibibytes(measured: Measured | None) -> str:
    return number(measured.memory / 2**30, 1) if measured and measured.memory else ""


def ratio(a: float | None, b: float | None) -> str:
    return number(a / b) if a and b else ""


def attempt(work, *args, **kwargs) -> Measured | None:
    """None where the GPU's memory does not hold it."""
    import torch

    from fitspace.core.errors import UserError

    try:
        return work(*args, **kwargs)
    except torch.OutOfMemoryError:
        return None
    except UserError as error:
        if "memory" not in str(error):
            raise
        return None


def row(cells: list) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(cells: list[str]) -> None:
    row(cells)
    row(["---"] * len(cells))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny widths")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--batch", type=int, help="examples per step, of every base")
    parser.add_argument("--steps", type=int, default=20, help="that are timed")
    parser.add_argument("--bases", nargs="+", choices=tuple(BATCH), default=list(BATCH))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    options = parser.parse_args(arguments)

    from fitspace.core.imports import import_torchvision

    import_torchvision()
    import diffusers
    import peft
    import torch

    from fitspace.core import devices

    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: no GPU here; allowed: --device cpu --tiny", file=sys.stderr)
        return 2
    if options.device == "cpu" and not options.tiny:
        print("gpu.py: --device cpu takes hours at full size; allowed: --tiny", file=sys.stderr)
        return 2
    devices.set_up()
    on = torch.cuda.get_device_name() if options.device == "cuda" else "a CPU, tiny widths"
    print(
        f"On {on}, {options.precision}: torch {torch.__version__} (CUDA {torch.version.cuda}), "
        f"diffusers {diffusers.__version__}, peft {peft.__version__}. Medians of {options.steps} "
        "steps; peak memory as torch allocates it; deterministic algorithms, in both loops.\n"
    )
    masters = {name: denoiser(name, options.tiny) for name in options.bases}
    head([
        "base", "batch", "method", "trainable", "step [s]", "samples/s", "peak [GiB]",
        "time/full", "paper", "memory/full", "paper", "FLOPs/full",
        "plain step [s]", "plain peak [GiB]", "plain/ours time", "plain/ours memory",
    ])  # fmt: skip
    for name, master in masters.items():
        batch, full = options.batch or BATCH[name], None
        for label in options.methods:
            method, *settings = METHODS[label]
            own = settings[name == "dit-xl"]
            mine = attempt(ours, master, method, own, options, batch, count_flops=True)
            theirs = attempt(plain, master, label, options, batch)
            if label == "full":
                full = mine
            papers = PAPERS.get((name, label), (None, None))
            found = [name, batch, label]
            if mine is None:
                found += ["", "out of memory", *[""] * 7]
            else:
                found += [
                    mine.trainable,
                    number(mine.step, 4),
                    number(mine.samples / mine.step, 1),
                    gibibytes(mine),
                    ratio(mine.step, full and full.step),
                    number(papers[0]),
                    ratio(mine.memory, full and full.memory),
                    number(papers[1]),
                    ratio(mine.flops, full and full.flops),
                ]
            row([
                *found,
                number(theirs.step, 4) if theirs else "out of memory",
                gibibytes(theirs),
                ratio(theirs and theirs.step, mine and mine.step),
                ratio(theirs and theirs.memory, mine and mine.memory),
            ])  # fmt: skip
    print("\nThe adapter in other ways:\n")
    head(["base", "batch", "way", "step [s]", "samples/s", "peak [GiB]", "time to the first"])
    ways = {
        "as above": {},
        "frozen layers in fp32, cast at each step": {"prepare": False},
        "not channels last": {"channels_last": False},
        "gradient checkpointing": {"gradient_checkpointing": True},
        # On a CPU autocast leaves vmap's convolutions alone, and fitspace does not fold.
        f"{SEEDS} seeds in one batch, per seed": {
            "seeds": SEEDS,
            "prepare": options.device == "cuda",
        },
    }
    if options.device == "cuda":
        ways["compiled"] = {"compiled": True}
    for name, master in masters.items():
        batch, first = options.batch or BATCH[name], None
        settings = METHODS["adapter"][1 + (name == "dit-xl")]
        for label, way in ways.items():
            found = attempt(ours, master, "adapter", settings, options, batch, **way)
            if found is None:
                row([name, batch, label, "out of memory", "", "", ""])
                continue
            per_seed = found.step * batch / found.samples
            first = first or per_seed
            row([
                name, batch, label, number(per_seed, 4), number(found.samples / found.step, 1),
                gibibytes(found), ratio(per_seed, first),
            ])  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
