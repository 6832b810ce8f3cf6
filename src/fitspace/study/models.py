"""Strict models of a study file: what a user may write, key by key.

A study names a base, tasks, arms (a method with fixed settings and crossed factors), seeds
and the settings of each stage. ``params/README.md`` explains every key to a user; the JSON
Schema in ``workflow/schemas`` is generated from these models.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from fitspace.core import hub
from fitspace.core.reading import (
    Sha256,
    short,
)
from fitspace.core.texts import PARTS, share
from fitspace.metrics.extractors import NAMED
from fitspace.metrics.table import METRICS, asked, beside_untouched, measured, weights_for

LONGEST = 40  # characters of a name
Name = Annotated[str, Field(pattern=rf"^[a-z0-9][a-z0-9_-]{{0,{LONGEST - 1}}}$")]


def _scalar(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"{short(value)} is not a single value; allowed: text, number, bool")
    return value


Level = Annotated[
    Any,
    AfterValidator(_scalar),
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
]
# Snakemake, shells and people all have to live with these paths.
PathText = Annotated[str, Field(min_length=1, max_length=400, pattern=r"^[^\x00-\x1f]+$")]
ColumnName = Annotated[str, Field(min_length=1, max_length=200)]
HubId = Annotated[str, Field(max_length=200, pattern=f"^{hub.PATTERN}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _InKeys(_Strict):
    """Settings that are part of a key: one that is in ``LATER`` only where it is not its default,
    so that the keys of studies that do not use it stay as they were."""

    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unused = [name for name in self.LATER if getattr(self, name) == fields[name].default]
        return {name: value for name, value in handler(self).items() if name not in unused}


def _template(text: str) -> str:
    if text.count("{}") != 1:
        raise ValueError(f"{short(text)} holds {{}} {text.count('{}')} times; allowed: once")
    return text


ALL_BLOCKS = "all"

Phrase = Annotated[str, Field(max_length=200, pattern=r"^[^\s](?:[^\x00-\x1f]*[^\s])?$")]
Template = Annotated[Phrase, AfterValidator(_template)]


class DreamBooth(_InKeys):
    """One subject, taught from a few images under a rare word (2208.12242)."""

    LATER = ("sample_template",)

    noun: Phrase = Field(description="The class that the subject belongs to, such as `dog`.")
    prompts: list[Template] = Field(
        min_length=1, description="Prompts that put the subject, `{}`, elsewhere: `{} in snow`."
    )
    token: Phrase = Field("sks", description="The rare word that is to name the subject.")
    template: Template = Field(
        "photo of a {}", description="What the images trained on show, the class images too."
    )
    sample_template: Template | None = Field(
        None,
        description="What samples of the subject and of its class are asked for by; null: by the "
        "template.",
    )
    prior_weight: float = Field(
        1.0, ge=0, le=1000, description="Weight of prior preservation; 0: none, no class images."
    )
    class_images: int = Field(
        200, ge=1, le=100_000, description="Images of the class that the base draws to train on."
    )
    class_guidance: float = Field(3.0, ge=1, description="Guidance scale of the class images.")

    @property
    def taught(self) -> dict[str, str]:
        """Captions trained on: of the subject's images, and of those of its class."""
        subject = f"{self.token} {self.noun}"
        names = {"subject": subject, "class": self.noun}
        return {role: self.template.replace("{}", name) for role, name in names.items()}

    @property
    def asked(self) -> dict[str, list[str]]:
        """Prompts of samples by role: the subject, the subject elsewhere, its class."""
        subject = f"{self.token} {self.noun}"
        template = self.sample_template or self.template
        return {
            "subject": [template.replace("{}", subject)],
            "elsewhere": [prompt.replace("{}", subject) for prompt in self.prompts],
            "class": [template.replace("{}", self.noun)],
        }

    @property
    def elsewhere_by_noun(self) -> list[str]:
        """The prompts elsewhere without the rare word, for a judge that never learnt it."""
        return [prompt.replace("{}", self.noun) for prompt in self.prompts]


CONTROLS = ("controlnet", "concat", "img2img")
LEARNT = ("controlnet", "concat")  # the controls that add parameters to the denoiser
Control = Literal[*CONTROLS]
Style = Literal["full", "line", "flat", "blueprint", "night", "sepia", "pixel", "invert"]


class Degradation(NamedTuple):
    """What a degradation takes away: its ``amount``, in words and in numbers."""

    amount: str
    default: float
    low: float
    high: float


