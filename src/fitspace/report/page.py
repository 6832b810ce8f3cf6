"""Render the page and its plain text version from templates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path

from markupsafe import Markup

from fitspace.core.errors import UserError
from fitspace.core.files import digest
from fitspace.core.pages import png_uri, script_digest, templates
from fitspace.report import (
    agreement,
    answer,
    explained,
    origins,
    paragraph,
    rated,
    summary,
    tables,
    tuned,
    words,
)
from fitspace.report.drawn import BEST_STEPS, LEVELS, TESTS
from fitspace.report.figures import Figure, arm_label
from fitspace.report.inputs import COSTS, Inputs, Strip
from fitspace.report.results import TASK_CELLS, Results
from fitspace.report.tables import Column, Table

# Larger images are reduced on the page; the strips beside the page keep their size.
LARGEST_TILE = 128
TILES_IN_BAND = 4
TILES_IN_FRONT = 8
_ROLES = {"given": "Given", "target": "Target", "best": "Best cell", "worst": "Worst cell"}


@dataclass(frozen=True)
class Role:
    """A row of the gallery: its strip as a data URI, and its labels."""

    key: str
    label: str
    point: str | None
    value: object
    uri: str


@dataclass(frozen=True)
class Gallery:
    """The strips of one task, cut into bands of captions."""

    task: str
    size: int
    captions: list[str]
    bands: list[list[int]]
    roles: list[Role]


@dataclass(frozen=True)
class Front:
    """The first screen's samples: ``rows`` of roles, each the place of its strip in a gallery.

    A column is a gallery's position, a caption's, and its title.
    """

    columns: list[tuple[int, int, str]]
    rows: list[tuple[str, list[int]]]

    @property
    def bands(self) -> list[slice]:
        return [slice(i, i + TILES_IN_BAND) for i in range(0, len(self.columns), TILES_IN_BAND)]


def render(given: Inputs, found: Results, figures: list[Figure]) -> tuple[str, str]:
    """report.html and report.md as text."""
    origin = origins.of(found)
    env = templates(
        "fitspace.report",
        autoescape=_is_html,
        finalize=origin.show,
    )
    env.filters["md"] = escape_markdown
    env.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    script = _resource("report.js")
    front, galleries = answer.front(found, figures), _galleries(given, found)
    context = {
        "study": given.study,
        # What the file says, so that a key added to the schema later changes no digest.
        "study_digest": digest(given.study.model_dump(mode="json", exclude_unset=True)),
        "given": given,
        "found": found,
        "origins": origin.content,
        "seeds": [words.declared(f"seeds.{i}", s) for i, s in enumerate(given.study.seeds)],
        "metric": words.metric,
        "listed": words.listed,
        "answer": answer.sentences(found),
        "front": front,
        "front_samples": _front(galleries),
        "summary": summary.sentences(found),
        "spreads": {name: summary.spread(found, name) for name in found.responses},
        "through": summary.through(found),
        "tuning": summary.tuning(found),
        "stopping": summary.stopping(found),
        "preferred": summary.preferred(found),
        "notes": [*given.notes, *summary.notes(found)],
        "kinds": [figure.section for figure in figures],
        "figures": [figure for figure in figures if figure is not front],
        "galleries": galleries,
        "pictures": _pictures(given),
        "attributions": list(dict.fromkeys(strip.attribution for strip in given.strips)),
        "maps": _design_map(found),
        "parts": _parts(found),
        "model": _model(found),
        "made": paragraph.of(given, found, "plain").text.strip(),
        "tables": tables_of(given, found),
        "style": Markup(_resource("style.css")),
        "script": Markup(script),
        "script_digest": script_digest(script),
        "Markup": Markup,
    }
    html = env.get_template("report.html.j2").render(context)
    text = env.get_template("report.md.j2").render(context)
    return html, re.sub(r"\n{3,}", "\n\n", text)


def _is_html(template: str | None) -> bool:
    return template is None or not template.endswith(".md.j2")


def escape_markdown(text: object) -> str:
    """Escape user text to one line in which nothing is read as Markdown or HTML."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", line)


