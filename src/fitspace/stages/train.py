"""Fit a run's trainables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from fitspace import bases, methods
from fitspace.core import devices
from fitspace.core.errors import UserError
from fitspace.core.files import write_text
from fitspace.core.paths import RESULTS
from fitspace.plan import Run
from fitspace.stages.common import (
    adapter_file,
    count,
    fit_task,
    forget_peak,
    peak_memory_mb,
    placed,
    rehashed,
    say_diverged,
    stored,
)
from fitspace.stages.sidecars import now, write_sidecar
from fitspace.study import Study

OnLoss = Callable[[int, float, float], None]  # step, loss, learning rate


def train(
    study: Study,
    *runs: Run,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
    live: Callable[[Study, Run], AbstractContextManager[OnLoss | None]] = lambda *_: nullcontext(),
) -> None:
    """Fit a run's trainables; resumes where an earlier attempt was killed.

    Several runs are fitted in one folded batch, see :func:`folds`; each writes its own files.
    ``gradient_checkpointing`` and ``compiled`` work for a single run and are not part of a key, see
    :func:`fitspace.core.devices.prepare`. ``live`` is a context manager; it yields the function
    that is called with each step of a run.

    Divergence is a valid outcome. The run is written with its losses and its last parameters, its
    sidecar gives the reason, and no samples are drawn from it.

    Raises
    ------
    UserError : changed or missing inputs.
    """
    from fitspace import training
    from fitspace.data.prepared import load, read_manifest

    started, run = now(), runs[0]
    if len(runs) > 1 and (gradient_checkpointing or compiled):
        # A block computed again in the backward pass would see the first run's parameters.
        raise ValueError("gradient_checkpointing and compiled are for one run alone")
    for each in runs:
        if each.train is None:
            method = each.point.method
            raise UserError(f"train: {each.name!r} is of method {method!r}: nothing to train")
    forget_peak()
    inputs, _ = rehashed(run.prepare)
    base = bases.resolve(study.base)
    task = load(run.prepare, base, run.task.scale, run.point.learnt)
    task = task.preserving(run.point.train.get("prior_weight"))
    model = placed(bases.load_denoiser(base), run)
    total = count(model.parameters())
    attachment = _attached(model, run, task, base)
    precision = run.point.train["precision"]
    prepared = stored(model, run, attachment)
    if prepared and compiled:
        raise UserError(f"--compile: 1: not with {prepared[0]}; allowed: 0")
    prepared += devices.prepare(model, precision, gradient_checkpointing, compiled)

    def member(each: Run) -> training.Member:
        own = attachment.trainable
        if len(runs) > 1:  # all of the model is shared, but what is trained
            mine = attachment
            if each is not run:
                mine = _attached(bases.load_denoiser(base), each, task, base)
            own = training.leaves(mine.trainable, devices.device())
        on_loss = curves.enter_context(live(study, each))
        settings = each.train.material["train"]  # as the key has them
        return training.Member(
            own, settings, each.seed, _checkpoint(each), on_loss, attachment.rates
        )

    scaling, shift = bases.load_scaling(base)
    reward = None
    if asked := run.point.train.get("reward"):
        captions = read_manifest(run.prepare)["captions"]
        none = task.told(slice(1))
        reward = training.load_reward(asked, base, captions, devices.device(), none)
    with ExitStack() as curves:
        results = training.fit_members(
            model,
            [member(each) for each in runs],
            task,
            bases.load_process(base),
            scaling,
            description=f"train {run.train.folder.name}",
            dropouts=attachment.dropouts,
            folded=len(runs) > 1,
            shift=shift,
            reward=reward,
        )
    facts = {
        "trainable": count(attachment.trainable.values()),
        "total": total,
        "trainables": {n: list(p.shape) for n, p in attachment.trainable.items()},
        **({"prepared": prepared} if prepared else {}),
    }
    memory = peak_memory_mb()
    for each, result in zip(runs, results, strict=True):
        _write_trained(each, attachment, result, inputs, started, facts, memory)


def folds(run: Run, other: Run) -> bool:
    """Whether two runs of a task are trained in one folded batch on this machine.

    Runs fold only on a GPU, which a small batch leaves mostly idle; on a CPU a run keeps the bits
    of a separate run. The runs need the same structure, the same numbers of steps and examples,
    and checkpoints at the same step. Runs with dropout do not fold, because dropout draws its
    masks for a whole batch, nor do runs whose base is stored in fewer bits. Nor do runs whose
    reward draws images, because a solver keeps the history of one batch.
    """
    from fitspace import training

    a, b = run.point, other.point
    return (
        devices.device() == "cuda"
        and getattr(methods.get(a.method), "folds", False)
        and (a.method, a.settings) == (b.method, b.settings)
        and a.learnt == b.learnt
        and not a.settings.get("dropout")
        and "base_weights" not in {**a.train, **b.train}
        and not (a.train.get("reward") or {}).get("through")
        and all(a.train.get(key) == b.train.get(key) for key in training.COMMON)
        and training.steps_done(_checkpoint(run)) == training.steps_done(_checkpoint(other))
    )


def _attached(model, run: Run, task, base: Path) -> methods.Attachment:
    """A run's method on a fresh base, brought to its task."""
    fit_task(model, run, task, base)
    return methods.attach(model, run.point.method, run.point.settings, run.seed)


def _checkpoint(run: Run) -> Path:
    return RESULTS / ".resume" / run.train.folder.name / "checkpoint.safetensors"


def _write_trained(run: Run, attachment, result, inputs, started, facts, memory: float) -> None:
    """Write one run's adapters, history and sidecar, then delete its checkpoint."""
    import torch

    from fitspace import training

    stage = run.train
    history = stage.folder / "history.csv"
    said = {"base": stage.material["base"], "key": stage.key, "run": stage.folder.name}
    if (form := run.point.train.get("base_weights")) is not None:
        said["base_weights"] = form
    last = result.losses[-20:]
    outcome: dict[str, Any] = {"final_loss": sum(last) / len(last)}
    if result.diverged is not None:
        outcome = {"diverged": result.diverged}
        said |= outcome
        say_diverged(run, result.diverged)
    if result.folded > 1:
        outcome["folded"] = result.folded
    # The checkpoints, then the last step.
    adapters = []
    for step, parameters in [*result.kept.items(), (None, result.parameters)]:
        with torch.no_grad():
            for name, value in parameters.items():
                attachment.trainable[name].copy_(value)
        adapters.append(stage.folder / adapter_file(step))
        methods.save(attachment, adapters[-1], said)
    rows = (
        f"{step},{loss!r},{training.learning_rate(run.point.train, step)!r}"
        for step, loss in enumerate(result.losses)
    )
    write_text(history, "\n".join(["step,loss,lr", *rows]) + "\n")
    write_sidecar(
        stage,
        inputs=inputs,
        outputs=[*reversed(adapters), history],
        started=started,
        facts={
            **facts,
            **outcome,
            "examples_at_once": result.examples_at_once,
            "train_seconds": round(result.seconds, 3),
            "peak_memory_mb": memory,
        },
    )
    shutil.rmtree(_checkpoint(run).parent, ignore_errors=True)