# None depends on how many pixels an image has.
DEGRADATIONS = {
    "downscale": Degradation("by how much its side is divided", 4.0, 2.0, 64.0),
    "blur": Degradation("standard deviation, as a share of the side", 0.03, 0.001, 0.5),
    "noise": Degradation("standard deviation, as a share of white", 0.2, 0.01, 2.0),
    "jpeg": Degradation("quality", 10.0, 1.0, 95.0),
    "mask": Degradation("share of the area that is hidden", 0.25, 0.01, 0.9),
}
Degraded = Literal[*DEGRADATIONS]


class Given(_Strict):
    """The image that is given beside the caption: of a style, of a folder, or degraded."""

    style: Style | None = Field(
        None, description="The same drawing in this style; only with `source: openmoji`."
    )
    path: PathText | None = Field(
        None,
        description="Folder with the images of the same names, whatever their endings; only with "
        "`source: folder`.",
    )
    degraded: Degraded | None = Field(None, description="What is done to the image itself.")
    amount: float | None = Field(
        None,
        description="How much of it: "
        + "; ".join(f"`{k}`: {d.amount} ({d.default:g})" for k, d in DEGRADATIONS.items())
        + ".",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Given:
        kinds = [k for k in ("style", "path", "degraded") if getattr(self, k) is not None]
        if len(kinds) != 1:
            found = ", ".join(kinds) or "none"
            raise ValueError(f"{found}; needed: one of style, path, degraded")
        if self.amount is not None and self.degraded is None:
            raise ValueError(f"amount: {self.amount:g}: only with degraded")
        if self.amount is not None:
            kind = DEGRADATIONS[self.degraded]
            if not kind.low <= self.amount <= kind.high:
                raise ValueError(
                    f"amount: {self.amount:g}; allowed with {self.degraded}: {kind.low:g} to "
                    f"{kind.high:g}, {kind.amount}"
                )
            if self.degraded == "jpeg" and self.amount != int(self.amount):
                raise ValueError(f"amount: {self.amount:g}; allowed with jpeg: a whole number")
        return self

    @property
    def much(self) -> float:
        """The degradation's amount, its own or the default."""
        return DEGRADATIONS[self.degraded].default if self.amount is None else self.amount


class Task(_InKeys):
    """One target domain: a style of the embedded OpenMoji set, a folder, or a hub data set.

    Or, with ``dreambooth``, one subject: a figure of OpenMoji, a folder with its images, or a
    folder of a hub data set.
    """

    LATER = ("fit", "resample", "flip", "given")

    name: Name = Field(description="Short name, part of result paths.")
    source: Literal["openmoji", "folder", "hub"] = Field(description="Where the images come from.")
    style: Style | None = Field(None, description="The visual style; only with `source: openmoji`.")
    path: PathText | None = Field(
        None,
        description="Image folder with metadata.jsonl or .csv, or with one subject's images; only "
        "with `source: folder`.",
    )
    dataset: HubId | None = Field(
        None, description="Hub id of a data set, org/name[@revision]; only with `source: hub`."
    )
    folder: PathText | None = Field(
        None, description="The data set's folder to read; only with `source: hub`; null: all."
    )
    image_column: ColumnName | None = Field(
        None, description="Which image of a Parquet data set to read, where it has several."
    )
    caption_column: ColumnName | None = Field(
        None, description="Which column of a Parquet data set tells what an image shows."
    )
    fit: Literal["crop", "squash"] = Field(
        "crop",
        description="How an image that is no square becomes one: its central square, or its sides "
        "pressed together; only with `source: folder` or `hub`.",
    )
    resample: Literal["lanczos", "bicubic"] = Field(
        "lanczos",
        description="Filter that brings images to the base's size, antialiased; only with "
        "`source: folder` or `hub`.",
    )
    flip: float = Field(
        0.0, ge=0, le=1, description="Probability that an image is mirrored when it is trained on."
    )
    scale: int = Field(
        1,
        ge=1,
        le=4,
        description="Side of the images as a multiple of the base's own; DiT bases only.",
    )
    dreambooth: DreamBooth | None = Field(
        None, description="Teaches one subject instead: all images are of it, none is held out."
    )
    subject: Phrase | None = Field(
        None,
        description="A figure, whose skin tones are the images, by its name; only with "
        "`source: openmoji` and `dreambooth`.",
    )
    given: Given | None = Field(
        None,
        description="The image that is given beside the caption; an arm's `control` says how the "
        "denoiser is told of it.",
    )

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Task:
        needed = {"openmoji": "style", "folder": "path", "hub": "dataset"}
        wrong = []
        for source, key in needed.items():
            if (getattr(self, key) is not None) != (self.source == source):
                verb = "needs" if self.source == source else "does not take"
                wrong.append(f"source: {self.source} {verb} the key {key!r}")
        if self.source != "hub":
            wrong += [
                f"source: {self.source} does not take the key {key!r}"
                for key in ("folder", "image_column", "caption_column")
                if getattr(self, key) is not None
            ]
        if self.source == "openmoji":
            wrong += [
                f"source: openmoji does not take the key {key!r}: its drawings are made as squares"
                for key in ("fit", "resample")
                if getattr(self, key) != Task.model_fields[key].default
            ]
        if self.folder is not None:
            inside = PurePosixPath(self.folder)
            if inside.is_absolute() or ".." in inside.parts or str(inside) != self.folder:
                wrong.append(f"folder: {self.folder!r}; allowed: a plain path inside the data set")
        figure = self.dreambooth is not None and self.source == "openmoji"
        if (self.subject is not None) != figure:
            wrong.append(
                "subject: missing; a figure of OpenMoji, for dreambooth"
                if figure
                else f"subject: {self.subject!r} is only for source: openmoji with dreambooth"
            )
        if self.given is not None:
            wrong += self._given_wrongly(self.given)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _given_wrongly(self, given: Given) -> list[str]:
        wrong = [
            f"given.{key}: source: {self.source} does not take it; allowed with source: {source}"
            for key, source in (("style", "openmoji"), ("path", "folder"))
            if getattr(given, key) is not None and self.source != source
        ]
        if given.style is not None and given.style == self.style:
            wrong.append(f"given.style: {given.style!r} is the task's own style; allowed: another")
        if self.dreambooth is not None:
            wrong.append(
                "given: not with dreambooth, whose prompts put the subject where no image shows it"
            )
        return wrong


class Reward(_InKeys):
    """A likeness that training raises beside its objective, by a model that does not evaluate."""

    LATER = ("through", "steps", "guidance")

    model: PathText = Field(
        description="The rewarding open_clip model, as `judge` has it. The judge, and what else "
        "evaluates the study, may not reward."
    )
    weight: float = Field(
        gt=0, le=1e6, description="Factor on the cosine that is taken from the loss."
    )
    against: Literal["caption", "target"] = Field(
        "caption",
        description="Whose embedding the decoded estimate of the clean image is to be near: the "
        "caption's, or the decoded training image's.",
    )
    below: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Time steps below this share of the base's are rewarded: at later ones an "
        "estimate in one step shows little. Only with `through: 0`.",
    )
    through: int = Field(
        0,
        ge=0,
        le=1000,
        description="Images are drawn from noise and rewarded, and gradients go through so many of "
        "the solver's last steps (DRaFT-K, 2309.17400); 0: the one-step estimate is rewarded.",
    )
    steps: int = Field(
        10, ge=1, le=1000, description="Solver steps of the images that are drawn for `through`."
    )
    guidance: float = Field(
        1.0, ge=1, description="Guidance scale of the images that are drawn for `through`."
    )

    @property
    def resolved(self) -> dict[str, Any]:
        """The settings as a dict, what has no effect at its default."""
        unused = ("below",) if self.through else ("steps", "guidance")
        fields = type(self).model_fields
        return self.model_copy(update={n: fields[n].default for n in unused}).model_dump()


