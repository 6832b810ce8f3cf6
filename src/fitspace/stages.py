"""The stages of a run: verified inputs in, artefacts and a sidecar out.

Each function does one stage of one run and is what a rule, a test and a notebook call. The
science is in the modules they call; here is only the order: read and verify, compute, write
artefacts atomically, write the sidecar last.
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from fitspace import bases, devices, methods
from fitspace.config import Study
from fitspace.design import RESULTS, Run, Stage
from fitspace.devices import device
from fitspace.errors import UserError
from fitspace.files import IMAGES, canonical, read_tensors, replacing, write_json, write_text
from fitspace.provenance import load_sidecar, now, verified, write_sidecar

SD_SCALING_FACTOR = 0.18215  # diffusers' default, for configurations older than the key


def prior(study: Study, run: Run) -> None:
    """What the untouched base draws of a class, to train on as well (2208.12242, section 3.3)."""
    import torch
    from safetensors.torch import save_file

    from fitspace import sampling
    from fitspace.data.dreambooth import class_images

    started, clock = now(), time.monotonic()
    stage = run.prior
    if stage is None:
        raise UserError(f"prior: task {run.task.name!r} is without prior preservation")
    images = class_images(bases.resolve(study.base), stage.material, device())
    path, sheet = stage.folder / "images.safetensors", stage.folder / "sheet.png"
    with replacing(path) as temporary:
        save_file({"images": torch.from_numpy(images)}, temporary)
    sampling.sheet(images, sheet)
    facts = {"images": len(images), "seconds": _seconds(clock)}
    write_sidecar(stage, inputs=[], outputs=[path, sheet], started=started, facts=facts)


def prepare(study: Study, run: Run) -> None:
    """Latents, text embeddings and manifest of the run's task."""
    from fitspace.data import dreambooth
    from fitspace.data.prepare import prepare as prepare_task
    from fitspace.data.prepare import read_manifest

    if run.task.dreambooth is not None:
        dreambooth.prepare(run.task, study.base, run.prepare, run.prior)
        return
    prepare_task(run.task, study.base, run.prepare)
    _check_prompts(study, run, read_manifest(run.prepare)["prompts"])


def reference(study: Study, run: Run) -> None:
    """Features of the task's references and prompts, computed once for all runs."""
    from safetensors.torch import save_file

    started, clock = now(), time.monotonic()
    inputs, _ = _verified(run.prepare)
    features = reference_features(study, run)
    path = run.reference.folder / "features.safetensors"
    with replacing(path) as temporary:
        save_file(features, temporary)
    facts = {"references": len(features["judge_images"]), "seconds": _seconds(clock)}
    write_sidecar(run.reference, inputs=inputs, outputs=[path], started=started, facts=facts)


def reference_features(study: Study, run: Run) -> dict[str, Any]:
    """What the prepared task's images are judged by, computed and not written: tensors by name."""
    of_subject = run.task.dreambooth is not None
    features = (_subject_features if of_subject else _held_out_features)(study, run)
    return {name: tensor.contiguous() for name, tensor in features.items()}


def _held_out_features(study: Study, run: Run) -> dict[str, Any]:
    from fitspace import metrics
    from fitspace.data.prepare import read_images, read_manifest

    manifest = read_manifest(run.prepare)
    images = read_images(run.prepare, manifest)
    captions = [manifest["captions"][row] for row in manifest["prompts"]]
    shown = images[manifest["prompt_images"]]
    return metrics.reference_features(shown, captions, captions, study.judge, study.inception)


def _subject_features(study: Study, run: Run) -> dict[str, Any]:
    """Of the subject's images, and of what the untouched base draws where runs draw its class."""
    from fitspace import metrics
    from fitspace.data import dreambooth
    from fitspace.data.prepare import load, read_images, read_manifest

    base, count = bases.resolve(study.base), study.sample.prompts
    task = load(run.prepare, base)
    subject = read_images(run.prepare, read_manifest(run.prepare))
    texts = dreambooth.repeated(run.task.dreambooth.elsewhere_by_noun, count)
    model = bases.load_denoiser(base).to(device())
    rows, noise = dreambooth.requests(task, 0, count)["class"]
    of_class = _generate(study, model, task, rows, noise, f"reference {run.task.name}")
    return metrics.subject_features(subject, texts, of_class, study.judge)


