"""From finished runs to a report's inputs: its tables and a gallery of samples.

Everything after this reads ``reports/<study>`` only, so a report can be made again from git
alone, without results, models or torch.
"""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

from fitspace.core.errors import UserError
from fitspace.core.files import read_json, replacing, sha256, write_json, write_text
from fitspace.core.texts import cell
from fitspace.explaining.reading import TUNED, UNTOUCHED, read_explanation
from fitspace.explaining.reading import measured as explained
from fitspace.metrics import METRICS, read_metrics
from fitspace.plan import Plan, Run, own_drawing
from fitspace.results import lineage, tuning
from fitspace.stages.sidecars import load_sidecar, verified

LOGS = Path("results/logs")


GALLERY_IMAGES = 24
PICTURED = 3  # tasks whose best and worst runs' explanations are shown
AGAINST_N, DATA_NOTES = "against_n.csv", "notes.json"
VALIDATED = "_validation"  # ends the column of a response on the captions of validation
SENSITIVITY, ANATOMY = "sensitivity.csv", "anatomy.csv"


_COST = ("trainable", "total", "final_loss", "train_seconds", "peak_memory_mb", "sample_seconds")


def collect(plan: Plan, partial: bool = False) -> list[dict[str, Any]]:
    """One tidy row per planned run, in the plan's order, with every artefact's hash verified.

    With ``partial`` an unfinished run has a row with status missing and no numbers.

    Raises
    ------
    UserError : every run whose metrics are missing or changed, by name.
    """
    rows, problems = [], []
    for run in plan.runs:
        if partial and not run.finished:
            rows.append(identity(plan, run, "missing") | _keys(run))
            continue
        try:
            rows.append(row(plan, run))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return rows


def identity(plan: Plan, run: Run, status: str) -> dict[str, Any]:
    """The columns of a run's row that identify it: point, task, seed, status and factor levels."""
    return {
        "run": run.name,
        "point": run.point.name,
        "arm": run.point.arm,
        "method": run.point.method,
        "task": run.task.name,
        "seed": run.seed,
        "status": status,
        **{factor: run.point.factors.get(factor) for factor in plan.factors},
    }


def row(plan: Plan, run: Run) -> dict[str, Any]:
    """The row of a finished run. A run that diverged has status failed and the reason instead of
    metrics.

    Raises UserError if its metrics are missing or changed.
    """
    responses = plan.study.analysis.responses
    facts = {stage.name: verified(stage)["facts"] for stage in run.ends}["evaluate"]
    measured = read_metrics(run)
    measured.pop("against_n", None)  # no cell of a table: see against_n
    validated = measured.pop("validation", {})
    status = "failed" if "diverged" in measured else "ok"
    # The evaluate sidecar has the cost of the stages before it, so pulled metrics are enough.
    upstream = facts["sample"] | (facts["sample"]["train"] or {"trainable": 0})
    cost = {name: upstream[name] for name in _COST if name in upstream}
    if cost.get("total"):
        cost["trainable_percent"] = 100 * cost["trainable"] / cost["total"]
    return {
        **identity(plan, run, status),
        "steps": (run.point.train or {}).get("steps"),
        **cost,
        **measured,
        **{f"{name}{VALIDATED}": validated[name] for name in responses if name in validated},
        **(explained(run) if own_drawing(plan.study, run.point) else {}),
        **_keys(run),
    }


def _keys(run: Run) -> dict[str, Any]:
    return {
        "train_key": run.train.key if run.train else None,
        "sample_key": run.sample.key,
        **({"explain_key": run.explain.key} if run.explain else {}),
        "evaluate_key": run.evaluate.key,
    }


def against_n(plan: Plan) -> list[dict[str, Any]]:
    """Both distances of every run against the number of samples: one row per run and number.

    Runs of DreamBooth tasks have no rows, because nothing is measured against held-out images.
    """
    finished = (r for r in plan.runs if (r.evaluate.folder / "metrics.json").exists())
    return [row for run in finished for row in curve(run)]


def curve(run: Run) -> list[dict[str, Any]]:
    """The rows of `against_n` of a finished run."""
    return [{"run": run.name, **row} for row in read_metrics(run).get("against_n", [])]