def quoted_answer(text: str) -> list[str]:
    """The sentences of a report.md's section Answer, as they were before they were escaped."""
    section = text.partition("\n## Answer\n")[2].partition("\n## ")[0]
    lines = (line for line in section.splitlines() if line and not line.startswith(("!", "[")))
    return [_unescaped(line) for line in lines]


def _unescaped(line: str) -> str:
    line = re.sub(r"\\([\\`*_\[\]|#~!])", r"\1", line)
    return line.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _resource(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


# --- gallery ------------------------------------------------------------------------------


def _galleries(given: Inputs, found: Results) -> list[Gallery]:
    galleries = []
    order = ["given", "target", "best", "worst", "none", "full"]
    for task in dict.fromkeys(strip.task for strip in given.strips):
        strips = [strip for strip in given.strips if strip.task == task]
        captions = strips[0].captions
        tiles = range(len(captions))
        bands = [list(tiles[i : i + TILES_IN_BAND]) for i in tiles[::TILES_IN_BAND]]
        strips.sort(key=lambda s: order.index(s.role) if s.role in order else len(order))
        roles = [_role(strip, found) for strip in strips]
        galleries.append(Gallery(task, strips[0].size, captions, bands, roles))
    return galleries


def _front(galleries: list[Gallery]) -> Front | None:
    """The best samples beside the target and the untouched base: the first captions of each task.

    Equal captions count once.
    """
    if not galleries:
        return None
    shown, several = galleries[:TILES_IN_FRONT], len(galleries) > 1
    columns = []
    for position, gallery in enumerate(shown):
        different = {caption: i for i, caption in reversed(list(enumerate(gallery.captions)))}
        places = sorted(different.values())[: TILES_IN_FRONT // len(shown)]
        titles = [f"{gallery.task}: " * several + gallery.captions[i] for i in places]
        columns += [(position, i, title) for i, title in zip(places, titles, strict=True)]
    rows = []
    for key in ("given", "target", "best", "none"):
        at = [next((i for i, r in enumerate(g.roles) if r.key == key), None) for g in shown]
        if None not in at:
            rows.append((shown[0].roles[at[0]].label, [at[position] for position, *_ in columns]))
    return Front(columns, rows)


def _role(strip: Strip, found: Results) -> Role:
    rows = found.runs[found.runs["run"] == strip.run]
    label, value = _ROLES.get(strip.role, strip.role), None
    if len(rows):
        row = rows.iloc[0]
        if strip.role not in _ROLES:
            label = arm_label(str(row["arm"]), str(row["method"]))
        elif found.runs["task"].nunique() > 1:  # each task has its own best and worst
            label = f"{label.partition(' ')[0]} here"
        if row[found.primary] == row[found.primary]:
            value = summary.value("runs.csv", row, found.primary)
    return Role(strip.role, label, strip.point, value, _data_uri(strip))


def _data_uri(strip: Strip) -> str:
    content = strip.path.read_bytes()
    if strip.size > LARGEST_TILE:
        from PIL import Image

        size = (LARGEST_TILE * len(strip.captions), LARGEST_TILE)
        try:
            with Image.open(BytesIO(content), formats=["PNG"]) as image:
                small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        except Exception as error:  # a decoder raises anything on damaged bytes
            raise UserError(f"{strip.path}: cannot be decoded ({error!r})") from None
        buffer = BytesIO()
        small.save(buffer, "PNG", optimize=True)
        content = buffer.getvalue()
    return png_uri(content)


def _pictures(given: Inputs) -> list[dict[str, object]]:
    """The pictures that explain runs, each with its label and size."""
    many = len({picture.task for picture in given.pictures}) > 1
    return [
        {
            "label": _ROLES.get(picture.role, picture.role) + f", {picture.task}" * many,
            "point": picture.point,
            "file": picture.file,
            "width": picture.size[0],
            "height": picture.size[1],
            "uri": png_uri(picture.content),
        }
        for picture in given.pictures
    ]


# --- design -------------------------------------------------------------------------------


def _design_map(found: Results) -> dict | None:
    """The cells of two factors: component letter and number of runs, or why there is no run."""
    if len(found.factors) != 2:
        return None
    down, across = found.factors
    if len(found.levels[across]) > len(found.levels[down]):
        down, across = across, down
    known = {
        tuple(str(row[factor]) for factor in found.factors): row
        for _, row in found.rows("cells.csv", response=found.primary).iterrows()
    }
    rows = []
    for one in found.levels[down]:
        cells = []
        for two in found.levels[across]:
            at = {down: one, across: two}
            cell = tuple(at[factor] for factor in found.factors)
            if cell in known:
                runs = summary.value("cells.csv", known[cell], "runs", words.count)
                part = int(known[cell]["component"])
                cells.append({"kind": "cell", "part": part, "letter": _letter(part), "runs": runs})
            else:
                cells.append({"kind": "planned" if cell in found.planned else "illegal"})
        rows.append((one, cells))
    return {"down": down, "across": across, "columns": found.levels[across], "rows": rows}


def _model(found: Results) -> str:
    """The terms of the model, blocks first."""
    analysis = found.analysis
    pairs = [":".join(pair) for pair in combinations(analysis.factors, 2)]
    interactions = pairs if analysis.interactions else []
    return " + ".join([*analysis.blocks.terms, *analysis.factors, *interactions])


def _letter(component: int) -> str:
    return chr(ord("A") + int(component) % 26)


def _parts(found: Results) -> list[list[object]]:
    """The connected components in words, largest first."""
    cells = found.rows("cells.csv", response=found.primary)
    sentences = []
    for number, rows in cells.groupby("component"):
        spans = [
            f"{factor} {words.listed(rows[factor].drop_duplicates())}" for factor in found.factors
        ]
        count = words.counted("cells.csv", rows.index)
        noun = "cell" if len(rows) == 1 else "cells"
        sentences.append([f"Part {_letter(number)}: ", count, f" {noun}; {'; '.join(spans)}."])
    return sentences


# --- tables -------------------------------------------------------------------------------

_SIZE = [
    Column("omega2_p", "partial ω²", limits=("omega2_p_low", "omega2_p_high")),
]
_TEST = [
    Column("df", "df", "count"),
    Column("F", "F"),
    Column("p", "p", "p"),
    Column("p_holm", "p (Holm)", "p"),
]


def tables_of(given: Inputs, found: Results) -> dict[str, object]:
    """The tables of the page: a table, a list or a mapping of some, or None, by what they show."""
    every = found.responses
    return {
        "ledger": _ledger(found),
        "descriptives": _descriptives(found),
        "anova": {name: _anova(found, name) for name in every},
        "over_tasks": [t for name in every if (t := _over_tasks(found, name))],
        "ranking": [t for name in every if (t := _ranking(found, name))],
        "left_out": [t for t in (_left_out(found), _without_level(found)) if t],
        "questions": [t for name in every if (t := _questions(found, name))],
        "against": {name: t for name in every if (t := _against(found, name))},
        "by_task": [t for name in every if (t := _by_task(found, name))],
        "assay": _assay(found),
        "trends": [t for name in every if (t := _trends(found, name))],
        "surfaces": [t for name in every if (t := _surfaces(found, name))],
        "best_steps": _best_steps(found),
        "within": [t for name in every for t in _within(found, name)],
        "pairs": {name: _pairs(found, name) for name in every},
        "contrasts": _contrasts(found),
        "robust": [t for name in every if (t := _robust(found, name))],
        "means": {
            name: {factor: _means(found, name, factor) for factor in found.analysis.factors}
            for name in every
        },
        "cells": {name: _cells(found, name) for name in every},
        "task_cells": [t for name in every if (t := _task_cells(found, name))],
        "baselines": {name: _baseline(found, name) for name in every},
        "equivalence": [t for name in every if (t := _equivalence(found, name))],
        "points": _points(found),
        "spread": _spread(found),
        "variances": _variances(found),
        "power": _power(found),
        "distances": _distances(found),
        "agreement": _agreement(found),
        "tuning": _tuning(found),
        "ratings": _ratings(found),
        **_explained(found),
        "runs": tables.of_runs(given.text, found.factors),
    }


def _rows_of(
    found: Results, file: str, columns: list[Column], caption: str, **where: object
) -> Table | None:
    """A table of the rows with these values; None if there are none."""
    rows = found.rows(file, **where)
    return tables.table(file, rows, columns, caption) if len(rows) else None


def _ledger(found: Results) -> Table:
    columns = [Column("arm", "arm", "text")]
    columns += [Column(n, n, "count") for n in ("planned", "ok", "failed", "missing")]
    caption = "Planned runs by outcome."
    return tables.table("ledger.csv", found.tables["ledger.csv"], columns, caption)


def _where(found: Results, response: str) -> str:
    scale = found.scale(response)
    label = words.metric(response).label
    return label if scale == "identity" else f"{label}, {scale} scale"


def _descriptives(found: Results) -> Table | None:
    columns = [Column("response", "response", "text"), Column("task", "task", "text")]
    columns += [Column("runs", "runs", "count"), Column("mean", "mean", "four")]
    columns += [Column("sd", "SD"), Column("min", "min", "four")]
    columns += [Column("median", "median", "four"), Column("max", "max", "four")]
    return _rows_of(found, "descriptives.csv", columns, "Runs of the design, as measured.")


def _anova(found: Results, response: str) -> Table:
    rows = found.rows("anova.csv", response=response)
    columns = [Column("source", "source", "text"), *_TEST, *_SIZE]
    columns += [Column("ss", "SS"), Column("mde", "detectable ω²")]
    caption = f"T{found.test[1:]} analysis of variance of {_where(found, response)}."
    return tables.table("anova.csv", rows, columns, caption)


def _over_tasks(found: Results, response: str) -> Table | None:
    columns = [Column("source", "source", "text"), Column("num_df", "df", "count")]
    columns += [Column("den_df", "error df", "count"), Column("F", "F")]
    columns += [Column("gg_eps", "ε (Greenhouse–Geisser)"), Column("hf_eps", "ε (Huynh–Feldt)")]
    columns += [Column("p", "p, uncorrected", "p"), Column("p_hf", "p (Huynh–Feldt)", "p")]
    columns += [Column("p_gg", "p (Greenhouse–Geisser)", "p")]
    columns += [Column("p_gg_holm", "p (Greenhouse–Geisser, Holm)", "p")]
    known = found.rows("over_tasks.csv").notna().any()  # of two tasks some are never known
    columns = [column for column in columns if known.get(column.name)]
    caption = f"For tasks in general: {_where(found, response)}."
    return _rows_of(found, "over_tasks.csv", columns, caption, response=response)


def _within(found: Results, response: str) -> list[Table]:
    """Levels and tests of what varies within a training."""
    levels = [Column("factor", "factor", "text"), Column("level", "level", "text")]
    levels += [
        Column("units", "trainings", "count"),
        Column("mean", "mean", limits=("low", "high")),
    ]
    tests = [Column("source", "source", "text"), Column("num_df", "df", "count")]
    tests += [Column("den_df", "error df", "count"), Column("F", "F")]
    tests += [Column("gg_eps", "ε (Greenhouse–Geisser)"), Column("p", "p, uncorrected", "p")]
    tests += [Column("p_gg", "p (Greenhouse–Geisser)", "p")]
    label = words.metric(response).label
    found_tables = [
        _rows_of(found, LEVELS, levels, f"Levels within trainings: {label}.", response=response),
        _rows_of(found, TESTS, tests, f"Tests within trainings: {label}.", response=response),
    ]
    return [table for table in found_tables if table is not None]


def _best_steps(found: Results) -> Table | None:
    """Each training's best step by its images of the validation captions."""
    columns = [Column("point", "point", "text"), Column("task", "task", "text")]
    columns += [Column("seed", "seed", "text"), Column("step", "best step", "count")]
    columns += [Column("last", "last step", "count"), Column("at_best", "at the best step", "four")]
    columns += [Column("at_last", "at the last step", "four"), Column("gain", "gain")]
    label = words.named(found.primary)
    caption = f"Best steps by validation captions; {label} of the captions that are reported."
    return _rows_of(found, BEST_STEPS, columns, caption)


def _agreement(found: Results) -> Table | None:
    """How alike the other metrics rank the points as the primary response does."""
    rows = found.rows(agreement.NAME, metric=found.primary)
    columns = [Column("other", "metric", "text"), Column("points", "points", "count")]
    columns += [Column("estimate", "rank correlation", limits=("low", "high"))]
    label = words.named(found.primary)
    caption = f"Agreement of other metrics with {label}; signs turned so that higher is better."
    return tables.table(agreement.NAME, rows, columns, caption) if len(rows) else None


def _ratings(found: Results) -> Table | None:
    """What people preferred, by point."""
    columns = [Column("point", "point", "text"), Column("comparisons", "comparisons", "count")]
    columns += [Column("wins", "preferred", "count"), Column("ties", "ties", "count")]
    columns += [Column("ability", "ability", limits=("low", "high"))]
    return _rows_of(found, rated.ABILITIES, columns, "What people preferred, by point.")


def _tuning(found: Results) -> Table | None:
    """Each point's levels: the one that was taken, and the others against it."""
    rows = found.rows(tuned.NAME)
    if rows.empty:
        return None
    said = {(True, True): "taken", (False, True): "not separable", (False, False): ""}
    taken = [said[best, tied] for best, tied in zip(rows["best"], rows["tied"], strict=True)]
    columns = [Column("point", "point", "text")]
    columns += [Column(name, name, "text") for name in found.study.tuning.factors]
    columns += [Column("runs", "runs", "count"), Column("mean", "mean", "four")]
    columns += [Column("worse", "worse than the best by", limits=("low", "high"))]
    columns += [Column("taken", "", "text")]
    label = words.metric(rows["response"].iloc[0]).label
    scale = "" if rows["scale"].iloc[0] == "identity" else f", {rows['scale'].iloc[0]} scale"
    return tables.table(tuned.NAME, rows.assign(taken=taken), columns, f"Tuning: {label}{scale}.")


def _ranking(found: Results, response: str) -> Table | None:
    columns = [Column("factor", "factor", "text"), Column("omega2_p", "adjusted partial ω²")]
    columns += [Column("rank_one", "probability of ranking first"), Column("next", "next", "text")]
    columns += [Column("difference", "difference", limits=("low", "high"))]
    caption = f"Which factor matters most: {_where(found, response)}."
    return _rows_of(found, "ranking.csv", columns, caption, response=response)


def _left_out(found: Results) -> Table | None:
    columns = [Column("response", "response", "text"), Column("left_out", "left out", "text")]
    columns += [Column("factor", "factor", "text"), Column("omega2_p", "adjusted partial ω²")]
    columns += [Column("p", "p", "p"), Column("rank", "rank", "count")]
    return _rows_of(found, "leave_one_out.csv", columns, "The analysis without one task.")


def _without_level(found: Results) -> Table | None:
    columns = [Column("response", "response", "text"), Column("left_out", "of", "text")]
    columns += [Column("level", "left out", "text")]
    columns += [Column("factor", "factor", "text"), Column("omega2_p", "adjusted partial ω²")]
    columns += [Column("p", "p", "p"), Column("rank", "rank", "count")]
    return _rows_of(found, "leave_one_level_out.csv", columns, "The analysis without one level.")


_DIFFERENCE = [
    Column("estimate", "difference", limits=("low", "high")),
    Column("se_limits", "SE"),
    Column("df_limits", "df"),
]


_DECIDING = [
    Column("p_own_spreads", "p (own spreads)", "p"),
    Column("p_deciding", "larger", "p"),
]


def _questions(found: Results, response: str) -> Table | None:
    difference, *error = _DIFFERENCE
    columns = [Column("contrast", "question", "text"), Column("of", "of", "text"), difference]
    columns += [Column("p_deciding_holm", "p (Holm)", "p"), *error]
    columns += [Column("F", "F"), Column("p", "p, one variance", "p")]
    columns += [Column("p_own_spreads", "p, own spreads", "p")]
    caption = f"The study's questions: {_where(found, response)}."
    return _rows_of(found, "questions.csv", columns, caption, response=response)


def _against(found: Results, response: str) -> Table | None:
    columns = [Column("level", "point", "text"), Column("control", "against", "text")]
    columns += [*_DIFFERENCE, Column("p_adjusted", "p (Dunnett)", "p"), *_DECIDING]
    controls = set(found.rows("against.csv").get("control", ()))
    full = " and full fine-tuning" if "full" in controls else ""
    caption = f"Differences from the untouched base{full}: {_where(found, response)}."
    return _rows_of(found, "against.csv", columns, caption, response=response)


def _by_task(found: Results, response: str) -> Table | None:
    columns = [Column("task", "task", "text"), Column("point", "point", "text"), _DIFFERENCE[0]]
    columns += [Column("se", "SE"), Column("df", "df", "count")]
    columns += [Column("p_adjusted", "p (Dunnett)", "p")]
    caption = f"Differences from the untouched base by task: {_where(found, response)}."
    return _rows_of(found, "by_task.csv", columns, caption, response=response)


def _assay(found: Results) -> Table | None:
    columns = [Column("response", "response", "text"), Column("task", "task", "text")]
    columns += [Column("gain", "gain of full fine-tuning"), Column("se", "SE")]
    columns += [Column("df", "df", "count"), Column("p", "p", "p"), Column("beaten", "", "text")]
    caption = (
        "Full fine-tuning against the untouched base: where it gains nothing, nothing is as good."
    )
    rows = found.rows("assay.csv")
    if rows.empty:
        return None
    beaten = rows["beaten"].map({True: "better than the base", False: "not shown to be better"})
    return tables.table("assay.csv", rows.assign(beaten=beaten), columns, caption)


def _trends(found: Results, response: str) -> Table | None:
    columns = [Column("factor", "factor", "text"), Column("source", "trend", "text")]
    columns += [Column("estimate", "estimate", limits=("low", "high")), Column("se", "SE")]
    columns += [Column("num_df", "df", "count"), Column("den_df", "error df", "count")]
    columns += [Column("F", "F"), Column("p", "p", "p")]
    caption = f"Trends over factors that are numbers: {_where(found, response)}."
    return _rows_of(found, "trends.csv", columns, caption, response=response)


def _surfaces(found: Results, response: str) -> Table | None:
    columns = [Column("of", "over", "text"), Column("source", "term", "text")]
    columns += [Column("estimate", "estimate", limits=("low", "high")), Column("se", "SE")]
    columns += [Column("at", "in its own units"), Column("num_df", "df", "count")]
    columns += [Column("den_df", "error df", "count"), Column("F", "F"), Column("p", "p", "p")]
    columns += [Column("kind", "stationary point", "text")]
    caption = f"Second-order surfaces, on the factors' scores: {_where(found, response)}."
    return _rows_of(found, "surfaces.csv", columns, caption, response=response)


def _pairs(found: Results, response: str) -> Table | None:
    columns = [Column("factor", "factor", "text"), Column("level", "level", "text")]
    columns += [Column("other", "other", "text"), *_DIFFERENCE]
    columns += [Column("p_adjusted", "p (Tukey)", "p"), *_DECIDING]
    caption = f"All differences of two levels: {_where(found, response)}."
    return _rows_of(found, "pairs.csv", columns, caption, response=response)


def _contrasts(found: Results) -> Table | None:
    columns = [Column("response", "response", "text"), Column("contrast", "contrast", "text")]
    columns += [Column("estimate", "estimate"), Column("pse", "pseudo standard error")]
    columns += [Column("margin", "margin"), Column("simultaneous_margin", "simultaneous margin")]
    columns += [Column("active", "active", "text")]
    return _rows_of(found, "contrasts.csv", columns, "Contrasts and Lenth's margins of error.")


def _robust(found: Results, response: str) -> Table | None:
    columns = [Column("source", "source", "text"), Column("test", "test", "text")]
    columns += [Column("df", "df", "count"), Column("df2", "error df"), *_TEST[1:]]
    caption = f"The same hypotheses by other tests: {_where(found, response)}."
    return _rows_of(found, "robustness.csv", columns, caption, response=response)


def _equivalence(found: Results, response: str) -> Table | None:
    columns = [Column("point", "point", "text")]
    columns += [Column("difference", "difference", limits=("low", "high"))]
    columns += [*_DIFFERENCE[1:], Column("margin", "margin")]
    columns += [Column("p_noninferior", "p (non-inferior)", "p")]
    columns += [Column("p_equivalent", "p (equivalent)", "p")]
    columns += [Column("noninferior", "non-inferior", "text")]
    columns += [Column("equivalent", "equivalent", "text")]
    label = words.metric(response).label
    caption = f"Against full fine-tuning: {label}. p values are adjusted over the points."
    return _rows_of(found, "equivalence.csv", columns, caption, response=response)


def _points(found: Results) -> Table | None:
    columns = [Column("point", "point", "text"), Column("runs", "runs", "count")]
    names = found.tables["points.csv"].columns
    columns += [Column(name, name, "four") for name in names if name in (*COSTS, *words.METRICS)]
    caption = "Every point: its cost (median of runs) and its metrics (mean of runs)."
    return _rows_of(found, "points.csv", columns, caption)


def _distances(found: Results) -> Table | None:
    """The Fréchet distance, its jackknife estimate with less bias, and KID."""
    if "fd_effnet_jackknife" not in found.tables["points.csv"]:
        return None
    columns = [Column("point", "point", "text"), Column("runs", "runs", "count")]
    columns += [Column("n", "n", "count")]
    columns += [Column("fd_effnet", "Fréchet distance", "four")]
    columns += [Column("fd_effnet_jackknife", "jackknife", "four")]
    columns += [Column("kid_effnet", "KID", "four")]
    return _rows_of(found, "points.csv", columns, "Distances by point, mean of runs.")


def _explained(found: Results) -> dict[str, Table | None]:
    """Sensitivity by point, beside the metrics and between factors and outcome; the anatomy."""
    points = [Column("point", "point", "text"), Column("runs", "runs", "count")]
    points += [Column("adjusted", "prompt sensitivity", limits=("low", "high"))]
    points += [Column("untouched", "untouched model")]
    both = [Column("response", "metric", "text"), Column("measure", "correlation", "text")]
    both += [
        Column("cells", "cells", "count"),
        Column("estimate", "estimate", limits=("low", "high")),
    ]
    through = [Column("factor", "factor", "text"), Column("df", "df", "count")]
    through += [Column("total", "effect"), Column("indirect", "through sensitivity")]
    through += [Column("direct", "beside it"), Column("share", "share", limits=("low", "high"))]
    through += [Column("slope", "slope", limits=("slope_low", "slope_high"))]
    anatomy = [Column("point", "point", "text"), Column("part", "part", "text")]
    anatomy += [Column("block", "block", "code"), Column("kind", "kind", "text")]
    anatomy += [Column("value", "value"), Column("relative", "relative to the base")]
    beside = explained.outcome(found.responses)
    label = "" if beside is None else _where(found, beside)
    return {
        "sensitivity": _rows_of(
            found, "sensitivity_points.csv", points, "Prompt sensitivity by point."
        ),
        "correlation": _rows_of(
            found, "correlation.csv", both, "Prompt sensitivity and other metrics over cells."
        ),
        "mediation": _rows_of(
            found, "mediation.csv", through, f"Effects on {label} through prompt sensitivity."
        ),
        "anatomy": _rows_of(found, "anatomy_points.csv", anatomy, "What parameters changed."),
    }


def _power(found: Results) -> Table | None:
    columns = [Column("factor", "factor", "text"), Column("ratio", "difference / residual SD")]
    columns += [Column("delta", "difference"), Column("power", "power")]
    count = len(found.analysis.factors)
    level = "5%" if count == 1 else f"5% / {count} (Holm's first)"
    caption = f"Power at {level}: {_where(found, found.primary)}."
    return _rows_of(found, "power.csv", columns, caption, response=found.primary)


def _means(found: Results, response: str, factor: str) -> Table:
    rows = found.rows("effects.csv", response=response, factor=factor).copy()
    tied = "not separable from the best" if rows["tied_with_best"].sum() > 1 else "best"
    rows["best"] = rows["tied_with_best"].map({True: tied, False: ""})
    rows.loc[~rows["estimable"].astype(bool), "best"] = "not estimable"
    scale = found.scale(response)
    columns = [
        Column("level", factor, "text"),
        Column("cells", "cells", "count"),
        Column("runs", "runs", "count"),
        Column("mean_measured", "mean", "four", limits=("low_measured", "high_measured")),
        Column("se", "SE" if scale == "identity" else f"SE ({scale})"),
        Column("df", "df", "count"),
        Column("best", "", "text"),
    ]
    caption = f"Marginal means of {words.named(response)} by {factor}."
    return tables.table("effects.csv", rows, columns, caption)


def _cells(found: Results, response: str) -> Table:
    rows = found.best_cells(response).copy()
    columns = [Column(factor, factor, "text") for factor in found.factors]
    columns += [
        Column("runs", "runs", "count"),
        Column("mean", "mean", "aligned"),
        Column("replicate_sd", "SD of seeds"),
        Column("min", "min", "aligned"),
        Column("max", "max", "aligned"),
        Column("adjusted", "adjusted mean", "four", limits=("low", "high")),
    ]
    alike = " Intervals take runs to spread alike." if rows["low"].notna().any() else ""
    caption = f"Cells by {words.named(response)}, as measured, best first.{alike}"
    return tables.table("cells.csv", rows, columns, caption)


def _task_cells(found: Results, response: str) -> Table | None:
    columns = [Column(name, name, "text") for name in ("task", *found.factors)]
    columns += [Column("runs", "runs", "count"), Column("mean", "mean", "aligned")]
    columns += [Column("replicate_sd", "SD of seeds")]
    caption = f"Cells of each task: {words.metric(response).label}, as measured."
    return _rows_of(found, TASK_CELLS, columns, caption, response=response)


def _baseline(found: Results, response: str) -> Table | None:
    columns = [Column("arm", "baseline", "text"), Column("runs", "runs", "count")]
    columns += [Column("mean", "mean", "aligned"), Column("sd", "SD")]
    columns += [Column("min", "min", "aligned"), Column("max", "max", "aligned")]
    over = ", over all tasks" if found.runs["task"].nunique() > 1 else ""
    caption = f"Baselines: {words.metric(response).label}, as measured{over}."
    return _rows_of(found, "baselines.csv", columns, caption, response=response)


def _spread(found: Results) -> Table:
    columns = [
        Column("response", "response", "text"),
        Column("scale", "scale", "text"),
        Column("cell_sd", "SD between cells"),
        Column("replicate_sd", "SD within cells"),
        Column("ratio", "ratio"),
    ]
    caption = "Spread of the cell means, and of runs within a cell beside what their seed shares."
    return tables.table("spread.csv", found.tables["spread.csv"], columns, caption)


def _variances(found: Results) -> Table | None:
    """How the runs of levels spread, where that can be tested."""
    columns = [
        Column("response", "response", "text"),
        Column("source", "groups", "text"),
        Column("residuals", "residuals of", "text"),
        Column("F", "F"),
        Column("df1", "df₁", "count"),
        Column("df2", "df₂", "count"),
        Column("p", "p", "p"),
    ]
    caption = (
        "Tests of equal variances: Levene's of residuals from cell means, Brown–Forsythe's of the "
        "model's."
    )
    rows = found.rows("variances.csv")
    rows = rows[rows["p"].notna()]
    return tables.table("variances.csv", rows, columns, caption) if len(rows) else None
