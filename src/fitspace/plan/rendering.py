"""The output of `fitspace plan` as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fitspace.plan.table import STAGES


def render(overview: dict[str, Any]) -> str:
    """The overview as text for a terminal."""
    sections = (
        _render_points(overview),
        _render_tuning(overview["tuning"]),
        _render_cells(overview),
        _render_effects(overview),
        _render_power(overview["power"]),
        _render_metrics(overview),
        _render_cost(overview),
        _render_stages(overview),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _render_points(overview: dict[str, Any]) -> list[str]:
    rows = [
        [
            p["point"],
            f"{p['trainable']:,}",
            f"{p['percent']:.3f}",
            "-" if p["memory"]["train"] is None else in_bytes(p["memory"]["train"]),
            "-" if p["step_flop"] is None else f"{p['step_flop'] / 1e12:.3g}",
        ]
        for p in overview["points"]
    ]
    header = ["point", "trainable", "% of base", "memory", "TFLOP per step"]
    if all(p["step_flop"] is None for p in overview["points"]):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return [
        f"study {overview['study']}: {len(overview['points'])} points × "
        f"{len(overview['tasks'])} tasks × {len(overview['seeds'])} seeds = "
        f"{len(overview['runs'])} runs",
        "",
        *_aligned(header, rows),
    ]


def _render_tuning(tuning: dict[str, Any] | None) -> list[str]:
    if tuning is None:
        return []
    state = "are chosen" if tuning["chosen"] else "are not chosen yet"
    settings = ", ".join(tuning["settings"])
    runs = f"{tuning['runs']} runs of {tuning['study']}"
    return [f"tuning: {runs} choose {settings} for each point; they {state}"]


def _render_cells(overview: dict[str, Any]) -> list[str]:
    lines = []
    if overview["illegal_cells"]:
        lines.append(f"{len(overview['illegal_cells'])} illegal cells left out:")
        lines += [f"  {cell}" for cell in overview["illegal_cells"]]
    for subset in overview["subsets"]:
        lines.append(
            f"{subset['arm']}: {len(subset['cells'])} of {subset['legal']} legal cells, chosen "
            f"D-optimally for the main effects; D-efficiency per run relative to all cells: "
            f"{subset['d_efficiency']:.3f}"
        )
        lines += [f"  {', '.join(f'{k}={v}' for k, v in cell.items())}" for cell in subset["cells"]]
    groups = overview["components"]
    if len(groups) > 1:
        sizes = ", ".join(str(len(g)) for g in groups)
        lines.append(
            f"{len(groups)} unconnected parts of {sizes} cells: effects are not comparable "
            "between them; effects and power refer to the first"
        )
    return lines


def _render_effects(overview: dict[str, Any]) -> list[str]:
    if not overview["effects"]:
        return overview["notes"]
    rows = [
        [e["effect"], str(e["df"]), str(e["nominal_df"]), _aliased(e)] for e in overview["effects"]
    ]
    lines = ["estimable effects: estimable and nominal degrees of freedom"]
    lines += _aligned(["effect", "df", "of", ""], rows, left=(0, 3))
    lines += overview["notes"]
    together = [a for a in overview["association"] if a["canonical"] > 1e-6]
    for a in together:
        lines.append(
            f"{a['factor']} and {a['other']} are associated: Cramér's V {a['cramers_v']:.2f}, "
            f"canonical correlation {a['canonical']:.2f} (1: aliased)"
        )
    if overview["association"] and not together:
        lines.append("all factors are orthogonal to each other")
    return lines


def _aliased(effect: dict[str, Any]) -> str:
    others, whole = effect["aliased_with"], effect["df"] == effect["nominal_df"]
    if not others:
        return "" if whole else "the rest has no cells"
    named = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
    if whole:
        return f"aliased with {named}; estimable if these are zero"
    return f"{'the rest ' if effect['df'] else ''}aliased with {named}"


def _render_power(power: dict[str, Any]) -> list[str]:
    if not power["factors"]:
        return []
    spread = power["sigma"]
    scale = "as measured" if spread["scale"] == "identity" else f"on the scale {spread['scale']}"
    ratios = list(power["factors"][0]["power"])
    rows = [
        [f["factor"], str(f["df"]), _text(f["residual_df"])]
        + [_text(f["power"][r], ".2f") for r in ratios]
        + [_text(f["detectable"], ".2f")]
        for f in power["factors"]
    ]
    return [
        f"power with {power['runs']} runs by delta/sigma, for {power['response']} {scale}:",
        f"each factor's F test at level {power['alpha']:g}{_shared(power)};",
        "two levels are delta apart, the others at their mean; of the pairs, the hardest to detect",
        *_aligned(["factor", "df", "error df", *ratios, f"{power['goal']:.0%} at"], rows),
        *_render_sigma(power),
        *_render_at(power),
    ]


def _shared(power: dict[str, Any]) -> str:
    """That Holm's adjustment asks more of the first of several factors."""
    count = len(power["factors"])
    return f" / {count}, as Holm's adjustment asks of the first of {count}" if count > 1 else ""


