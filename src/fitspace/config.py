"""Study files: strict models, and every problem of a file reported at once.

A study names a base, tasks, arms (a method with fixed settings and crossed factors), seeds
and the settings of each stage. ``params/README.md`` explains every key to a user; the JSON
Schema in ``workflow/schemas`` is generated from these models.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from fitspace import hub
from fitspace.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]


def _scalar(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"{_short(value)} is not a single value; allowed: text, number, bool")
    return value


Level = Annotated[
    Any,
    AfterValidator(_scalar),
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
]
# Snakemake, shells and people all have to live with these paths.
PathText = Annotated[str, Field(min_length=1, max_length=400, pattern=r"^[^\x00-\x1f]+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
HubId = Annotated[str, Field(max_length=200, pattern=f"^{hub.PATTERN}$")]


LARGEST = 1_000_000  # bytes of a YAML file
MOST_MERGED = 1_000

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80
_brief.maxlevel = 2


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _template(text: str) -> str:
    if text.count("{}") != 1:
        raise ValueError(f"{_short(text)} holds {{}} {text.count('{}')} times; allowed: once")
    return text


Phrase = Annotated[str, Field(max_length=200, pattern=r"^[^\s](?:[^\x00-\x1f]*[^\s])?$")]
Template = Annotated[Phrase, AfterValidator(_template)]


class DreamBooth(_Strict):
    """One subject, taught from a few images under a rare word (2208.12242)."""

    noun: Phrase = Field(description="The class that the subject belongs to, such as `dog`.")
    prompts: list[Template] = Field(
        min_length=1, description="Prompts that put the subject, `{}`, elsewhere: `{} in snow`."
    )
    token: Phrase = Field("sks", description="The rare word that is to name the subject.")
    template: Template = Field(
        "photo of a {}", description="What the images trained on show, the class images too."
    )
    prior_weight: float = Field(
        1.0, ge=0, le=1000, description="Weight of prior preservation; 0: none, no class images."
    )
    class_images: int = Field(
        200, ge=1, le=100_000, description="Images of the class that the base draws to train on."
    )
    class_guidance: float = Field(3.0, ge=1, description="Guidance scale of the class images.")

    @property
    def asked(self) -> dict[str, list[str]]:
        """Prompts by role: the subject as trained on, the subject elsewhere, its class."""
        subject = f"{self.token} {self.noun}"
        return {
            "subject": [self.template.replace("{}", subject)],
            "elsewhere": [prompt.replace("{}", subject) for prompt in self.prompts],
            "class": [self.template.replace("{}", self.noun)],
        }

    @property
    def elsewhere_by_noun(self) -> list[str]:
        """The prompts elsewhere without the rare word, for a judge that never learnt it."""
        return [prompt.replace("{}", self.noun) for prompt in self.prompts]


class Task(_Strict):
    """One target domain: a style of the embedded OpenMoji set, a folder, or a hub data set.

    Or, with ``dreambooth``, one subject: a figure of OpenMoji, a folder with its images, or a
    folder of a hub data set.
    """

    name: Name = Field(description="Short name, part of result paths.")
    source: Literal["openmoji", "folder", "hub"] = Field(description="Where the images come from.")
    style: (
        Literal["full", "line", "flat", "blueprint", "night", "sepia", "pixel", "invert"] | None
    ) = Field(None, description="The visual style; only with `source: openmoji`.")
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

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Task:
        needed = {"openmoji": "style", "folder": "path", "hub": "dataset"}
        wrong = []
        for source, key in needed.items():
            if (getattr(self, key) is not None) != (self.source == source):
                verb = "needs" if self.source == source else "does not take"
                wrong.append(f"source: {self.source} {verb} the key {key!r}")
        if self.folder is not None:
            inside = PurePosixPath(self.folder)
            if self.source != "hub":
                wrong.append(f"source: {self.source} does not take the key 'folder'")
            if inside.is_absolute() or ".." in inside.parts or str(inside) != self.folder:
                wrong.append(f"folder: {self.folder!r}; allowed: a plain path inside the data set")
        figure = self.dreambooth is not None and self.source == "openmoji"
        if (self.subject is not None) != figure:
            wrong.append(
                "subject: missing; a figure of OpenMoji, for dreambooth"
                if figure
                else f"subject: {self.subject!r} is only for source: openmoji with dreambooth"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class TrainSettings(_Strict):
    """How one adapter is trained. Everything here is part of the run's key."""

    steps: int = Field(ge=1, le=10_000_000, description="Optimizer steps.")
    batch_size: int = Field(ge=1, le=65_536, description="Examples per step.")
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
    min_snr_gamma: float | None = Field(
        None, gt=0, description="Min-SNR loss weighting (2303.09556); null weighs steps equally."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Of the forward pass; trainables stay in fp32."
    )


