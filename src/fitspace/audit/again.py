"""The tiers that compute again: metrics from the samples, explanations from the adapters, and whole
runs from the images.

Nothing here writes into ``results`` or ``reports``.
"""

from __future__ import annotations

import csv
import io
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fitspace.audit.findings import Distance, Finding
from fitspace.core.errors import UserError
from fitspace.core.files import digest, write_text
from fitspace.core.paths import REPORTS
from fitspace.core.reading import read_yaml
from fitspace.explaining.reading import measured as explained
from fitspace.explaining.reading import read_explanation
from fitspace.metrics import INTERVAL, METRICS, NAMES, read_metrics
from fitspace.plan import Plan, Run, Stage
from fitspace.plan.models import MODELS
from fitspace.results import lineage
from fitspace.results.lineage import Lineage
from fitspace.stages.sidecars import KERNELS, KIND, environment, load_sidecar, verified
from fitspace.stages.slurm import GROUPED

# Of a metric measured again on another kind of machine; relative, absolute below 1. 80 samples
# moved by 3e-7 at most between AVX-512, AVX2 and SSE4, and by 5e-6 with noise of 1e-4 on every
# feature; the 227 numbers of an explanation by 3e-7 between AVX-512 and AVX2.
TOLERANCE = 1e-5
# The base's images of a class are drawn again too: half their pixels one level off move it 1.6e-3.
DRAWN_AGAIN = {"prior_drift": 2e-3}
# Shares of images, by their number: one image may fall on the other side of a neighbourhood.
SHARES = {name: row.share for name, row in METRICS.items() if row.share}
# Standard deviations over seeds. A run of the embedded study on AVX2 in place of AVX-512 was
# 0.008% away in its Fréchet distance; three standard deviations are 3%.
SPREAD = 3
# Where nothing has two seeds; relative, of shares absolute. Three standard deviations of the
# embedded studies' Fréchet distances are 3 to 14%.
ONE_SEED = 0.05
_OWN = {"results", "reports", ".git", ".snakemake"}
# A study's table as text, by run.
Rows = Mapping[str, Mapping[str, str]]


