"""Explain a run: its sensitivity to the prompt, and what its parameters changed."""

from __future__ import annotations

import time
from typing import Any

from fitspace import bases, methods
from fitspace.core import devices
from fitspace.core.errors import UserError
from fitspace.core.files import write_json
from fitspace.core.rng import initial_noise
from fitspace.explaining.reading import NAME, TUNED, UNTOUCHED
from fitspace.plan import Run
from fitspace.stages.common import (
    fit_task,
    rehashed,
    say_diverged,
    seconds_since,
    stored,
)
from fitspace.stages.sidecars import load_sidecar, now, write_sidecar
from fitspace.study import Study


def explain(study: Study, run: Run) -> None:
    """Compare a run's model with the untouched one, by what they predict and by their parameters.

    For a run that diverged, only the reason.
    """
    from fitspace.explaining import picture

    started, clock = now(), time.monotonic()
    stage = run.explain
    if stage is None:
        raise UserError("explain: the study does not ask for it; allowed: the key explain")
    inputs, _ = rehashed(run.prepare)
    if run.train is not None:
        inputs += rehashed(run.train)[0]
    numbers, drawing = stage.folder / NAME, stage.folder / "difference.png"
    content, shown = explanation(study, run)
    write_json(numbers, content)
    if shown is None:
        say_diverged(run, content["diverged"])
        picture.blank(drawing)
    else:
        picture.draw(drawing, **shown)
    outcome = content if shown is None else {}
    write_sidecar(
        stage,
        inputs=inputs,
        outputs=[numbers, drawing],
        started=started,
        facts={"seconds": seconds_since(clock), **outcome},
    )


def explanation(study: Study, run: Run) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What :func:`explained` gives; for a run that diverged only the reason: ``{"diverged": ...}``
    and None. Writes nothing."""
    from fitspace.training.sampling import NotFinite

    facts = {} if run.train is None else load_sidecar(run.train.sidecar)["facts"]
    if "diverged" in facts:
        return {"diverged": facts["diverged"]}, None
    try:
        return explained(study, run)
    except NotFinite as error:
        if run.train is None:
            raise
        return {"diverged": str(error)}, None


def explained(study: Study, run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's explanation, and what `picture.draw` is to draw of it; writes nothing.

    Raises
    ------
    NotFinite : a prediction that is not finite.
    """
    from fitspace.data.prepared import load, read_manifest
    from fitspace.explaining import picture
    from fitspace.explaining.anatomy import anatomy, remembered
    from fitspace.explaining.attention import Attention
    from fitspace.explaining.probes import probe_of, taught_tokens
    from fitspace.explaining.sensitivity import Moved, measure
    from fitspace.training.sampling import decoded

    base = bases.resolve(study.base)
    task, process = load(run.prepare, base, run.task.scale), bases.load_process(base)
    model = bases.load_denoiser(base).to(devices.device())
    family = bases.family_of(model)
    probe = probe_of(task, family.by_class, study.explain.images)
    # The same noise for all points and seeds: only what a run was taught differs.
    shape, stream = tuple(probe.latents.shape), f"explain/{run.prepare.key}"
    noise = initial_noise(0, shape[0], shape[1:], stream)
    steps = [min(int(share * process.steps + 0.5), process.steps - 1)
             for share in study.explain.times]  # fmt: skip
    scaling, shift = bases.load_scaling(base)
    captions = read_manifest(run.prepare)["captions"]
    words, tokens = ("", [])
    if family.maps:
        words, tokens = taught_tokens(base, task, captions, probe)

    def asked(model) -> tuple[Moved, Attention]:
        attention = Attention(model, tokens, picture.MOST)
        with attention.watching():
            moved = measure(
                model,
                process,
                (probe.latents - shift) * scaling,
                noise,
                steps,
                lambda image: task.told(list(probe.rows[image])),
                picture.MOST,
                lambda _, image: attention.take(image),
            )
        return moved, attention

    fit_task(model, run, task, base)
    found, changed = {UNTOUCHED: asked(model)}, {"changes": [], "gamma": [], "rank": []}
    if run.train is None:
        found[TUNED] = found[UNTOUCHED]
    else:
        path, before = run.train.folder / "adapter.safetensors", remembered(model)
        attachment = methods.load(model, path)
        in_few_bits = stored(model, run, attachment)
        found[TUNED] = asked(model)
        if in_few_bits:  # a change is measured beside the whole weights
            model = bases.load_denoiser(base)
            fit_task(model, run, task, base)
            attachment = methods.load(model, path)
        changed = anatomy(attachment, before)
    models = (TUNED, UNTOUCHED)
    moved = {name: found[name][0] for name in models}
    looked = {name: found[name][1] for name in models if found[name][1].layers}
    content = {
        "prompt_sensitivity": moved[TUNED].mean,
        "asked": {"images": probe.images, "taught": probe.taught, "without": probe.without},
        "steps": steps,
        **{
            name: {"by_time": one.by_time, "by_image": one.by_image, "by_block": one.by_block}
            for name, one in moved.items()
        },
        "attention": {"of": words, **{n: a.shares for n, a in looked.items()}} if looked else None,
        "anatomy": changed,
    }
    vae = bases.load_vae(base).to(devices.device())
    shown = {
        "title": f"{run.explain.folder.name}\n|difference of the noise predicted for "
        f"{probe.taught} and for {probe.without}|, {probe.images}",
        "images": decoded(vae, probe.latents[: picture.MOST]),
        "steps": steps,
        "differences": {name: one.maps for name, one in moved.items()},
        "attention": {n: a.maps for n, a in looked.items()},
        "looked_for": f"attention to\n{words}",
    }
    return content, shown