# Factors: settings of the reward. Level 0 of the weight is a training without it.
REWARD_WEIGHT, REWARD_THROUGH = "train.reward.weight", "train.reward.through"
REWARD_FACTORS = {REWARD_WEIGHT: "weight", REWARD_THROUGH: "through"}


WHOLE = "whole"  # the level of `train.base_weights` that stores nothing in fewer bits
BASE_WEIGHTS = (WHOLE, "int8", "nf4")
# Where the patches of images larger than the base's are.
INTERPOLATED, EXTRAPOLATED = "interpolated", "extrapolated"


class TrainSettings(_InKeys):
    """How one adapter is trained. Everything here is part of the run's key."""

    LATER = (
        "base_weights", "checkpoints", "density", "examples_at_once", "given_dropout", "positions",
        "prior_weight", "reward",
    )  # fmt: skip

    steps: int = Field(ge=1, le=10_000_000, description="Optimizer steps.")
    batch_size: int = Field(ge=1, le=65_536, description="Examples per step.")
    examples_at_once: int | None = Field(
        None,
        ge=1,
        description="Examples of a step that are computed at once; their gradients are added up. "
        "The result is the same up to rounding, and takes less memory; null: all.",
    )
    lr: float = Field(gt=0, le=10, description="AdamW learning rate.")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="After warm-up: constant, or half a cosine down to zero."
    )
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up from zero.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW weight decay.")
    grad_clip: float | None = Field(
        1.0, gt=0, description="Largest gradient norm; null leaves gradients alone."
    )
    ema: float | None = Field(
        None, ge=0, lt=1, description="Decay of the moving average of the trainables; null: none."
    )
    caption_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of captions replaced by the empty one."
    )
    given_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of given images replaced by none; only with `control: concat`, for "
        "`sample.given_guidance`.",
    )
    prior_weight: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="Weight of prior preservation on DreamBooth tasks; 0: without class images; "
        "null: the task's own, `dreambooth.prior_weight`.",
    )
    positions: Literal[INTERPOLATED, EXTRAPOLATED] = Field(
        INTERPOLATED,
        description="Where the patches of images larger than the base's are, on tasks with `scale` "
        "above 1: among the positions that the base knows, (i/scale, j/scale) (2304.06648), or "
        "`extrapolated`, (i, j). In training and in what is then sampled.",
    )
    min_snr_gamma: float | None = Field(
        None, gt=0, description="Min-SNR loss weighting (2303.09556); null weighs steps equally."
    )
    density: Literal["uniform", "logit_normal", "mode"] | None = Field(
        None,
        description="Density of the time steps with a base of flow matching (2403.03206, section "
        "3.1); null: logit_normal. Diffusion draws uniform ones.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Of the forward pass; trainables stay in fp32."
    )
    base_weights: Literal[*BASE_WEIGHTS] = Field(
        WHOLE,
        description="How the base's frozen linear layers are stored, in training and in what is "
        "then sampled: `whole`, in 8 bits (`int8`) or in 4 (`nf4`); the latter two by bitsandbytes "
        "(`pip install 'fitspace[quantized]'`).",
    )
    checkpoints: list[Annotated[int, Field(ge=1)]] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Steps after which the trainables are sampled too, beside the last: the levels "
        "of the factor `checkpoint`, all from one training.",
    )
    reward: Reward | None = Field(
        None, description="A likeness that the training raises too; null: the objective alone."
    )

    @field_validator("checkpoints")
    @classmethod
    def _in_order(cls, steps: list[int] | None) -> list[int] | None:
        if steps is not None and any(b <= a for a, b in itertools.pairwise(steps)):
            raise ValueError(f"{steps}; allowed: each step once, in order")
        return steps

    @property
    def stops(self) -> list[int]:
        """The steps after which the trainables are sampled; empty without ``checkpoints``."""
        if self.checkpoints is None:
            return []
        return [*(step for step in self.checkpoints if step < self.steps), self.steps]


