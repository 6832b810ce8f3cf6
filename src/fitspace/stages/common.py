"""Steps that several stages share: verify inputs, fit a base to its task, draw images."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace import bases, methods
from fitspace.core import devices
from fitspace.core.errors import UserError
from fitspace.core.paths import RESULTS
from fitspace.plan import Run, Stage, too_many_prompts, trains_classes
from fitspace.stages.sidecars import KERNELS, KIND, environment, verified
from fitspace.study import EXTRAPOLATED, Study

if TYPE_CHECKING:
    from fitspace.metrics import Kept

FEATURES = RESULTS / ".features"


def peak_memory_mb() -> float:
    """Peak memory of this process [MiB] since the run began; the GPU's, if there is one."""
    import resource

    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next((int(s.split()[1]) for s in lines if s.startswith("VmHWM:")), peak)
    return round(peak / 1024, 1)


def forget_peak() -> None:
    """Reset the peak, so that an earlier run of this process does not count for this one."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # on Linux (proc_pid_clear_refs(5)); elsewhere the process's own
        Path("/proc/self/clear_refs").write_text("5")


def generated(
    study: Study,
    model,
    task,
    rows: list[int],
    noise,
    description: str,
    drawn: dict[str, Any],
    given: dict[str, Any] | None = None,
    start=None,
):
    """Sample with the settings ``drawn``: one image per given row of ``task.conditions``.

    ``given`` are conditions beside those of the rows; ``start`` are latents to start from, not yet
    scaled.
    """
    from fitspace.training import sampling

    base = bases.resolve(study.base)
    return sampling.generate(
        model,
        bases.load_vae(base).to(devices.device()),
        bases.load_process(base),
        task.told(rows) | (given or {}),
        task.told(slice(1)),
        noise,
        drawn["steps"],
        drawn["guidance"],
        description=description,
        given_guidance=drawn.get("given_guidance", 1.0),
        start=start,
        noised=drawn.get("noised", 1.0),
    )


def placed(model, run: Run) -> Any:
    """A denoiser on the device; one whose frozen layers a run stores in fewer bits stays where it
    is loaded until :func:`stored`, because a device may not hold it whole."""
    return model if _form(run) else model.to(devices.device())


def stored(model, run: Run, attachment: methods.Attachment) -> list[str]:
    """Store the frozen layers of a run's model as its training says, in place, once its method is
    attached; what was done, in words."""
    if form := _form(run):
        from fitspace.bases.quantized_layers import quantize

        return quantize(model, form, devices.device(), attachment.frozen.values())
    return []


def _form(run: Run) -> str | None:
    return (run.point.train or {}).get("base_weights")


def fit_task(model, run: Run, task, base: Path) -> None:
    """Set the base to the task's size, let it be told of the images that the task gives, if the
    run's point says so, and give it the task's own classes, if it has any.

    Raises UserError if the run does not train these.
    """
    if run.task.scale != 1:
        train = run.point.train or {}
        bases.at_scale(model, run.task.scale, train.get("positions") == EXTRAPOLATED)
    if control := bases.control_for(base, run.point.learnt):
        bases.add_control(model, control, run.seed)
    if task.own_classes is None:
        return
    if not trains_classes(run.point.method, run.point.settings):
        raise UserError(
            f"{run.name}: task {run.task.name!r} has classes that the base does not know, and "
            f"method {run.point.method!r} does not train their embeddings; allowed: a method "
            "that trains them (class_embedding: true)"
        )
    bases.new_classes(model, task.own_classes, run.seed)


def adapter_file(step: int | None) -> str:
    """The file, in a training's folder, of the trainables after a step; None: after the last."""
    return "adapter.safetensors" if step is None else f"adapter-{step}.safetensors"


def check_prompts(study: Study, run: Run, prompts: list[int]) -> None:
    """Raises UserError if a study samples more captions than the task has held-out prompts."""
    if study.sample.captions > len(prompts):
        raise UserError(too_many_prompts(study.sample, run.task.name, len(prompts)))


def rehashed(stage: Stage) -> tuple[list[Path], dict[str, Any]]:
    """A stage's files and the facts of its sidecar, after rehashing the files."""
    sidecar = verified(stage)
    files = [stage.sidecar, *(stage.folder / Path(o["path"]).name for o in sidecar["outputs"])]
    return files, sidecar["facts"]


def keeping(stage: Stage) -> Kept:
    """Where features of a stage's images are kept between evaluations; `fitspace gc` removes them
    with the stage."""
    import torch  # noqa: F401 - its state is part of an environment

    from fitspace.metrics import Kept

    machine = {name: environment().get(name) for name in (*KIND, KERNELS)}
    return Kept(FEATURES / stage.folder.name, machine)


def say_diverged(run: Run, why: str) -> None:
    """Print that a run diverged, and why."""
    print(f"fitspace: {run.name} diverged: {why}", file=sys.stderr)


def count(parameters) -> int:
    """Number of values in some tensors."""
    return sum(p.numel() for p in parameters)


def seconds_since(clock: float) -> float:
    """Seconds since a reading of ``time.monotonic()``, to the millisecond."""
    return round(time.monotonic() - clock, 3)