def _render_sigma(power: dict[str, Any]) -> list[str]:
    spread = power["sigma"]
    if spread["sigma"] is None:
        why = spread["note"] or "name a pilot study's runs.csv with --pilot, or --sigma"
        return [f"sigma, the residual standard deviation, is not known: {why}"]
    limits = ""
    if spread["high"] is not None:
        limits = f" (95% limits {spread['low']:.4g} to {spread['high']:.4g}, df {spread['df']})"
    reach = ", ".join(
        f"{f['factor']} {f['detectable'] * spread['sigma']:.4g}"
        for f in power["factors"]
        if f["detectable"] is not None
    )
    lines = [f"sigma {spread['sigma']:.4g}{limits}, from {spread['source']}"]
    if reach:
        lines.append(f"smallest delta detected with {power['goal']:.0%} power: {reach}")
    return lines


def _render_at(power: dict[str, Any]) -> list[str]:
    if power["at_delta"] is None:
        return []
    parts = [("sigma", "")]
    if power["sigma"]["high"] is not None:
        parts.append(("sigma's upper limit", "_at_high"))
    lines = []
    for name, suffix in parts:
        rows = [
            [row["factor"], _text(row[f"power{suffix}"], ".2f")]
            + [_text(row[f"{key}{suffix}"], ",") for key in ("seeds", "study_runs")]
            for row in power["at_delta"]
        ]
        header = ["factor", "power", f"seeds for {power['goal']:.0%}", "runs of the study"]
        lines += ["", f"at delta {power['delta']:g} and {name}", *_aligned(header, rows)]
    return lines


def _render_metrics(overview: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["metric"] + (" +" if row["further"] else ""),
            row["better"],
            row["extractor"],
            "all" if len(row["tasks"]) == len(overview["tasks"]) else ", ".join(row["tasks"]),
        ]
        for row in overview["metrics"]
    ]
    found = overview["evaluation"]
    counted = ", ".join(f"{name} {count:,}" for name, count in found["images"].items())
    lines = ["metrics; +: beside the standard ones, as the study names it"]
    lines += _aligned(["metric", "better", "made of", "tasks"], rows, left=(0, 1, 2, 3))
    lines.append(f"images through each extractor in a run, once and kept: {counted}")
    if found["seconds"] is not None:
        lines.append(
            f"evaluation of a run: {found['seconds']:.3g} s, median of the {found['runs']} "
            "evaluated ones"
        )
    return lines


def _render_cost(overview: dict[str, Any]) -> list[str]:
    found = overview["cost"]
    scopes = {name: found[key] for name, key in (("in all", "total"), ("to run", "to_run"))}
    scopes = {name: scope for name, scope in scopes.items() if scope is not None}
    rows = [
        [
            name,
            f"{scope['runs']:,}",
            _hours(scope, found["flop_per_second"]),
            in_bytes(scope["bytes"]["adapters"]),
            in_bytes(scope["bytes"]["samples"]),
        ]
        for name, scope in scopes.items()
    ]
    lines = ["cost", *_aligned(["", "runs", "hours", "adapters", "samples"], rows)]
    work = found["total"]["flop"]
    explained = bool(found["total"]["seconds"]["explain"] or work["explain"])
    stages = "training, sampling and explaining" if explained else "training and sampling"
    lines.append(f"hours: {stages}, one job after another, without evaluation")
    unknown = found["total"]["seconds"]["unknown"]
    if found["pilot"] is not None:
        lines += [
            f"hours and memory: each method's medians in {found['pilot']},",
            "on the hardware and with the batches of those runs",
        ]
    if unknown:
        parts = ["PFLOP of training", "of sampling", "of explaining"][: 3 if explained else 2]
        counted = [
            f"{flop / 1e15:,.0f} {of}" for flop, of in zip(work.values(), parts, strict=False)
        ]
        others = "" if found["pilot"] is None else f" of {', '.join(unknown)}"
        lines += [
            f"hours{others}: {', '.join(counted[:-1])} and {counted[-1]} at "
            f"{found['flop_per_second'] / 1e12:g} TFLOP/s;",
            "for measured times name a runs.csv of finished runs with --pilot",
            f"memory{others}: estimate for a training step, with weights, gradients, AdamW's "
            "moments and",
            "activations; the weights for sampling need "
            f"{in_bytes(max(p['memory']['sample'] or 0 for p in overview['points']))}",
        ]
    return lines


def _hours(scope: dict[str, Any], flop_per_second: float) -> str:
    seconds, flop = scope["seconds"], scope["flop"]
    timed = sum(seconds[stage] for stage in flop)
    return f"{(timed + sum(flop.values()) / flop_per_second) / 3600:,.2f}"


def in_bytes(count: int | None) -> str:
    if count is None:
        return "not known"
    power = max(0, min(4, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _render_stages(overview: dict[str, Any]) -> list[str]:
    if overview["absent"]:
        absences = [f"  {missing}" for missing in overview["absent"]]
        return ["cached stages are unknown until these are on this machine:", *absences]
    rows = [
        [name, str(overview["cached"][name]), str(overview["to_run"][name])]
        for name in STAGES
        if overview["cached"][name] + overview["to_run"][name]
    ]
    pins = [f"{key}: {value}" for key, value in overview["digests"].items()]
    return [*_aligned(["stage", "cached", "to run"], rows), "", *pins]


def _text(value: float | None, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _aligned(
    header: list[str], rows: Iterable[list[str]], left: tuple[int, ...] = (0,)
) -> list[str]:
    """Rows under their header, columns two spaces apart; columns in ``left`` align left."""
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