class SampleSettings(_InKeys):
    """How images are generated. Everything here is part of the sample key."""

    LATER = (
        "images_per_prompt", "validation", "strength", "blocks", "given_guidance", "noised",
    )  # fmt: skip

    prompts: int = Field(
        ge=4,
        le=1_000_000,
        description="Held-out captions to sample; with dreambooth images of each "
        "kind: the subject, the subject elsewhere, its class.",
    )
    steps: int = Field(
        20, ge=1, le=1000, description="Solver steps: of DPM-Solver++, of Euler for flow matching."
    )
    guidance: float = Field(
        3.0,
        ge=0,
        description="Guidance scale, 1 and more; 1 turns guidance off. 0: the denoiser is told the "
        "empty caption instead, so that only a given image says what to draw.",
    )
    images_per_prompt: int = Field(
        1,
        ge=1,
        le=10_000,
        description="Images of each held-out caption, each from noise of its own.",
    )
    validation: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Held-out captions, none of those of `prompts`, by whose images the best of "
        "`train.checkpoints` is chosen.",
    )
    strength: float = Field(
        1.0, ge=0, le=10, description="Factor on what the method adds to the base; 0: the base."
    )
    blocks: str = Field(
        ALL_BLOCKS,
        max_length=200,
        pattern=rf"^{PARTS}$",
        description="The parts of the denoiser in which the method is at work: beginnings of its "
        "modules' names, joined by `+`, with a range of numbers if need be, as in "
        "`down_blocks+mid_block` or `transformer_blocks.0-2`; or `all`.",
    )
    given_guidance: float = Field(
        1.0,
        ge=1,
        le=100,
        description="Guidance scale of the given image, of arms with `control: concat`; 1 turns "
        "it off.",
    )
    noised: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Share of the steps that the given image is noised by and denoised again, of "
        "arms with `control: img2img`; 1: it starts from noise.",
    )

    @field_validator("guidance")
    @classmethod
    def _told_or_not(cls, scale: float) -> float:
        if 0 < scale < 1:
            raise ValueError(f"{scale:g}; allowed: 0, or 1 and more")
        return scale

    @field_validator("validation")
    @classmethod
    def _enough(cls, captions: int) -> int:
        if 0 < captions < 4:
            raise ValueError(f"{captions}; allowed: 0, or 4 and more, which recall needs")
        return captions

    @property
    def captions(self) -> int:
        """How many held-out captions a task needs: those reported, and those of validation."""
        return self.prompts + self.validation

    def of(self, control: str | None) -> dict[str, Any]:
        """How images of a point with this control are drawn: without what has no meaning there."""
        own = {name: getattr(self, name) for name, of in OF_CONTROL.items() if of == control}
        others = {name: v for name, v in self.model_dump().items() if name not in OF_CONTROL}
        return others | own


