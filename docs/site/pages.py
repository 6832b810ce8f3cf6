"""The pages of the site: the repository's own, at the same places, and a reference from the code.

A hook of mkdocs (mkdocs.yml). Links between pages are the repository's, so they hold in both.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from fitspace.cli import parser
from fitspace.metrics import METRICS
from fitspace.study.schema import schema

ROOT = Path(__file__).parents[2]
PAGES = ("*.md", "docs/*.md", "config/README.md", "params/**/README.md", "models/*/README.md")
ASSETS = ("docs/site/*.js", "reports/*.html", "reports/*/report.html")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the docs folder, read at the repository's root, and all that they link to."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    paths = {path for pattern in PAGES for path in ROOT.glob(pattern)}
    linked = {target for path in paths for target in _targets(path) if target.is_file()}
    assets = {path for pattern in ASSETS for path in ROOT.glob(pattern)}
    for path in sorted(paths | linked | assets):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, text in REFERENCE.items():
        files.append(File.generated(config, f"docs/reference/{name}.md", content=text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to folders, which a site has no page for, become their text."""
    folder = (ROOT / page.file.src_uri).parent

    def text(link: re.Match) -> str:
        return link[2] if (folder / link[3]).is_dir() else link[0]

    return LINK.sub(text, markdown)


def _targets(path: Path) -> Iterator[Path]:
    for link in LINK.finditer(path.read_text(encoding="utf-8")):
        if "://" not in link[3]:
            target = (path.parent / link[3]).resolve()
            if target.is_relative_to(ROOT):
                yield target


# --- reference ----------------------------------------------------------------------------


def study() -> str:
    """Every key of a study file: what it allows, its default and its meaning."""
    root = schema()
    lines = ["# Keys of a study file", "", "Made from the models that `fitspace check` uses. "
             "[The guide](../../params/README.md) has examples.", ""]  # fmt: skip
    for name, model in [("The study", root), *root["$defs"].items()]:
        if "properties" not in model:
            continue
        lines += [f"## {name}", "", model.get("description", "").split("\n\n")[0], ""]
        lines += ["| key | allowed | default | meaning |", "|---|---|---|---|"]
        required = model.get("required", [])
        for key, value in model["properties"].items():
            default = "required" if key in required else _default(value)
            row = (f"`{key}`", _allowed(value), default, value.get("description", ""))
            lines.append(_row(row))
        lines.append("")
    return "\n".join(lines)


def metrics() -> str:
    """Every metric: its name, which direction is better, and its definition."""
    lines = ["# Metrics", "", "Made from the table of metrics. [How to name some]"
             "(../../params/README.md#more-metrics) in a study.", ""]  # fmt: skip
    lines += ["| name | metric | better | features | definition |", "|---|---|---|---|---|"]
    for name, metric in METRICS.items():
        better = "lower" if metric.lower else "higher"
        row = (f"`{name}`", metric.label, better, metric.extractor or "–", metric.definition)
        lines.append(_row(row))
    return "\n".join([*lines, ""])


def commands() -> str:
    """Every command with its arguments."""
    lines = ["# Commands", "", "Made from the command line's own help.", ""]
    for name, command in _commands():
        command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=96)
        lines += [f"## {name}", "", "```text", command.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


REFERENCE = {"study": study, "metrics": metrics, "commands": commands}


def _commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    top, _ = parser()
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    return "none" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"


_LIMITS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
    "minItems": "at least {}", "minLength": "", "maxItems": "", "maxLength": "",
}  # fmt: skip


def _allowed(value: dict[str, Any]) -> str:
    """What a part of the schema allows, in words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(v).strip(chr(34))}`" for v in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in value:
            return " or ".join(dict.fromkeys(_allowed(v) for v in value[key]))
    kind = value.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(_allowed(value | {"type": one}) for one in kind)
    if kind == "array":
        kind = f"list of: {_allowed(value.get('items', {}))}"
    elif kind == "object":
        inner = value.get("additionalProperties")
        kind = f"name → {_allowed(inner)}" if isinstance(inner, dict) else "mapping"
    names = {
        "integer": "whole number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
    }
    limits = (text.format(value[key]) for key, text in _LIMITS.items() if key in value and text)
    return ", ".join([names.get(kind, kind), *limits])