def same_kind(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two recorded environments are of one kind: machine, libraries and settings.

    Equal inputs then give equal bits. The state of the code does not count, because a stage whose
    numbers change gets another version and therefore another key.
    """
    kernels = {made[KERNELS] for made in (a, b) if KERNELS in made}
    return len(kernels) < 2 and all(a.get(name) == b.get(name) for name in KIND)


def draw(runs: Sequence[str], n: int, seed: int) -> list[str]:
    """Draw ``n`` runs at random. A seed gives the same runs; a larger draw contains the smaller.

    Raises UserError if there are fewer.
    """
    names = dict.fromkeys(runs)
    if not 1 <= n <= len(names):
        raise UserError(f"--draw: {n}; allowed: 1 to {len(names)}, the number of runs in question")
    return sorted(names, key=lambda name: digest([seed, name]))[:n]


def reevaluate(plan: Plan, runs: Sequence[str]) -> list[Finding]:
    """Measure runs again from their samples and the prepared task, and explain them again from
    their adapters; compare with their records.

    Reference features are computed again as well, once per task. If features, metrics and
    explanations were recorded on this kind of machine (:func:`same_kind`), every number must be the
    same to the last bit, otherwise within ``TOLERANCE``. ``runs`` are names as in runs.csv.

    Raises
    ------
    UserError : names that are not runs of the plan.
    """
    findings: list[Finding] = []
    features: dict[str, dict] = {}
    looked: set[str] = set()
    for run in tqdm(_named(plan, runs), desc="measuring again", unit="run", disable=None):
        read = [s for s in (run.untouched, run.prepare, run.sample, run.evaluate) if s is not None]
        unusable = [f for s in read for f in _unusable(s)]
        findings += unusable or _measured_again(plan, run, features)
        if run.explain is not None and run.explain.key not in looked:
            looked.add(run.explain.key)  # runs that share a training share it
            read = [s for s in (run.prepare, run.train, run.explain) if s is not None]
            findings += [f for s in read for f in _unusable(s)] or _explained_again(plan, run)
    return list(dict.fromkeys(findings))  # a task's recur with its runs


def _measured_again(plan: Plan, run: Run, features: dict[str, dict]) -> list[Finding]:
    """The findings of one run. ``features`` caches features of earlier tasks by reference key."""
    from fitspace.stages.evaluate import measure
    from fitspace.stages.reference import reference_features

    try:
        recorded = numbers(read_metrics(run))
        if run.reference.key not in features:
            features[run.reference.key] = reference_features(plan.study, run)
        computed = measure(plan.study, run, features[run.reference.key])
    except UserError as error:
        message = f"cannot be measured again from {run.sample.folder}: {error}"
        return [Finding("changed", run.name, message)]
    limits = dict.fromkeys(numbers(computed), 0.0)
    if not measured_here(run):
        limits = {name: tolerance(name, computed) for name in limits}
    return differences(run.name, recorded, numbers(computed), limits)


def _explained_again(plan: Plan, run: Run) -> list[Finding]:
    from fitspace.stages.explain import explanation

    folder = run.explain.folder.as_posix()
    try:
        recorded = numbers(read_explanation(run))
        computed = numbers(explanation(plan.study, run)[0])
    except UserError as error:
        return [Finding("changed", folder, f"cannot be explained again: {error}")]
    limits = dict.fromkeys(computed, 0.0)
    if not made_here(run.explain):
        limits = {n: TOLERANCE * max(1.0, abs(v)) for n, v in computed.items() if _number(v)}
    return differences(folder, recorded, computed, limits)


def measured_here(run: Run) -> bool:
    """Whether a run's features and metrics were made on this kind of machine."""
    return made_here(run.reference, run.evaluate)


def made_here(*stages: Stage) -> bool:
    """Whether stages were made on this kind of machine."""
    try:
        made_on = [load_sidecar(stage.sidecar)["environment"] for stage in stages]
    except UserError:
        return False  # One is missing, so this is unknown.
    return all(same_kind(machine, environment()) for machine in made_on)


def numbers(content: Any, name: str = "") -> dict[str, Any]:
    """JSON in one level: a row of ``against_n`` becomes ``against_n[0].fd_effnet``."""
    if isinstance(content, Mapping):
        parts = {f"{name}.{key}" if name else key: value for key, value in content.items()}
    elif isinstance(content, list):
        parts = {f"{name}[{i}]": value for i, value in enumerate(content)}
    else:
        return {name: content}
    return {key: v for part, value in parts.items() for key, v in numbers(value, part).items()}


def tolerance(name: str, metrics: Mapping[str, Any]) -> float:
    """The allowed difference of a number of ``metrics`` on another kind of machine."""
    last = name.rpartition(".")[2]
    if last in ("n", "m"):
        return 0.0
    if last in SHARES:
        return 1.001 / metrics[SHARES[last]]  # shares are float32
    return DRAWN_AGAIN.get(last, TOLERANCE) * max(1.0, abs(numbers(metrics)[name]))


def differences(
    run: str,
    recorded: Mapping[str, Any],
    computed: Mapping[str, Any],
    limits: Mapping[str, float],
    how: str = "",
) -> list[Finding]:
    """A finding for each number that differs by more than its limit or that one side lacks.

    ``how`` describes the limits.
    """
    findings = []
    for name in dict.fromkeys([*recorded, *computed]):
        was, now, limit = recorded.get(name), computed.get(name), limits.get(name, 0.0)
        if was == now or (_number(was) and _number(now) and abs(was - now) <= limit):
            continue
        allowed = f"a difference of {limit:.3g}{how}" if limit else "the same number"
        message = f"{name}: recorded {was!r}, computed again {now!r}; allowed: {allowed}"
        findings.append(Finding("changed", run, message))
    return findings


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


# --- whole runs ---------------------------------------------------------------------------


def retrain(study: Path, plan: Plan, runs: Sequence[str]) -> tuple[list[Finding], list[Distance]]:
    """Train runs again from the images, and compare them with the study's report in git.

    Returns the contradictions to the report, and the distance of each run from its record.

    Snakemake runs every stage in a temporary folder that links to this project's files, but not to
    its results, which may be missing. Stage by stage the files are compared by SHA-256 with the
    study's lineage, and finally the metrics with runs.csv.

    On the kind of machine of the record (:func:`same_kind`) every file must be the same. On
    another kind rounding differs, training amplifies it, and the files differ. Each metric must
    then lie within ``SPREAD`` standard deviations of the seeds of the recorded one (pooled over
    the task's points, from runs.csv; within ``ONE_SEED`` if no point has two seeds). Both runs
    share seed, noise and data order, so rounding alone moves a run by far less. On another kind of
    machine this tier finds a number that the design does not give; it cannot tell whether the files
    are the recorded ones.

    Raises
    ------
    UserError : names that are not runs of the plan, no lineage or table, or a run that fails.
    """
    folder = REPORTS / plan.study.name
    known, rows = lineage.read(folder), read_rows(folder / "runs.csv")
    chosen, findings = [], []
    for run in _named(plan, runs):
        if ("evaluate", run.evaluate.key) in known.records and run.name in rows:
            chosen.append(run)
        else:
            message = f"{folder} has no record of it; `fitspace report --cached` collects it"
            findings.append(Finding("absent", run.name, message))
    if not chosen:
        return findings, []
    with workspace() as scratch:
        make(scratch, study, [stage.sidecar for run in chosen for stage in run.ends])
        compared = [compare(run, known, rows, scratch) for run in chosen]
    return findings + [f for found, _ in compared for f in found], [d for _, d in compared if d]


def compare(
    run: Run, known: Lineage, rows: Rows, folder: Path
) -> tuple[list[Finding], Distance | None]:
    """Compare a run made again in a project at ``folder`` with its records and its table row.

    ``rows`` are all rows of runs.csv, by run; see :func:`retrain`.
    """
    made_on = lineage.machine(load_sidecar(folder / run.evaluate.sidecar)["environment"])
    environment = known.records["evaluate", run.evaluate.key].environment
    recorded_on = lineage.machine(known.environments.get(environment or "", {}))
    identical = True
    for stage in run.stages:
        record, again = (
            known.records.get((stage.name, stage.key)),
            load_sidecar(folder / stage.sidecar),
        )
        if record is None:
            continue
        outputs = {Path(o["path"]).name: o["sha256"] for o in again["outputs"]}
        other = [name for name, sha in record.outputs.items() if outputs.get(name) != sha]
        if not other:
            continue
        if same_kind(known.environments.get(record.environment or "", {}), again["environment"]):
            message = _other_files(stage, record, outputs, other)
            return [Finding("changed", run.name, message)], None
        identical = False
        break
    computed = measured(read_metrics(run, folder) | explained(run, folder))
    if identical:
        recorded = measured(rows[run.name])
        return (
            differences(run.name, recorded, computed, {}),
            Distance(run.name, recorded_on, made_on),
        )
    findings, distance = held_to(run.name, rows, computed)
    return findings, replace(distance, recorded_on=recorded_on, made_on=made_on)


def measured(content: Mapping[str, Any]) -> dict[str, float]:
    """The measured numbers in a run's files or in its row of runs.csv."""
    names = (*NAMES, *INTERVAL, "n", "m")
    found = {name: _cell(content.get(name)) for name in names}
    return {name: value for name, value in found.items() if _number(value)}


def held_to(run: str, rows: Rows, computed: Mapping[str, float]) -> tuple[list[Finding], Distance]:
    """Compare a run's numbers from another kind of machine with its row of the table.

    A difference that exceeds its limit is a finding. The returned distance is that of the metric
    that is nearest to its limit or furthest beyond it.
    """
    recorded = measured(rows[run])
    limits, spread, how = _limits(run, rows, computed)
    findings = differences(run, recorded, computed, limits, how)
    apart = {n: abs(recorded[n] - computed[n]) for n in computed if n in recorded and limits[n]}
    furthest = max(apart, key=lambda name: apart[name] / limits[name], default=None)
    if furthest is None:
        return findings, Distance(run, "", "")
    sd = spread.get(furthest, math.nan)
    seeds = apart[furthest] / sd if sd > 0 else None
    return findings, Distance(run, "", "", furthest, apart[furthest], limits[furthest], seeds)


def _other_files(
    stage: Stage, record: lineage.Record, outputs: Mapping[str, str], other: Sequence[str]
) -> str:
    hashes = "; ".join(
        f"{name}: recorded SHA-256 {record.outputs[name]}, now {outputs.get(name, 'no such file')}"
        for name in other
    )
    return f"{stage.name} is the first stage that gives other files on this machine: {hashes}"


def _limits(
    run: str, rows: Rows, computed: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float], str]:
    """For each metric its limit and the seeds' standard deviation; and how limits were chosen."""
    # Use recorded and computed values: a false value alone would widen its own limit.
    own = {**rows[run]} | {name: repr(value) for name, value in computed.items()}
    others = [r for name, r in rows.items() if r.get("task") == own.get("task") and name != run]
    spread = {
        name: min(seed_spread([*others, row], name) for row in (rows[run], own))
        for name in computed
    }
    if all(map(math.isnan, spread.values())):
        how = f"{ONE_SEED:.0%}: no point has two seeds"
        limits = {n: ONE_SEED * (1 if n in SHARES else abs(v)) for n, v in computed.items()}
    else:
        how = f"{SPREAD} standard deviations over seeds"
        limits = {name: SPREAD * sd for name, sd in spread.items() if not math.isnan(sd)}
    # Rounding is always allowed, except in numbers of images.
    least = {name: tolerance(name, computed) for name in computed}
    limits = {n: max(limits.get(n, 0.0), t) if t else t for n, t in least.items()}
    return limits, spread, f" ({how})"


