"""The report of a study: tables, figures and one self-contained page, from its runs.csv."""

from __future__ import annotations

from pathlib import Path

from fitspace.study import Study


def build(study: Study, folder: Path) -> Path:
    """Write a study's report from the files in ``folder``; returns the path of report.html.

    Reads runs.csv and, if present, gallery.json with its PNG strips and design.json. It reads no
    model and no result folder. Writes the tables of `results.analyse` (anova.csv, effects.csv and
    so on), origins.json (the runs behind each of their rows), summary.json (the numbers to compare
    between commits), the figures with their data as figures/*.svg and *.csv, report.md and
    report.html, which contains its style, script and images and requests nothing. Equal inputs
    give equal bytes.

    Raises
    ------
    UserError : a missing or invalid file, or runs that cannot be analysed; all problems at once.
    """
    from fitspace.core.files import write_text
    from fitspace.report import figures, headline, inputs, origins, page, results

    folder = Path(folder)
    given = inputs.read(study, folder)
    found = results.analyse(study, given)
    for name, table in found.tables.items():
        write_text(folder / name, table.to_csv(index=False, lineterminator="\n"))
    for name in found.empty:  # such a file is from an earlier study file
        (folder / name).unlink(missing_ok=True)
    write_text(folder / "origins.json", origins.text(found))
    write_text(folder / headline.NAME, headline.text(found))
    drawn = figures.draw_all(found)
    for figure in drawn:
        write_text(folder / "figures" / f"{figure.name}.svg", figure.svg)
        write_text(folder / "figures" / f"{figure.name}.csv", figure.csv)
    names = {figure.name for figure in drawn}
    for path in (folder / "figures").glob("*"):
        if path.suffix in (".svg", ".csv") and path.stem not in names:
            path.unlink()
    html, markdown = page.render(given, found, drawn)
    write_text(folder / "report.md", markdown)
    write_text(folder / "report.html", html)
    return folder / "report.html"