# Setting of `sample` -> the control without which it has no meaning.
OF_CONTROL = {"given_guidance": "concat", "noised": "img2img"}
# Factor that varies within a training -> the setting of `sample` whose levels it has.
DRAWN = {
    f"sample.{name}": name for name in ("guidance", "steps", "strength", "blocks", *OF_CONTROL)
}
CONTROL = "control"  # the factor whose levels are `CONTROLS`
BUDGET = "match_trainable"  # the factor whose levels are budgets
OF_ARM = (BUDGET, CONTROL)  # the factors that are an arm's own keys too
CHECKPOINT = "checkpoint"  # the factor whose levels are `train.checkpoints`
TUNING = "-tuning"  # ends the name of the study that a study's tuning is


def _apart(values: list[float]) -> list[float]:
    if twice := [value for value, times in Counter(values).items() if times > 1]:
        raise ValueError(f"{twice[0]:g} stands more than once; each must be unique")
    return values


class Explain(_Strict):
    """How runs are explained. Everything here is part of the explanation's key."""

    times: Annotated[list[Annotated[float, Field(ge=0, le=1)]], AfterValidator(_apart)] = Field(
        [0.1, 0.3, 0.5, 0.7, 0.9],
        min_length=1,
        max_length=50,
        description="Time steps at which images are noised, as shares of the base's: 0.1 is step "
        "100 of 1000.",
    )
    images: int = Field(
        8, ge=1, le=10_000, description="Held-out images that are noised; all, if there are fewer."
    )


class Tuning(_Strict):
    """Settings that are chosen for each point by runs on other tasks, before the study's own."""

    tasks: list[Task] = Field(
        min_length=1, max_length=100, description="What they are tried on: no task of the study."
    )
    factors: dict[str, Annotated[list[Level], Field(min_length=2, max_length=100)]] = Field(
        min_length=1,
        max_length=2,
        description="Setting -> levels: `train.lr`, and at most one more `train.<key>` or setting "
        "of the methods. Every point is run at each.",
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        min_length=1, max_length=1000, description="Each level is run once per task and seed."
    )
    response: str = Field(
        description="The metric whose mean over tasks and seeds decides; on the scale of "
        "`analysis.transform`."
    )


class Arm(_Strict):
    """A method with fixed settings and factors whose levels are crossed."""

    name: Name | None = Field(None, description="Shown in tables; defaults to the method's name.")
    method: Name = Field(description="Any method of fitspace.")
    control: Control | None = Field(
        None,
        description="How the denoiser is told of the image that the tasks give: a copy of its "
        "encoder, input channels of its own, or sampling that starts from it; null: not at all. "
        "Also a factor.",
    )
    settings: dict[str, Level | None] = Field(
        default_factory=dict, description="Settings of the method that all points share."
    )
    factors: dict[str, Annotated[list[Level], Field(max_length=10_000)]] = Field(
        default_factory=dict,
        description="Factor -> levels: a setting of the method, `match_trainable`, `train.<key>`, "
        "`train.reward.weight` (0: without it), `train.reward.through`, `control`, or one "
        "of `sample.guidance`, `sample.steps`, `sample.strength`, `sample.blocks`, "
        "`sample.given_guidance` and `sample.noised`, whose levels share their training.",
    )
    illegal_cells: Literal["error", "drop"] = Field(
        "error", description="What to do with crossed cells that the method cannot build."
    )
    match_trainable: int | None = Field(
        None,
        ge=1,
        description="Number of trainable parameters: sets each point's width (rank) so that it "
        "trains the nearest number, within 1%. Also a factor.",
    )
    subset: int | None = Field(
        None,
        ge=1,
        description="Run only this many of the arm's legal cells, chosen D-optimally for the main "
        "effects.",
    )
    train: dict[str, Level | None] = Field(
        default_factory=dict, description="Training settings that differ from the study's."
    )

    @property
    def title(self) -> str:
        return self.name or self.method

    @property
    def controls(self) -> list[str | None]:
        """How its points are told of the given image."""
        return self.factors.get(CONTROL, [self.control])

    @property
    def between(self) -> dict[str, list[Any]]:
        """The factors that need a training for each level."""
        return {name: levels for name, levels in self.factors.items() if name not in DRAWN}

    @property
    def within(self) -> dict[str, list[Any]]:
        """The factors whose levels share a training: each draws images of its own."""
        return {name: levels for name, levels in self.factors.items() if name in DRAWN}


