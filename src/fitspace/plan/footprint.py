"""FLOPs and bytes of a training step and of an image, measured without weights.

One step of a point runs on the meta device, where tensors have a shape but no content. Models of
any size can therefore be measured on any machine. A multiply-add counts as two FLOPs.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace import bases, methods, metrics
from fitspace.bases.quantized import Linear, counted, frozen_linear
from fitspace.core import hub
from fitspace.core.files import digest, remember, remembered, sha256
from fitspace.plan import counting
from fitspace.plan.points import Point
from fitspace.study import WHOLE, Reward, Study, Task

if TYPE_CHECKING:
    import torch

# A step of Stable Diffusion takes one to three seconds to measure.
CACHE = Path("results/.cache/footprints.json")
WIDTH = {"fp32": 4, "bf16": 2}  # bytes


@dataclass(frozen=True)
class Footprint:
    """FLOPs and bytes of one point on one kind of task.

    Attributes
    ----------
    forward : FLOPs of the denoiser with its method, for one latent.
    step : FLOPs of a training step for one latent: the forward pass, and the backward pass as far
        as the point needs it; 0 if nothing is trained. Recomputation is not included.
    activations : bytes that a training step keeps for the backward pass of the whole batch.
    frozen, trainable : numbers of parameters, including the method's.
    linear, rows : the weights of frozen linear layers, which are among ``frozen``, and their rows.
    beside : bytes of the weights that only a reward needs.
    """

    forward: int
    step: int
    activations: int
    frozen: int
    trainable: int
    linear: int = 0
    rows: int = 0
    beside: int = 0

    def training(self, settings: dict[str, Any]) -> int:
        """Bytes of a training step: weights, gradients, AdamW's state and activations.

        The base is stored in the precision of the forward pass, but for linear layers in fewer
        bits, of which one at a time is made whole. Trainables (with a copy in that
        precision), their gradients, both moments and the moving average, if any, are stored in
        fp32. ``settings`` are those of :class:`fitspace.study.TrainSettings`.
        """
        width = WIDTH[settings["precision"]]
        each = 16 + (4 if settings["ema"] is not None else 0) + (width if width < 4 else 0)
        own = self._base(width, settings) + each * self.trainable
        return own + self.activations + self.beside

    def sampling(self, settings: dict[str, Any] | None) -> int:
        """Bytes of the weights that sampling needs, in fp32 or as the training had them, without
        the decoder's. ``settings`` as in :meth:`training`; None where nothing is trained."""
        return self._base(4, settings or {}) + 4 * self.trainable

    def _base(self, width: int, settings: dict[str, Any]) -> int:
        """Bytes of the frozen weights, of which those that are whole have this width."""
        form = settings.get("base_weights", WHOLE)
        if form == WHOLE:
            return width * self.frozen
        return width * (self.frozen - self.linear) + Linear(self.linear, self.rows).bytes(form)


def of(study: Study, point: Point, task: Task) -> Footprint:
    """The footprint of a study's point on a task; cached in `CACHE`.

    Raises UserError for a base of unknown architecture.
    """
    precision = (point.train or {"precision": "fp32"})["precision"]
    batch = latents(point, task)
    if point.train is not None and point.train.get("examples_at_once"):
        batch = min(batch, point.train["examples_at_once"])
    found = measure(
        study.base, point.method, point.settings, batch, precision, task.scale, point.learnt
    )
    if point.train is not None and point.train.get("reward"):
        with contextlib.suppress(hub.NotHere):  # of models elsewhere nobody knows the size
            found = _rewarded(found, study.base, point.train["reward"], batch, task.scale)
    return found


def latents(point: Point, task: Task) -> int:
    """Number of latents per step, class images of a subject's task included; 1 without steps."""
    if point.train is None:
        return 1
    if task.dreambooth is None:
        return point.train["batch_size"]
    own = point.train.get("prior_weight")
    weight = task.dreambooth.prior_weight if own is None else own
    return point.train["batch_size"] * (2 if weight else 1)