class SampleSettings(_Strict):
    """How images are generated. Everything here is part of the sample key."""

    prompts: int = Field(
        ge=4,
        le=1_000_000,
        description="Held-out captions to sample, one image each; with dreambooth images of each "
        "kind: the subject, the subject elsewhere, its class.",
    )
    steps: int = Field(20, ge=1, le=1000, description="DPM-Solver++ steps.")
    guidance: float = Field(3.0, ge=1, description="Guidance scale; 1 turns guidance off.")


class Arm(_Strict):
    """A method with fixed settings and factors whose levels are crossed."""

    name: Name | None = Field(None, description="Shown in tables; defaults to the method's name.")
    method: Name = Field(description="Any method of fitspace.")
    settings: dict[str, Level] = Field(
        default_factory=dict, description="Settings of the method that all points share."
    )
    factors: dict[str, Annotated[list[Level], Field(max_length=10_000)]] = Field(
        default_factory=dict,
        description="Factor -> levels: a setting of the method, or `train.<key>`.",
    )
    illegal_cells: Literal["error", "drop"] = Field(
        "error", description="What to do with crossed cells that the method cannot build."
    )
    match_trainable: int | None = Field(
        None,
        ge=1,
        description="Number of trainable parameters: sets each point's width (rank) so that it "
        "trains the nearest number, within 1%.",
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


# An adapter that copies its training images has the highest of these, so none stands alone.
_LIKENESS = ("clip_i", "clip_i_paired", "clip_i_elsewhere")
_BESIDE_LIKENESS = ("clip_t", "diversity")


def _likeness_not_alone(responses: list[str]) -> list[str]:
    alone = [name for name in responses if name in _LIKENESS]
    if alone and not set(responses) & set(_BESIDE_LIKENESS):
        raise ValueError(
            f"{', '.join(alone)} without a metric of the text or of diversity: an adapter that "
            "copies its training images has the highest CLIP-I; needed beside it: "
            f"{' or '.join(_BESIDE_LIKENESS)}"
        )
    return responses


class Analysis(_Strict):
    """What is tested. Declared before the runs, never chosen by p."""

    factors: list[str] = Field(
        min_length=1, max_length=100, description="Columns of runs.csv to test."
    )
    responses: Annotated[list[str], AfterValidator(_likeness_not_alone)] = Field(
        min_length=1,
        max_length=100,
        description="Metrics to analyse; the first is the primary one. Beside a CLIP-I stands "
        "clip_t or diversity.",
    )
    transform: dict[str, Literal["log", "logit", "box-cox"]] = Field(
        default_factory=dict, description="Response -> scale on which it is analysed."
    )
    margins: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="Response -> how much worse than full fine-tuning, in the response's own "
        "units, still counts as good as it.",
    )


