"""How a study was made, as a paragraph for a paper, with the works that it cites."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fitspace.metrics import METRICS
from fitspace.report import words
from fitspace.report.inputs import Inputs
from fitspace.report.results import Results
from fitspace.report.tex import escaped
from fitspace.study import Arm, DreamBooth, Study

# Method -> keys of references.bib.
METHODS = {
    "adapter": ("xiang2023adapters",),
    "adaptformer": ("chen2022adaptformer",),
    "bitfit": ("zaken2021bitfit",),
    "custom_diffusion": ("kumari2022customdiffusion",),
    "difffit": ("xie2023difffit",),
    "full": (),
    "none": (),
    "ia3": ("liu2022ia3", "peft"),
    "loha": ("hyeonwoo2021fedpara", "peft"),
    "lokr": ("edalati2022krona", "peft"),
    "lora": ("hu2021lora", "peft"),
    "oft": ("qiu2023oft", "peft"),
    "peft": ("peft",),
    "svdiff": ("han2023svdiff",),
    "vpt": ("jia2022vpt",),
}
# Control -> how it tells of a given image, and the key of what it comes from.
CONTROLS = {
    "controlnet": ("a ControlNet", "zhang2023controlnet"),
    "concat": ("input channels of its own", "brooks2022instructpix2pix"),
    "img2img": ("sampling that starts from it", "meng2021sdedit"),
}
# Beginning of a metric's name -> keys.
_BEGINNINGS = {
    "fid": ("heusel2017fid",),
    "fd_": ("heusel2017fid",),
    "kid_": ("binkowski2018kid",),
    "clip_": ("radford2021clip",),
    "precision": ("kynkaanniemi2019precision",),
    "recall": ("kynkaanniemi2019precision",),
    "density_": ("naeem2020coverage",),
    "coverage_": ("naeem2020coverage",),
    "prompt_sensitivity": ("xiang2023adapters",),
    "pickscore": ("kirstain2023pickscore",),
    "hpsv2": ("wu2023hpsv2",),
    "imagereward": ("xu2023imagereward",),
    "dreamsim": ("fu2023dreamsim",),
    "cmmd": ("jayasumana2023cmmd",),
    "perceptual_": ("zhang2018lpips",),
    "ssim": ("wang2004ssim",),
    "vendi_": ("friedman2022vendi",),
}
_EXTRACTORS = {"effnet": ("tan2019efficientnet",), "dinov2": ("oquab2023dinov2",),
               "dreamsim": ("fu2023dreamsim",),
               "judge": ("radford2021clip",)}  # fmt: skip
Cite = Callable[..., str]
FORMS = {"latex": "tex", "typst": "typ", "csv": "md"}
_ENTRY = re.compile(r"^@\w+\{([^,]+),.*?^\}\n", re.M | re.S)


@dataclass(frozen=True)
class Paragraph:
    """A text, and the keys of the works that it cites, in their order."""

    text: str
    cited: list[str]


def of_metric(name: str) -> tuple[str, ...]:
    """Keys of the works that a metric and its extractor come from."""
    own = next((keys for start, keys in _BEGINNINGS.items() if name.startswith(start)), ())
    return tuple(dict.fromkeys((*own, *_EXTRACTORS.get(METRICS[name].extractor, ()))))


def _of_arm(arm: Arm) -> tuple[str, ...]:
    dora = ("liu2024dora",) if arm.settings.get("dora") else ()
    return (*METHODS[arm.method], *dora)


def bibliography(cited: Iterable[str]) -> str:
    """The entries of these keys, as BibTeX."""
    text = (Path(__file__).parent / "templates" / "references.bib").read_text(encoding="utf-8")
    entries = {found[1]: found[0] for found in _ENTRY.finditer(text)}
    return "".join(entries[key] for key in cited)


def of(given: Inputs, found: Results, form: str) -> Paragraph:
    """The paragraph: ``latex`` with natbib's citations, ``typst``, ``csv``, where it is Markdown
    with pandoc's citations, or ``plain`` without any."""
    cited: dict[str, None] = {}

    def cite(*keys: str) -> str:
        cited.update(dict.fromkeys(keys))
        if not keys or form == "plain":
            return ""
        if form == "latex":
            return f" \0\\citep{{{','.join(keys)}}}\0"
        marks = [f"@{key}" for key in keys]
        return f" {''.join(marks)}" if form == "typst" else f" [{'; '.join(marks)}]"

    text = " ".join(_sentences(given, found, cite))
    if form == "latex":  # citations are commands, the rest is text
        parts = text.split("\0")
        text = "".join(part if i % 2 else escaped(part) for i, part in enumerate(parts))
    return Paragraph(text + "\n", list(cited))