def explanations(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Two tables of every explained run, by their file: its sensitivity, its anatomy.

    Sensitivity: a row for each model (tuned, untouched) and time step, and one for each block,
    mean over time steps. Anatomy: a row for each ``part`` (change, gamma, rank).
    """
    found: dict[str, list[dict[str, Any]]] = {SENSITIVITY: [], ANATOMY: []}
    for run in plan.runs:
        if run.explain is not None and run.explain.sidecar.exists():
            for name, rows in explanation(plan, run).items():
                found[name] += rows
    return found


def explanation(plan: Plan, run: Run) -> dict[str, list[dict[str, Any]]]:
    """The rows of `explanations` of a finished run; none if it diverged.

    Of several looks at one training, its own has them.
    """
    content, name = read_explanation(run), {"run": run.name}
    if "diverged" in content or not own_drawing(plan.study, run.point):
        return {SENSITIVITY: [], ANATOMY: []}
    moved, anatomy = [], content["anatomy"]
    for model in (TUNED, UNTOUCHED):
        own = name | {"model": model}
        steps = zip(content["steps"], content[model]["by_time"], strict=True)
        moved += [own | {"step": step, "block": None, "ratio": ratio} for step, ratio in steps]
        moved += [
            own | {"step": None, "block": block, "ratio": _mean(ratios)}
            for block, ratios in content[model]["by_block"].items()
        ]
    changes = [
        {"block": row["block"], "kind": row["kind"], "value": row["change"], "base": row["base"]}
        for row in anatomy["changes"]
    ]
    gamma = [
        {"block": row["block"], "kind": row["layer"], "value": row["mean"]}
        for row in anatomy["gamma"]
    ]
    rank = [
        {"block": row["block"], "kind": row["layer"], "value": row["effective_rank"]}
        for row in anatomy["rank"]
    ]
    parts = {"change": changes, "gamma": gamma, "rank": rank}
    empty = {"base": None}
    rows = [name | {"part": part} | empty | row for part, own in parts.items() for row in own]
    return {SENSITIVITY: moved, ANATOMY: rows}


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as CSV, with the keys in the last columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    last = ("train_key", "sample_key", "explain_key", "evaluate_key")
    columns = [c for c in columns if c not in last] + [c for c in last if c in columns]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([cell(row.get(c)) for c in columns])
    write_text(path, text.getvalue())


def write_gallery(plan: Plan, rows: list[dict[str, Any]], folder: Path) -> None:
    """Write strips of first samples of selected points, with targets, captions and given images.

    For the first seed of each task these are the best and the worst point of the analysed arms,
    by the study's first response averaged over seeds, and every baseline. Writes
    ``gallery.json`` and one PNG per strip, ``GALLERY_IMAGES`` images side by side. If samples are
    missing (only metrics were pulled), an existing gallery of the same runs is kept.

    Raises
    ------
    UserError : samples are missing, and the gallery shows other runs.
    """
    by_name = {run.name: run for run in plan.runs if own_drawing(plan.study, run.point)}
    rows = [row for row in rows if row["run"] in by_name]
    chosen = [(task, _telling(plan, rows, task)) for task in (t.name for t in plan.study.tasks)]
    missing = [
        f"{by_name[name].sample.folder}: missing; the gallery shows its samples"
        for _, shown in chosen
        for name in shown.values()
        if not by_name[name].sample.sidecar.exists()
    ]
    if missing:
        if _shown_already(folder, {name for _, shown in chosen for name in shown.values()}):
            return
        raise UserError(missing)
    entries = []
    for task, shown in chosen:
        runs = {role: by_name[name] for role, name in shown.items()}
        entries += _task_gallery(plan, task, runs, folder)
    write_json(folder / "gallery.json", entries)
    listed = {folder / entry["file"] for entry in entries}
    for strip in set((folder / "gallery").rglob("*.png")) - listed:
        strip.unlink()


def _shown_already(folder: Path, names: set[str]) -> bool:
    try:
        entries = read_json(folder / "gallery.json", list)
        present = all((folder / e["file"]).exists() for e in entries)
        return present and {e["run"] for e in entries if e["run"]} == names
    except (UserError, KeyError, TypeError):
        return False


def _task_gallery(plan: Plan, task: str, runs: dict[str, Run], folder: Path) -> list[dict]:
    from fitspace.data.dreambooth import gallery
    from fitspace.data.prepared import read_given, read_images, read_manifest
    from fitspace.stages.evaluate import drawn

    prepared = next(iter(runs.values())).prepare
    manifest = read_manifest(prepared)
    targets, given = read_images(prepared, manifest), read_given(prepared, manifest)
    samples, of_each = plan.study.sample.prompts, 1
    if manifest.get("roles"):
        numbers, captions, target = gallery(manifest, targets, samples, GALLERY_IMAGES)
    else:
        of_each = plan.study.sample.images_per_prompt
        numbers = list(range(min(GALLERY_IMAGES, samples)))
        captions = [manifest["captions"][manifest["prompts"][i]] for i in numbers]
        shown = [manifest["prompt_images"][i] for i in numbers]
        target = targets[shown]
    strips = {} if given is None else {"given": given[shown]}
    strips["target"] = target
    for role, run in runs.items():
        strips[role] = drawn(plan.study, run)[[i * of_each for i in numbers]]
    entries = []
    for role, images in strips.items():
        file = f"gallery/{task}/{role}.png"
        _write_strip(images, folder / file)
        run = runs.get(role)
        entries.append(
            {
                "task": task,
                "role": role,
                "run": run.name if run else None,
                "point": run.point.name if run else None,
                "file": file,
                "size": int(images.shape[1]),
                "captions": captions,
                "attribution": manifest["attribution"],
            }
        )
    return entries


def _telling(plan: Plan, rows: list[dict[str, Any]], task: str) -> dict[str, str]:
    """Role -> run name: best, worst, and each baseline arm by its title."""
    response = plan.study.analysis.responses[0]
    rows = [r for r in rows if r["task"] == task and r["status"] == "ok"]
    if not rows:
        raise UserError(f"task {task!r}: no finished run; nothing to report")
    factors = plan.study.analysis.factors
    means: dict[str, list[float]] = {}
    for row in rows:
        # The untouched base is the baseline of the others, never one of them.
        if row["method"] != "none" and all(row.get(f) is not None for f in factors):
            means.setdefault(row["point"], []).append(row[response])
    ranked = sorted(
        means, key=lambda p: sum(means[p]) / len(means[p]), reverse=not METRICS[response].lower
    )
    run_of = {row["point"]: row["run"] for row in reversed(rows)}
    shown = {}
    if ranked:
        shown = {"best": run_of[ranked[0]], "worst": run_of[ranked[-1]]}
    for row in rows:
        if row["point"] not in means:
            shown.setdefault(row["arm"], run_of[row["point"]])
    return shown


def picture(task: str, role: str) -> str:
    """Where in a report's folder the picture of a run's explanation is; roles as in the gallery."""
    return f"explained/{task}/{role}.png"


def write_pictures(plan: Plan, rows: list[dict[str, Any]], folder: Path) -> None:
    """Copy the pictures that explain the best and the worst run of the gallery, of the first tasks.

    A picture that is not here (only metrics were pulled) stays, if it is the one in the folder's
    provenance.json.

    Raises UserError for a provenance.json that cannot be read.
    """
    kept = set()
    by_name = {run.name: run for run in plan.runs if own_drawing(plan.study, run.point)}
    rows = [row for row in rows if row["run"] in by_name and row["status"] == "ok"]
    tasks = dict.fromkeys(row["task"] for row in rows if plan.study.explain)
    known = lineage.read(folder).records if tasks else {}
    for task in list(tasks)[:PICTURED]:
        shown = _telling(plan, rows, task)
        for role in [role for role in ("best", "worst") if role in shown]:
            stage, path = by_name[shown[role]].explain, folder / picture(task, role)
            record = known.get(("explain", stage.key))
            wanted = None if record is None else record.outputs.get("difference.png")
            places = [stage.folder / "difference.png", path]
            found = next((p for p in places if p.is_file() and sha256(p) == wanted), None)
            if found is not None:
                kept.add(path)
                with replacing(path) as temporary:
                    shutil.copyfile(found, temporary)
    for path in set((folder / "explained").rglob("*.png")) - kept:
        path.unlink()


def write_design(plan: Plan, path: Path) -> None:
    """Write the design beside the table: points, planned runs, cells left out with reasons."""
    points = [
        {"point": p.name, "arm": p.arm, "method": p.method, "factors": p.factors,
         "settings": p.settings, "train": p.train}
        | ({"sample": p.sample} if p.within else {})
        for p in plan.points
    ]  # fmt: skip
    write_json(
        path,
        {
            "study": plan.study.model_dump(exclude_none=True),
            "points": points,
            "runs": len(plan.runs),
            "dropped": plan.dropped,
        },
    )


def write_data_notes(plan: Plan, folder: Path) -> None:
    """What was changed, left out, cut or guessed in a study's images and captions: notes.json.

    Task -> notes; those on images are counted by what was done. There is no file where there is
    none. Of a task whose prepared files are not here what the file says stays.
    """
    from fitspace.data.survey import kinds

    path = folder / DATA_NOTES
    before = read_json(path) if path.exists() else {}
    found = {}
    for run in {run.task.name: run for run in plan.runs}.values():
        task, prepared = run.task.name, run.prepare.folder / "manifest.json"
        if not prepared.exists():
            found[task] = before.get(task, [])
            continue
        manifest = read_json(prepared)
        images = {example["name"] for example in manifest["examples"]}
        of_image = [n for n in manifest["notes"] if n.partition(": ")[0] in images]
        of_task = [n for n in manifest["notes"] if n.partition(": ")[0] not in images]
        counted = [f"images: {kind}" for kind in kinds(of_image)]
        found[task] = [*counted, *of_task, *_trained_on(manifest, plan.study.sample.prompts)]
        if run.reference.sidecar.exists():
            found[task] += load_sidecar(run.reference.sidecar)["facts"].get("notes", [])
    found = {task: notes for task, notes in found.items() if notes}
    if found:
        write_json(path, found)
    else:
        path.unlink(missing_ok=True)


def _trained_on(manifest: dict[str, Any], scored: int) -> list[str]:
    """How many of the captions that are scored ask for an image that is trained on as well."""
    if manifest.get("roles"):
        return []  # of a subject all images are trained on, and none is asked for
    trained = {e["sha256"] for e in manifest["examples"] if e["split"] == "train"}
    held_out = [e["sha256"] for e in manifest["examples"] if e["split"] == "test"]
    asked = [held_out[row] for row in manifest["prompt_images"][:scored]]
    twins = sum(digest in trained for digest in asked)
    ask = "asks" if twins == 1 else "ask"
    said = f"of the {len(asked)} captions that are scored {twins} {ask} for such an image"
    return [said] if twins else []


def _write_strip(images: Any, path: Path) -> None:
    import numpy as np
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(np.concatenate(list(images), axis=1)).save(temporary, "PNG")


def unfinished(plan: Plan) -> list[str]:
    """Each unfinished run, with its first missing stage and the last line of that stage's
    log."""
    found = []
    for run in plan.runs:
        if run.finished:
            continue
        stage = next(s for s in run.stages if not s.sidecar.exists())
        log = LOGS / stage.name / f"{stage.folder.name}.log"
        try:
            # splitlines: a progress bar's carriage returns end lines as well.
            said = [s for s in log.read_text("utf-8", errors="replace").splitlines() if s.strip()]
        except OSError:
            said = []
        found.append(f"{run.name}: no {stage.name}: {said[-1] if said else 'never started'}")
    return found


def collect_into(plan: Plan, folder: Path, partial: bool = False) -> None:
    """Write all inputs of a report into its folder.

    runs.csv, against_n.csv, sensitivity.csv, anatomy.csv, tuning.csv, design.json, notes.json,
    provenance.json, the gallery and pictures of explanations. With ``partial`` runs that have not
    finished are rows with status missing; else they are an error.
    """
    rows = collect(plan, partial)
    others = {AGAINST_N: against_n(plan), **explanations(plan)}
    known = lineage.read(folder) if (folder / lineage.NAME).exists() else None
    found = lineage.collect(plan, known)
    write_gallery(plan, rows, folder)
    write_design(plan, folder / "design.json")
    write_data_notes(plan, folder)
    tuning.write(plan, folder)
    for name, own in others.items():
        if own:
            write_table(own, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier study file
    lineage.write(found, folder)
    write_pictures(plan, rows, folder)
    write_table(rows, folder / "runs.csv")