def measure(
    base: str,
    method: str,
    settings: dict[str, Any],
    batch: int = 1,
    precision: str = "fp32",
    scale: int = 1,
    control: str | None = None,
) -> Footprint:
    """Run one step of a method on a base, on the meta device; cached in `CACHE`.

    ``base`` is as :func:`fitspace.bases.from_config` takes it; the step has ``batch`` latents of
    ``scale`` times the base's side; ``control`` is how the denoiser is told of an image.

    Raises UserError as :func:`fitspace.plan.counting.count`.
    """
    tokens, told = text_tokens(base), bases.control_for(base, control)
    side = latent_side(base)
    given = [bases.architecture(base), method, settings, batch, precision, scale, tokens, side]
    key, known = digest([*given, *counting.named(told), _code()]), remembered(CACHE)
    if key not in known:
        measured = _measure(base, method, settings, batch, precision, scale, tokens, side, told)
        known[key] = asdict(measured)
        remember(CACHE, known)
    return Footprint(**known[key])


def text_tokens(base: str) -> int:
    """Number of text tokens that a base is conditioned on; where the base is not on this machine,
    that of its family."""
    if base not in bases.CONFIGS:
        with contextlib.suppress(hub.NotHere):
            return bases.text_tokens(bases.resolve(base))
    return bases.family_by(bases.architecture(base)).tokens


def latent_side(base: str) -> int | None:
    """Side of a base's latents by its autoencoder, if it is on this machine and its denoiser does
    not say it; else None."""
    if base in bases.CONFIGS or bases.family_by(bases.architecture(base)).side is None:
        return None
    with contextlib.suppress(hub.NotHere):
        return bases.latent_shape(bases.resolve(base))[-1]
    return None


@cache
def _code() -> str:
    """Digest of what determines footprints besides their arguments."""
    return digest([counting.code(), version("torch"), sha256(__file__)])


def _measure(
    base: str,
    method: str,
    settings: dict[str, Any],
    batch: int,
    precision: str,
    scale: int,
    tokens: int,
    side: int | None,
    told: bases.Control | None,
) -> Footprint:
    import torch
    import torch.fx.experimental._config
    from torch.utils.flop_counter import FlopCounterMode

    model = bases.from_config(base)
    if scale != 1:
        bases.at_scale(model, scale)
    if told is not None:
        bases.add_control(model, told, seed=0)
    attachment = methods.attach(model, method, settings, seed=0)
    for layer in attachment.dropouts:
        layer.train()
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    torch.nn.Module.to(model, dtype)  # diffusers' own `to` warns about layers it keeps in fp32
    latents, t, conditions = _inputs(model, batch, tokens, side, dtype)
    kept = _Kept(model)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
    # A mask without values lets all through.
    passing = torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True)
    counter = FlopCounterMode(display=False, custom_mapping={backward: _backward})
    with _without_values(), passing, counter as flops:
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
            predicted = bases.family_of(model).predict(model, latents, t, conditions)
        forward = flops.get_total_flops()
        if attachment.trainable:
            predicted.backward(torch.empty_like(predicted))
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in attachment.trainable.values())
    linear = counted(frozen_linear(model, attachment.frozen.values()))
    return Footprint(
        forward=forward // batch,
        step=flops.get_total_flops() // batch if attachment.trainable else 0,
        activations=kept.bytes,
        frozen=total - trainable,
        trainable=trainable,
        linear=linear.weights,
        rows=linear.rows,
    )