def _sentences(given: Inputs, found: Results, cite: Cite) -> list[str]:
    study, runs = found.study, found.runs
    train, sample = study.train, study.sample
    named = [f"{arm.title}{cite(*_of_arm(arm))}" for arm in study.arms]
    points = words.plural(runs["point"].nunique(), "point")
    every = [
        f"We compared {points} ({words.listed(named)}) on {words.plural(len(study.tasks), 'task')} "
        f"({words.listed(task.name for task in study.tasks)}) with "
        f"{words.plural(len(study.seeds), 'seed')} each, {len(runs):,} runs in all, starting from "
        f"the base {study.base}.",
        (
            "Each point but the untouched base"
            if any(arm.method == "none" for arm in study.arms)
            else "Each point"
        )
        + f" was trained for {train.steps:,} steps of {train.batch_size} examples with "
        f"AdamW{cite('loshchilov2017adamw')} at a {train.lr_schedule} learning rate"
        + _rate(found)
        + (f" and min-SNR weights{cite('hang2023minsnr')}" if train.min_snr_gamma else "")
        + (
            f"; samples are of a moving average of what is trained (decay {train.ema:g})"
            if train.ema
            else ""
        )
        + ".",
        "Order, noise and time steps of a seed were the same for all points.",
        f"Images were drawn by {sample.steps} steps of DPM-Solver++{cite('lu2022dpmsolverpp')} "
        + (
            f"with a guidance scale{cite('ho2022guidance')} of {sample.guidance:g}"
            if sample.guidance
            else "without a caption"
        )
        + _drawn(found)
        + _counts(found)
        + ".",
    ]
    if taught := _taught(study):
        held = words.listed((f"{n:,}" for n in sorted({t.class_images for t in taught})), "or")
        every.append(
            f"Subjects were taught a word as in DreamBooth{cite('ruiz2022dreambooth')}; where "
            "prior preservation has a weight, a step has as many images of the class, drawn by the "
            f"base before ({held} for each task)."
        )
    controls = {control for arm in study.arms for control in arm.controls}
    if told := [f"{how}{cite(key)}" for name, (how, key) in CONTROLS.items() if name in controls]:
        every.append(
            f"Each task gives an image beside the caption, which arms tell by {words.listed(told)}."
        )
    responses = [f"{words.named(name)}{cite(*of_metric(name))}" for name in found.responses]
    primary, others = responses[0], responses[1:]
    every.append(
        f"The primary response was {primary}"
        + (f"; {words.listed(others)} were secondary" if others else "")
        + "."
    )
    blocks = found.analysis.blocks.common
    every.append(
        f"We analysed them by a {found.test} analysis of variance of {words.listed(found.factors)}"
        + (f" with {words.listed(blocks)} as blocks" if blocks else "")
        + (
            f"; without an error estimate, contrasts are held against Lenth's margin of error"
            f"{cite('lenth1989')}."
            if len(found.rows("contrasts.csv"))
            else f"; p values are adjusted by Holm{cite('holm1979')}, and a claim rests on the "
            "larger of two p values, one with a common variance and one with each run's own."
        )
    )
    if study.analysis.margins:
        every.append(
            f"Non-inferiority to full fine-tuning was tested{cite('dunnett1955')} with margins "
            "declared in the study file."
        )
    made = words.listed(given.made) or "an unrecorded version of fitspace"
    every.append(f"Runs were made by {made}; models are those of diffusers{cite('diffusers')}.")
    return every


def _taught(study: Study) -> list[DreamBooth]:
    """How its tasks teach subjects; empty if they teach none."""
    return [task.dreambooth for task in study.tasks if task.dreambooth]


def _counts(found: Results) -> str:
    """How many samples a run has, and against how many images they are held."""
    said = {"n": "samples", "m": "reference images"}
    if _taught(found.study):
        del said["n"]  # their samples are of three kinds
    known = [(name, found.runs[name].dropna().astype(int)) for name in said if name in found.runs]
    parts = [
        f"{' or '.join(f'{n:,}' for n in sorted(set(of)))} {said[name]}"
        for name, of in known
        if len(of)
    ]
    return f": {words.listed(parts)} a run" if parts else ""


def _rate(found: Results) -> str:
    study, tuning = found.study, found.study.tuning
    trained = [arm for arm in study.arms if arm.method != "none"]
    rates = {
        arm.title: _rates_of(arm.factors.get("train.lr") or [arm.train.get("lr")])
        for arm in trained
    }
    common, own = f"{study.train.lr:g}", {}
    if len(set(rates.values())) == 1:
        (common,) = {rate or common for rate in rates.values()}
    else:
        own = {arm: rate for arm, rate in rates.items() if rate}
    others = words.listed(f"{rate} for {arm}" for arm, rate in own.items())
    rate = f" of {common}" + (f" ({others})" if own else "")
    if tuning is None:
        return rate
    levels = words.listed(
        f"{name} {words.listed(map(str, of), 'or')}" for name, of in tuning.factors.items()
    )
    return (
        ("," if "train.lr" in tuning.factors else f"{rate} and at settings")
        + f" chosen for each point among {levels} by {words.named(tuning.response)} on "
        f"{'another task' if len(tuning.tasks) == 1 else 'other tasks'} "
        f"({words.listed(task.name for task in tuning.tasks)})"
    )


def _rates_of(rates: list[float | None]) -> str:
    """An arm's own learning rates; nothing if it has the study's."""
    return words.listed((f"{rate:g}" for rate in rates if rate is not None), "or")


def _drawn(found: Results) -> str:
    sample = found.study.sample
    if _taught(found.study):
        return f", {sample.prompts} each of the subject, of it elsewhere and of its class"
    each = f", {sample.images_per_prompt} for each" if sample.images_per_prompt > 1 else ""
    return f", for {sample.prompts} held-out captions{each}"