def seed_spread(rows: Sequence[Mapping[str, str]], metric: str) -> float:
    """Standard deviation of a metric over seeds within points, pooled; NaN with one seed each."""
    points: dict[str, list[float]] = {}
    for row in rows:
        value = _cell(row.get(metric))
        if _number(value):
            points.setdefault(row.get("point", ""), []).append(value)
    squares = sum((v - sum(p) / len(p)) ** 2 for p in points.values() for v in p)
    freedom = sum(len(p) - 1 for p in points.values())
    return math.sqrt(squares / freedom) if freedom else math.nan


@contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder whose entries link to this project's, without its results."""
    with tempfile.TemporaryDirectory(prefix="fitspace-") as name:
        scratch = Path(name).resolve()
        for entry in Path.cwd().iterdir():
            if entry.name not in _OWN:
                (scratch / entry.name).symlink_to(entry)
        yield scratch


def elsewhere(study: Path) -> str:
    """A study file for another folder: relative paths become absolute ones."""
    import yaml

    content = read_yaml(study)
    models = [(content, key) for key in MODELS]
    named = [*models, *((task, "path") for task in content["tasks"])]
    if reward := content["train"].get("reward"):
        named.append((reward, "model"))
    for part, key in named:
        if part.get(key) and Path(part[key]).exists():
            part[key] = os.path.abspath(part[key])
    return yaml.safe_dump(content, allow_unicode=True)