def train(
    study: Study, *runs: Run, gradient_checkpointing: bool = False, compiled: bool = False
) -> None:
    """Fit a run's trainables; resumes where an earlier attempt was killed.

    Several runs are fitted in one folded batch: see :func:`folds`. What each of them writes is its
    own. ``gradient_checkpointing`` and ``compiled``, for one run alone, are no part of a key: see
    :func:`fitspace.devices.prepare`.

    That a run diverges is an outcome like another: it is written with its losses and its last
    parameters, its sidecar says why, and no samples are drawn from it.

    Raises
    ------
    UserError : changed or missing inputs.
    """
    from fitspace import tracking, training
    from fitspace.data.prepare import load

    started, run = now(), runs[0]
    if len(runs) > 1 and (gradient_checkpointing or compiled):
        # A block computed again in the backward pass would see the first run's parameters.
        raise ValueError("gradient_checkpointing and compiled are for one run alone")
    for each in runs:
        if each.train is None:
            method = each.point.method
            raise UserError(f"train: {each.name!r} is of method {method!r}: nothing to train")
    _forget_peak()
    inputs, _ = _verified(run.prepare)
    base = bases.resolve(study.base)
    task = load(run.prepare, base, run.task.scale)
    model = bases.load_denoiser(base).to(device())
    total = _count(model.parameters())
    attachment = _attached(model, run, task)
    precision = run.point.train["precision"]
    prepared = devices.prepare(model, precision, gradient_checkpointing, compiled)

    def member(each: Run) -> training.Member:
        own = attachment.trainable
        if len(runs) > 1:  # all of the model is shared, but what is trained
            mine = attachment if each is run else _attached(bases.load_denoiser(base), each, task)
            own = training.leaves(mine.trainable, device())
        on_loss = live.enter_context(tracking.live(study, each))
        return training.Member(own, each.point.train, each.seed, _checkpoint(each), on_loss)

    with ExitStack() as live:
        results = training.fit_members(
            model,
            [member(each) for each in runs],
            task,
            bases.load_scheduler(base),
            bases.config(base, "vae").get("scaling_factor", SD_SCALING_FACTOR),
            description=f"train {run.train.folder.name}",
            dropouts=attachment.dropouts,
            folded=len(runs) > 1,
        )
    facts = {
        "trainable": _count(attachment.trainable.values()),
        "total": total,
        "trainables": {n: list(p.shape) for n, p in attachment.trainable.items()},
        **({"prepared": prepared} if prepared else {}),
    }
    memory = peak_memory_mb()
    for each, result in zip(runs, results, strict=True):
        _write_trained(each, attachment, result, inputs, started, facts, memory)


def folds(run: Run, other: Run) -> bool:
    """Whether two runs of a task are trained in one folded batch here.

    On a GPU, where a small batch leaves most of it idle; on a CPU each run's bits are those that
    it has alone. They need the same structure, the same number of steps and examples, and
    checkpoints at the same step. Dropout draws its masks for a batch, so none of that.
    """
    from fitspace import training

    a, b = run.point, other.point
    return (
        device() == "cuda"
        and getattr(methods.get(a.method), "folds", False)
        and (a.method, a.settings) == (b.method, b.settings)
        and not a.settings.get("dropout")
        and all(a.train[key] == b.train[key] for key in training.COMMON)
        and training.steps_done(_checkpoint(run)) == training.steps_done(_checkpoint(other))
    )


def _attached(model, run: Run, task) -> methods.Attachment:
    """A run's method on a fresh base, brought to its task."""
    _fit_task(model, run, task)
    return methods.attach(model, run.point.method, run.point.settings, run.seed)


def _checkpoint(run: Run) -> Path:
    return RESULTS / ".resume" / run.train.folder.name / "checkpoint.safetensors"