def _margin(value: Any) -> Any:
    if isinstance(value, str):
        sound = share(value) is not None
    else:
        sound = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        sound = sound and math.isfinite(value)
    if not sound:
        raise ValueError(
            f"{short(value)}; allowed: a number above 0 in the response's own units, or a share of "
            "what full fine-tuning gains over the untouched base, as '10%'"
        )
    return value


Margin = Annotated[
    Any,
    AfterValidator(_margin),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\d+(\.\d+)? ?%$"},
            ]
        }
    ),
]
# YAML reads the levels of a width as numbers; a table of runs has them as text.
LevelName = Annotated[Any, AfterValidator(lambda value: str(_scalar(value)))]


def _ratio(value: object) -> object:
    """A number, or two whole ones as ``-1/6``, which decimals cannot write."""
    if isinstance(value, str) and re.fullmatch(RATIO, value.strip()):
        return float(Fraction(value.replace(" ", "")))
    return value


RATIO = r"[+-]?\d+ ?/ ?0*[1-9]\d*"
Coefficient = Annotated[float, BeforeValidator(_ratio), Field(allow_inf_nan=False)]


def _contrast(asked: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    if len(asked) != 1:
        raise ValueError(
            f"{len(asked)} keys; needed: one, a factor or several joined by a colon, with the "
            "coefficient of each level or cell: {arm: {lora: 1, full: -1}}"
        )
    ((factor, levels),) = asked.items()
    values = list(levels.values())
    if sum(value != 0 for value in values) < 2:
        raise ValueError(f"{factor}: needed: at least two levels with a coefficient other than 0")
    if abs(math.fsum(values)) > 1e-9 * max(map(abs, values)):
        raise ValueError(f"{factor}: the coefficients sum to {math.fsum(values):g}; needed: 0")
    return asked


Contrast = Annotated[
    dict[str, dict[LevelName, Coefficient]],
    AfterValidator(_contrast),
    WithJsonSchema(
        {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": {
                "type": "object",
                "additionalProperties": {
                    "anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{RATIO}$"}]
                },
            },
        }
    ),
]


class Analysis(_Strict):
    """What is analysed. It is declared before the runs and never chosen by p."""

    factors: list[str] = Field(
        min_length=1, max_length=100, description="Columns of runs.csv to test."
    )
    responses: list[str] = Field(
        min_length=1,
        max_length=100,
        description="Metrics to analyse; the first is the primary one. A study that analyses a "
        "CLIP-I must also analyse clip_t or diversity.",
    )
    choose: list[str] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Some of `factors`: the report's answer then says which of their levels are "
        "best for how many combinations of the other factors, as the study of a tuning asks.",
    )
    transform: dict[str, Literal["log", "logit", "box-cox"]] = Field(
        default_factory=dict, description="Response -> scale on which it is analysed."
    )
    margins: dict[str, Margin] = Field(
        default_factory=dict,
        description="Response -> non-inferiority margin against full fine-tuning, in the "
        "response's own units, or as a share of what it gains over the untouched base: `10%`.",
    )
    contrasts: dict[Annotated[str, Field(min_length=1, max_length=100)], Contrast] = Field(
        default_factory=dict,
        description="The study's own questions: name -> factor -> coefficients of its levels, "
        "which sum to 0, as numbers or `-1/6`; cells by factors joined by a colon: "
        "`input:output: {CA_out:FFN_in: 1, SA_in:SA_in: -1}`.",
    )
    scales: dict[str, Literal["linear", "log2"]] = Field(
        default_factory=dict,
        description="Factor of numbers -> the scale on which its trend is told; `log2` by default "
        "for widths, ranks, budgets, learning rates and steps, `linear` for others.",
    )


# Two keys for each extractor whose weights a study names: the file and its SHA-256.
_Weights = create_model(
    "_Weights",
    __base__=_Strict,
    **{
        name: (PathText | None, Field(None, description=extractor.named))
        for name, extractor in NAMED.items()
    },
    **{
        f"{name}_sha256": (
            Sha256 | None,
            Field(None, description=f"SHA-256 that the file of `{name}` must have."),
        )
        for name in NAMED
    },
)