def make(folder: Path, study: Path, targets: Sequence[Path]) -> None:
    """Make a study's targets in a project folder by Snakemake, with progress on stderr.

    Snakemake gets a session of its own. Whatever ends the waiting here can then end all of its
    jobs, so that none writes into a folder that is about to be deleted.
    """
    file = folder / "results/study.yaml"
    write_text(file, elsewhere(study))
    options = ["--cores", "all", "--config", f"study={file.relative_to(folder)}"]
    # No process may go on to runs that nobody asked for.
    options += ["--set-resources", *(f"{stage}:together=1" for stage in GROUPED)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # No new run for those who watch; and no profile of the user's, which may submit jobs.
    own = {"PATH": path, "FITSPACE_LIVE_TRACKING": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", *options, "--", *map(str, targets)],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "SNAKEMAKE_PROFILE"} | own,
        stdin=subprocess.DEVNULL,
        stdout=2,  # stdout is the audit's own
        start_new_session=True,
    )
    try:
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    if code:
        raise UserError(f"{study}: a run could not be made again; see the errors above")


def _end(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)  # a cluster's jobs are cancelled
        process.wait(30)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --- files on this machine ----------------------------------------------------------------


def _named(plan: Plan, names: Sequence[str]) -> list[Run]:
    found, problems = [], []
    for name in dict.fromkeys(names):
        try:
            found.append(plan.run_of("evaluate", name))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return found


def _unusable(stage: Stage) -> list[Finding]:
    """Why a stage's files cannot be used: they are missing or differ from the sidecar."""
    try:
        verified(stage)
    except UserError as error:
        paths = [problem.partition(": ")[0] for problem in error.problems]
        return [
            Finding("changed" if Path(path).exists() else "absent", path, problem)
            for path, problem in zip(paths, error.problems, strict=True)
        ]
    return []


def read_rows(path: Path) -> Rows:
    """A study's table as text, rows by run."""
    try:
        return rows_of(path.read_bytes().decode(), path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; `fitspace report --cached` collects it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a study's table ({error})") from None


def rows_of(text: str, path: Path) -> Rows:
    """The rows of a table's text. Raises UserError if it is not a study's table."""
    try:
        return {row["run"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    except (csv.Error, KeyError) as error:
        raise UserError(f"{path}: not a study's table ({error})") from None


def _cell(content: Any) -> Any:
    """A cell as a number, or as text if it is none."""
    try:
        return float(content) if isinstance(content, str) and content else content
    except ValueError:
        return content