def _write_trained(run: Run, attachment, result, inputs, started, facts, memory: float) -> None:
    """One run's adapter, history and sidecar; its checkpoint is needed no more."""
    import torch

    from fitspace import training

    stage = run.train
    with torch.no_grad():
        for name, value in result.parameters.items():
            attachment.trainable[name].copy_(value)
    adapter, history = stage.folder / "adapter.safetensors", stage.folder / "history.csv"
    said = {"base": stage.material["base"], "key": stage.key, "run": stage.folder.name}
    last = result.losses[-20:]
    outcome: dict[str, Any] = {"final_loss": sum(last) / len(last)}
    if result.diverged is not None:
        outcome = {"diverged": result.diverged}
        said |= outcome
        _say_diverged(run, result.diverged)
    if result.folded > 1:
        outcome["folded"] = result.folded
    methods.save(attachment, adapter, said)
    rows = (
        f"{step},{loss!r},{training.learning_rate(run.point.train, step)!r}"
        for step, loss in enumerate(result.losses)
    )
    write_text(history, "\n".join(["step,loss,lr", *rows]) + "\n")
    write_sidecar(
        stage,
        inputs=inputs,
        outputs=[adapter, history],
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


def sample(study: Study, run: Run) -> None:
    """Images of the first held-out captions, from the run's adapter or the untouched base.

    Of a DreamBooth task, as many of the subject, of the subject elsewhere and of its class. Of a
    run that diverged there are none.
    """
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from fitspace import sampling
    from fitspace.data.prepare import load

    started = now()
    stage, settings = run.sample, study.sample
    inputs, _ = _verified(run.prepare)
    base = bases.resolve(study.base)
    model = bases.load_denoiser(base).to(device())
    cost = diverged = None
    if run.train is not None:
        files, cost = _verified(run.train)
        inputs += files
        cost.pop("trainables", None)  # a long list, which nobody reads further on
        diverged = cost.get("diverged")
    task = load(run.prepare, base, run.task.scale)
    if not task.roles:
        _check_prompts(study, run, task.prompts)
    clock = time.monotonic()
    side = bases.image_size(base) * run.task.scale
    images = np.zeros((0, side, side, 3), np.uint8)
    if diverged is None:
        try:
            images = _draw(study, run, model, task)
        except sampling.NotFinite as error:
            if run.train is None:
                raise
            diverged = str(error)
    seconds = _seconds(clock)
    outcome = {} if diverged is None else {"diverged": diverged}
    if outcome:
        _say_diverged(run, diverged)
    samples, sheet = stage.folder / "samples.safetensors", stage.folder / "sheet.png"
    with replacing(samples) as temporary:
        # One metadata key: safetensors writes several in an order that varies.
        facts = canonical({"key": stage.key, "settings": settings.model_dump()})
        save_file({"images": torch.from_numpy(images)}, temporary, metadata={"fitspace": facts})
    sampling.sheet(images, sheet)
    write_sidecar(
        stage,
        inputs=inputs,
        outputs=[samples, sheet],
        started=started,
        facts={"images": len(images), "sample_seconds": seconds, "train": cost, **outcome},
    )


def _draw(study: Study, run: Run, model, task) -> Any:
    """A run's images, uint8 (n, h, w, 3); all roles of a DreamBooth task one after another."""
    import numpy as np

    from fitspace import sampling
    from fitspace.data import dreambooth

    if run.train is not None:
        methods.load(model, run.train.folder / "adapter.safetensors")
    else:
        _fit_task(model, run, task)
    count = study.sample.prompts
    if task.roles:
        requests = [*dreambooth.requests(task, run.seed, count).values()]
    else:
        noise = sampling.initial_noise(run.seed, count, tuple(task.mean.shape[1:]))
        requests = [(task.prompts[:count], noise)]
    name = f"sample {run.sample.folder.name}"
    return np.concatenate([_generate(study, model, task, *request, name) for request in requests])


def evaluate(study: Study, run: Run) -> None:
    """All metrics of one run's samples against the task's reference features."""
    from fitspace import metrics

    started, clock = now(), time.monotonic()
    inputs, cost = _verified(run.sample)
    inputs += _verified(run.reference)[0]
    of_subject = run.task.dreambooth is not None
    path = run.reference.folder / "features.safetensors"
    features = metrics.read_features(path, of_subject, study.inception is not None)
    values = measure(study, run, features)
    path = run.evaluate.folder / "metrics.json"
    write_json(path, values)
    # What the run cost travels with its metrics: a table needs no upstream file.
    write_sidecar(
        run.evaluate,
        inputs=inputs,
        outputs=[path],
        started=started,
        facts={"seconds": _seconds(clock), "sample": cost},
    )


def measure(study: Study, run: Run, features: dict[str, Any]) -> dict[str, Any]:
    """All metrics of one run's samples against reference features, computed and not written.

    Of a run that diverged there are none, only why: ``{"diverged": ...}``.
    """
    from fitspace import metrics

    facts = load_sidecar(run.sample.sidecar)["facts"]
    if "diverged" in facts:
        return {"diverged": facts["diverged"]}
    if run.task.dreambooth is not None:
        return metrics.evaluate_subject(drawn(study, run), features, study.judge)
    return metrics.evaluate(drawn(study, run), features, study.judge, study.inception)


def drawn(study: Study, run: Run) -> Any:
    """The images of a finished sample stage, uint8 (n, h, h, 3); of a DreamBooth task, role by
    role. Raises UserError for a file that has not as many."""
    count = study.sample.prompts * (1 if run.task.dreambooth is None else 3)
    path = run.sample.folder / "samples.safetensors"
    return read_tensors(path, IMAGES, "np", n=count)["images"]


STAGES = {f.__name__: f for f in (prior, prepare, reference, train, sample, evaluate)}


def peak_memory_mb() -> float:
    """Largest memory of this process [MiB] since the run began: the GPU's where there is one."""
    import resource

    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next((int(s.split()[1]) for s in lines if s.startswith("VmHWM:")), peak)
    return round(peak / 1024, 1)


def _forget_peak() -> None:
    """Let the peak begin anew: what an earlier run of this process took is not this one's."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # on Linux (proc_pid_clear_refs(5)); elsewhere the process's own
        Path("/proc/self/clear_refs").write_text("5")


def _generate(study: Study, model, task, rows: list[int], noise, description: str):
    """Sample with the study's settings: one image for each row of ``task.conditions``."""
    from fitspace import sampling

    base = bases.resolve(study.base)
    return sampling.generate(
        model,
        bases.load_vae(base).to(device()),
        bases.config(base, "scheduler"),
        task.conditions[rows],
        task.conditions[:1],
        noise,
        study.sample.steps,
        study.sample.guidance,
        description=description,
    )


def _fit_task(model, run: Run, task) -> None:
    """Bring the base to the task's size, and give it the task's own classes, where it has any.

    Raises UserError when the run does not train them.
    """
    if run.task.scale != 1:
        bases.at_scale(model, run.task.scale)
    if task.own_classes is None:
        return
    if not (run.point.method == "full" or run.point.settings.get("class_embedding")):
        raise UserError(
            f"{run.name}: task {run.task.name!r} has classes that the base does not know, and "
            f"method {run.point.method!r} does not train their embeddings; allowed: a method "
            "that trains them (class_embedding: true)"
        )
    bases.new_classes(model, task.own_classes, run.seed)


def _check_prompts(study: Study, run: Run, prompts: list[int]) -> None:
    if study.sample.prompts > len(prompts):
        allowed = f"4 to {len(prompts)}" if len(prompts) >= 4 else "a task with 4 or more"
        raise UserError(
            f"sample.prompts: {study.sample.prompts}: task {run.task.name!r} has only "
            f"{len(prompts)} held-out images (one of each group counts); allowed: {allowed}"
        )


def _verified(stage: Stage) -> tuple[list[Path], dict[str, Any]]:
    """A stage's files and the facts of its sidecar, rehashed once."""
    sidecar = verified(stage)
    files = [stage.sidecar, *(stage.folder / Path(o["path"]).name for o in sidecar["outputs"])]
    return files, sidecar["facts"]


def _say_diverged(run: Run, why: str) -> None:
    print(f"fitspace: {run.name} diverged: {why}", file=sys.stderr)


def _count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def _seconds(clock: float) -> float:
    return round(time.monotonic() - clock, 3)