def _rewarded(
    found: Footprint, base: str, reward: dict[str, Any], batch: int, scale: int
) -> Footprint:
    """A footprint with what a reward adds; the FLOPs are those of the share of time steps that it
    rewards, the bytes those of a batch that it rewards as a whole.

    Where images are drawn for it, all are rewarded. The denoiser is asked at each solver step,
    twice with guidance, and goes back through the last ones.
    """
    folder = bases.resolve(base)
    side = bases.latent_shape(folder)[-1] * scale
    config, code = bases.config(folder, "vae"), sha256(find_spec("fitspace.training.reward").origin)
    judge = metrics.identity(reward["model"])[metrics.JUDGE]
    key = digest(["reward", config, judge, reward["against"], batch, side, code, _code()])
    known = remembered(CACHE)
    if key not in known:
        known[key] = _measure_reward(folder, reward, batch, side)
        remember(CACHE, known)
    flop, activations, weights = known[key]
    step, share, back = found.step, reward["below"], reward.get("through", 0)
    if back:
        own = Reward(**reward)
        model = bases.config(folder, bases.denoiser(folder))
        asked = 1 + (own.guidance > 1 and not bases.family(base).distilled(model))
        step += asked * (own.steps * found.forward + back * (found.step - found.forward))
        activations += asked * back * found.activations
        share = 1.0
    return replace(
        found,
        step=step + round(flop * share),
        activations=found.activations + activations,
        beside=weights,
    )


def _measure_reward(folder: Path, reward: dict[str, Any], batch: int, side: int) -> list[int]:
    """FLOPs of an example that is rewarded; bytes kept for a batch; bytes of the weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fitspace import training

    own = training.load_reward(reward | {"against": "target"}, folder, [], "cpu")
    models = torch.nn.ModuleList([own.vae, own.judge.model]).to("meta")
    channels = bases.latent_shape(folder)[0]
    latents = torch.empty(batch, channels, side, side, device="meta", requires_grad=True)
    kept = _Kept(models)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
    with FlopCounterMode(display=False, custom_mapping={backward: _backward}) as flops:
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
            seen = own.seen(latents)
        forward = flops.get_total_flops()
        seen.backward(torch.empty_like(seen))
    total = flops.get_total_flops() + forward * (reward["against"] == "target")
    weights = sum(p.numel() * p.element_size() for p in models.parameters())
    return [total // batch, kept.bytes, weights]


def _inputs(
    model: torch.nn.Module, batch: int, tokens: int, side: int | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Latents, time steps and conditions, all without content."""
    import torch

    config, family = model.config, bases.family_of(model)
    channels, by_default = family.latents(config)
    side = side or by_default
    with torch.device("meta"):
        latents = torch.empty(batch, channels, side, side, dtype=dtype)
        conditions = family.blank(config, batch, tokens, dtype)
        if control := bases.control_of(model):
            conditions["given"] = latents
            if control.channels:  # pixels
                side *= 2 ** (len(control.channels) - 1)
                conditions["given"] = torch.empty(batch, 3, side, side, dtype=dtype)
        return latents, torch.empty(batch, dtype=torch.long), conditions


class _Kept:
    """Bytes of the tensors that autograd keeps: each storage once, without the model's own."""

    def __init__(self, model: torch.nn.Module):
        own = [*model.parameters(), *model.buffers()]
        # An address identifies a storage only while the storage lives, so all are kept alive.
        self.own = {t.untyped_storage()._cdata: t.untyped_storage() for t in own}
        self.found: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.found[storage._cdata] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.found.values())


def _without_values() -> torch.overrides.TorchFunctionMode:
    """What the meta device does not do as devices do it.

    Attention as GPUs compute it, without keeping the softmax's result: there PyTorch would compute
    it step by step and keep it. A sparse matrix, which has no form there, is a dense one.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from torch.overrides import TorchFunctionMode

    class AsOnDevices(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if function is torch.sparse_coo_tensor:
                indices, values, size = args[:3]
                dense = torch.empty(size, dtype=values.dtype, device=values.device)
                return dense.index_put(tuple(indices), values)
            if function is scaled_dot_product_attention:  # a mask costs next to nothing
                given = args[:3] or [kwargs[name] for name in ("query", "key", "value")]
                return torch.ops.aten._scaled_dot_product_flash_attention(*given)[0]
            return function(*args, **kwargs)

    return AsOnDevices()


def _backward(gradient, query, key, value, *_, out_shape=None, **__) -> int:
    """FLOPs of attention's backward pass, from shapes, without repeating the forward pass."""
    from torch.utils.flop_counter import sdpa_flop_count

    return 2 * sdpa_flop_count(query, key, value)