class Study(_Strict):
    """A whole study file."""

    name: Name = Field(description="Names the report's folder.")
    title: str = Field(min_length=1, max_length=200, description="The report's heading.")
    question: str = Field("", max_length=2000, description="What the study asks, in a sentence.")
    base: PathText = Field(description="Diffusers pipeline: a folder, or a hub id.")
    judge: PathText = Field(description="open_clip model: a folder.")
    inception: PathText | None = Field(
        None, description="Inception-v3's weights, a safetensors file, for `fid`; null: no FID."
    )
    base_sha256: Sha256 | None = Field(
        None, description="The digest that the base must have, as `fitspace plan` says it."
    )
    judge_sha256: Sha256 | None = Field(
        None, description="The digest that the judge must have, as `fitspace plan` says it."
    )
    inception_sha256: Sha256 | None = Field(
        None, description="SHA-256 that the file of `inception` must have."
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
    analysis: Analysis

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Study:
        lists = {
            "seeds": list(self.seeds),
            "tasks": [t.name for t in self.tasks],
            "arms": [a.title for a in self.arms],
            "analysis.factors": self.analysis.factors,
            "analysis.responses": self.analysis.responses,
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
        full = [arm.factors for arm in self.arms if arm.method == "full"]
        if self.analysis.margins and full != [{}]:
            found = "one with factors" if len(full) == 1 else f"{len(full)} of them"
            wrong.append(
                "analysis.margins: hold the points against one arm of method full without "
                f"factors; the study has {found}"
            )
        needing = {
            "analysis.responses: 'fid'": "fid" in self.analysis.responses,
            "inception_sha256": self.inception_sha256 is not None,
        }
        wrong += [
            f"{what}: needs the key 'inception', the path of Inception-v3's weights"
            for what, given in needing.items()
            if given and self.inception is None
        ]
        if self.train.warmup_steps > self.train.steps:
            wrong.append(
                f"train.warmup_steps: {self.train.warmup_steps}; allowed: at most train.steps"
            )
        reserved = ("target", "best", "worst")
        wrong += [
            f"arms[{i}].name: {arm.title!r} is a name of the report; allowed: any but "
            f"{', '.join(reserved)}"
            for i, arm in enumerate(self.arms)
            if arm.title in reserved
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (YAML forbids it, PyYAML keeps the last).

    And merges (``<<``) that multiply: nine short lines of them can fill the memory.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        merged = [len(v.value) for k, v in node.value if k.tag == "tag:yaml.org,2002:merge"]
        if sum(merged) <= MOST_MERGED:  # one line can name a mapping many times
            super().flatten_mapping(node)
        if merged and max(sum(merged), len(node.value)) > MOST_MERGED:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: merges more than {MOST_MERGED} keys or mappings")

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # Of a tag and what it does not fit, such as `!!int x`, PyYAML raises anything.
            kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {_short(node.value)} is no {kind}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {_short(node.value)} is no mapping")
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key, str):
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise yaml.YAMLError(f"line {line}: the key {key!r} stands twice")
                seen.add(key)
        return super().construct_mapping(node, deep)


def load_study(path: str | Path) -> Study:
    """Read and validate a study file.

    Raises
    ------
    UserError : every problem of the file, each naming the key, the value and what is
        allowed: unknown keys, wrong types, impossible levels and illegal cells alike.
    """
    from fitspace.design import arm_problems, task_problems

    path = Path(path)
    content = read_yaml(path)
    problems, study, arms = [], None, []
    try:
        study = Study.model_validate(content)
        arms = list(enumerate(study.arms))
    except ValidationError as error:
        problems += explain(error, Study)
        arms = _sound_arms(content)
    problems += arm_problems(arms, content.get("base"), study)
    if study is not None:
        problems += task_problems(study) + _missing_files(study)
    if problems:
        raise UserError(f"{path}: {p}" for p in problems)
    return study


def _missing_files(study: Study) -> list[str]:
    """What is missing and cannot be fetched: local paths."""
    from fitspace import data, metrics

    problems = []
    for look in (
        lambda: metrics.judge_files(study.judge),
        lambda: metrics.inception_file(study.inception) if study.inception else None,
    ):
        try:
            look()
        except hub.NotHere:
            continue
        except UserError as error:
            problems += error.problems
    for i, task in enumerate(study.tasks):
        try:
            data.identity(task)
        except hub.NotHere:
            continue
        except UserError as error:
            problems += [f"tasks[{i}]: {p}" for p in error.problems]
    return problems


def absent(study: Study) -> list[str]:
    """What a study names by hub id, or to be made, and is not on this machine; with its cure.

    Such a study is valid and can be planned; it runs once all is here.
    """
    from fitspace import bases, data, metrics

    found = []
    hub_tasks = [task for task in study.tasks if task.source == "hub"]
    for look in (
        lambda: bases.resolve(study.base),
        lambda: metrics.judge_files(study.judge),
        lambda: metrics.inception_file(study.inception) if study.inception else None,
        *(partial(data.identity, task) for task in hub_tasks),
    ):
        try:
            look()
        except hub.NotHere as error:
            found += error.problems
    return found


def fetch(path: str | Path) -> Study:
    """Download what a study file names by hub id and is not on this machine.

    Returns the study. Only the file's form has to be right: an architecture may be known only once
    it is here.

    Raises
    ------
    UserError : a malformed study file, or everything that could not be downloaded.
    """
    from fitspace import bases, data, metrics

    try:
        study = Study.model_validate(read_yaml(Path(path)))
    except ValidationError as error:
        raise UserError(f"{path}: {p}" for p in explain(error, Study)) from None
    problems = []
    for get, what in (
        (bases.fetch, study.base),
        (metrics.fetch_judge, study.judge),
        *((data.fetch, task) for task in study.tasks),
    ):
        try:
            get(what)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return study


def _sound_arms(content: dict[str, Any]) -> list[tuple[int, Arm]]:
    """The arms of an otherwise broken file that can be checked further."""
    arms = []
    for index, item in enumerate(content["arms"] if isinstance(content.get("arms"), list) else []):
        try:
            arms.append((index, Arm.model_validate(item)))
        except ValidationError:
            continue
    return arms


def read_yaml(path: Path, what: str = "a study file") -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError for one that is not ``what``, or no file."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file; expected {what} (YAML)")
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(f"{path}: {size} bytes; allowed: at most {LARGEST}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {what} (YAML)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not valid YAML: {detail}") from None
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{path}: holds {kind}; expected {what}, a mapping")
    return content


def checked(content: Any, model: type[Model], where: Any, what: str) -> Model:
    """Content that somebody may have changed, as its model reads it.

    Raises UserError: all that makes what stands at ``where`` not ``what``.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = explain(error, model)
        raise UserError(f"{where}: not {what} ({problem})" for problem in problems) from None


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A pydantic error as messages: key, value, what is allowed; a hundred at most."""
    found = error.errors(include_url=False)
    more = [f"and {len(found) - 100} more"] if len(found) > 100 else []
    return [_explain_one(e, model) for e in found[:100]] + more


def _explain_one(item: dict[str, Any], model: type[BaseModel]) -> str:
    parts = [p for p in item["loc"] if not _is_union_tag(p)]
    key = _key(parts)
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return f"{key}: missing; this key is required"
    if kind == "extra_forbidden":
        parts = [*(p for p in item["loc"][:-1] if not _is_union_tag(p)), item["loc"][-1]]
        key = _key(parts)
        allowed = sorted(_fields_at(model, parts[:-1]))
        near = difflib.get_close_matches(str(parts[-1]), allowed, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"{key}: unknown key{hint}; allowed: {', '.join(allowed)}"
    message = item["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    message = message[0].lower() + message[1:]
    if isinstance(value, str) and kind in ("float_type", "int_type") and _is_number(value):
        message += f" (YAML reads {value} as text; write {float(value)!r})"
    return f"{key}: {_short(value)}: {message}"


def _key(parts: list[str | int]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")


def _is_union_tag(part: str | int) -> bool:
    # pydantic names the branch of a union in the location: not a key of the file.
    return isinstance(part, str) and (
        part in ("str", "int", "float", "bool", "constrained-str") or "[" in part
    )


def _fields_at(model: type[BaseModel], parts: list[str | int]) -> list[str]:
    """The keys allowed at a location of a model."""
    for part in parts:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _short(value: Any) -> str:
    try:
        return _brief.repr(value)
    except ValueError:  # an integer of thousands of digits has no decimal text
        return f"a {type(value).__name__} too long to show"


def schema() -> dict[str, Any]:
    """JSON Schema of a study file."""
    document = Study.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


if __name__ == "__main__":  # writes workflow/schemas/study.schema.json
    import json

    print(json.dumps(schema(), indent=2))