class Study(_Weights):
    """A whole study file."""

    name: Name = Field(description="Names the report's folder.")
    title: str = Field(min_length=1, max_length=200, description="The report's heading.")
    question: str = Field("", max_length=2000, description="What the study asks, in a sentence.")
    base: PathText = Field(description="Diffusers pipeline: a folder, or a hub id.")
    judge: PathText = Field(description="open_clip model: a folder.")
    base_sha256: Sha256 | None = Field(
        None, description="The digest that the base must have, as `fitspace plan` prints it."
    )
    judge_sha256: Sha256 | None = Field(
        None, description="The digest that the judge must have, as `fitspace plan` prints it."
    )
    reward_sha256: Sha256 | None = Field(
        None,
        description="The digest that the model of `train.reward` must have, as `fitspace plan` "
        "prints it.",
    )
    tasks: list[Task] = Field(min_length=1, max_length=1000)
    arms: list[Arm] = Field(min_length=1, max_length=1000)
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        min_length=1,
        max_length=10_000,
        description="Each point is run once per task and seed.",
    )
    train: TrainSettings
    sample: SampleSettings
    metrics: list[str] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Metrics that are measured beside the standard ones; those of "
        "`analysis.responses` need not stand here again.",
    )
    explain: Explain | None = Field(
        None,
        description="Explains each run: how sensitive it is to the prompt, and what its parameters "
        "changed; null: not at all.",
    )
    tuning: Tuning | None = Field(
        None,
        description="Chooses settings for each point by runs on other tasks; null: none is chosen.",
    )
    analysis: Analysis

    @property
    def weights(self) -> dict[str, str]:
        """Files with the weights of the extractors that the study names, by extractor."""
        named = {name: getattr(self, name) for name in NAMED}
        return {name: path for name, path in named.items() if path is not None}

    @property
    def further(self) -> tuple[str, ...]:
        """The metrics beside the standard ones that the study names, sorted."""
        return asked([*(self.metrics or ()), *self.analysis.responses])

    def further_of(self, of_subject: bool) -> tuple[str, ...]:
        """Those that are measured on a kind of task: one subject, or held-out images."""
        on_it = self.measured_of(of_subject)
        return tuple(name for name in self.further if name in on_it)

    def measured_of(self, of_subject: bool) -> tuple[str, ...]:
        """All metrics of a kind of task, explanations' too."""
        return measured(of_subject, self.weights, self.further, self.explain is not None)

    def _lacks_untouched(self) -> list[str]:
        """What metrics that compare with the untouched base's images lack of them."""
        asking = beside_untouched(self.further)
        base = [arm for arm in self.arms if arm.method == "none"]
        if asking and not base:
            return [f"metrics: {asking[0]!r}: needs the untouched base, an arm of method none"]
        found = []
        starts, own = (
            {control == "img2img" for arm in arms for control in arm.controls}
            for arms in (self.arms, base)
        )
        if asking and (lacking := starts - own):
            how = "with" if True in lacking else "without"
            found.append(
                f"metrics: {asking[0]!r}: compares with images of the untouched base; needed: an "
                f"arm of method none {how} control: img2img"
            )
        for name in ("sample.guidance", "sample.steps", "sample.noised") if asking else ():
            drawn = {level for arm in base for level in arm.factors.get(name, [])}
            drawn.add(getattr(self.sample, DRAWN[name]))
            asked = [level for arm in self.arms for level in arm.factors.get(name, [])]
            if lacking := [level for level in dict.fromkeys(asked) if level not in drawn]:
                found.append(
                    f"metrics: {asking[0]!r}: compares with images of the untouched base; needed: "
                    f"{', '.join(map(str, lacking))} among its arm's own levels of {name}"
                )
        return found

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Study:
        lists = {
            "seeds": list(self.seeds),
            "tasks": [t.name for t in self.tasks],
            "arms": [a.title for a in self.arms],
            "analysis.factors": self.analysis.factors,
            "analysis.choose": self.analysis.choose or [],
            "analysis.responses": self.analysis.responses,
            "metrics": self.metrics or [],
            "tuning.seeds": self.tuning.seeds if self.tuning else [],
        }
        repeated = [
            f"{key}: {value!r} stands more than once; each must be unique"
            for key, values in lists.items()
            for value, times in Counter(values).items()
            if times > 1
        ]
        wrong = repeated + [
            f"analysis.{key}: {name!r} is not among analysis.responses"
            for key in ("transform", "margins")
            for name in getattr(self.analysis, key)
            if name not in self.analysis.responses
        ]
        known = self.analysis.factors
        wrong += [
            f"analysis.contrasts: {name!r}: {factor!r} is not among analysis.factors"
            for name, asked in self.analysis.contrasts.items()
            for key in asked
            for factor in key.split(":")
            if factor not in known
        ]
        wrong += [
            f"analysis.{key}: {name!r} is not among analysis.factors"
            for key in ("scales", "choose")
            for name in getattr(self.analysis, key) or ()
            if name not in known
        ]
        if set(self.analysis.choose or ()) >= set(known):
            wrong.append(
                "analysis.choose: names every factor; needed: one in analysis.factors that is not "
                "chosen"
            )
        full = [arm.factors for arm in self.arms if arm.method == "full"]
        if self.analysis.margins and full != [{}]:
            found = "one with factors" if len(full) == 1 else f"{len(full)} of them"
            wrong.append(
                "analysis.margins: need one arm of method full without factors, to compare the "
                f"points with; the study has {found}"
            )
        shares = [n for n, margin in self.analysis.margins.items() if isinstance(margin, str)]
        if shares and "none" not in [arm.method for arm in self.arms]:
            wrong.append(
                f"analysis.margins.{shares[0]}: a share of what full fine-tuning gains needs the "
                "untouched base, an arm of method none"
            )
        needing = {
            f"{key}: {name!r}": weights_for(name)
            for key, names in (
                ("analysis.responses", self.analysis.responses),
                ("metrics", self.metrics or ()),
            )
            for name in names
            if name in METRICS
        }
        needing |= {
            f"{name}_sha256": name for name in NAMED if getattr(self, f"{name}_sha256") is not None
        }
        if self.reward_sha256 is not None and self.train.reward is None:
            wrong.append("reward_sha256: the study has no reward; needed: train.reward")
        wrong += [
            f"{what}: needs the key {name!r}, the path of that extractor's weights"
            for what, name in needing.items()
            if name and name not in self.weights
        ]
        wrong += [
            f"analysis.responses: {name!r}: needs the key 'explain'; `explain: {{}}` suffices"
            for name in self.analysis.responses
            if self.explain is None and name in METRICS and METRICS[name].explains
        ]
        wrong += self._lacks_untouched()
        if self.train.warmup_steps > self.train.steps:
            wrong.append(
                f"train.warmup_steps: {self.train.warmup_steps}; allowed: at most train.steps"
            )
        reserved = ("given", "target", "best", "worst")
        wrong += [
            f"arms[{i}].name: {arm.title!r} is a name of the report; allowed: any but "
            f"{', '.join(reserved)}"
            for i, arm in enumerate(self.arms)
            if arm.title in reserved
        ]
        wrong += _tuning_problems(self)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def _tuning_problems(study: Study) -> list[str]:
    """What is wrong with a study's tuning beside its tasks and arms."""
    own = study.tuning
    if own is None:
        return []
    reported = {task.name for task in study.tasks}
    contents = [task.model_dump(exclude={"name"}) for task in study.tasks]
    names = Counter(task.name for task in own.tasks)
    wrong = []
    for i, task in enumerate(own.tasks):
        if task.name in reported or names[task.name] > 1:
            wrong.append(
                f"tuning.tasks[{i}].name: {task.name!r} is another task's; allowed: a new one"
            )
        if task.model_dump(exclude={"name"}) in contents:
            wrong.append(
                f"tuning.tasks[{i}]: {task.name!r} is a task of the study, by its images; allowed: "
                "one that the study does not report"
            )
    if own.response not in METRICS:
        wrong.append(
            f"tuning.response: {own.response!r} is no metric; allowed: {', '.join(METRICS)}"
        )
    elif beside_untouched([own.response]):
        wrong.append(
            f"tuning.response: {own.response!r}: compares with images of the untouched base, which "
            "a tuning does not draw; allowed: a metric that does not"
        )
    wrong += [
        f"tuning.factors.{name}: varies within a training, so it needs no run of its own; allowed: "
        f"a factor of the arms"
        for name in own.factors
        if name in DRAWN
    ]
    if len(study.name) > (most := LONGEST - len(TUNING)):
        wrong.append(
            f"name: {study.name!r}: with tuning at most {most} characters, because its "
            f"runs are those of {study.name + TUNING!r}"
        )
    trained = [(i, arm) for i, arm in enumerate(study.arms) if arm.method != "none"]
    if not trained:
        wrong.append("tuning: no arm is trained; leave it out")
    for i, arm in trained:
        if arm.subset is not None:
            wrong.append(
                f"arms[{i}].subset: {arm.subset}: not together with tuning, whose arms have the "
                "tuned settings as factors too"
            )
        given = {*arm.factors, *arm.settings, *(f"train.{key}" for key in arm.train)}
        wrong += [
            f"arms[{i}]: {name}: is chosen by tuning; leave it out here"
            for name in own.factors
            if name in given
        ]
    return wrong
