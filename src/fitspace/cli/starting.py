"""Commands for the first hour: a study file of one's own, and whether this machine is ready."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fitspace.cli.commands import Commands
from fitspace.core.errors import UserError

FOLDER = Path("params")
# Option -> what is asked where somebody can answer.
ASKED = {
    "images": "A folder with your images and their captions (empty: the embedded drawings)",
    "vary": "What to vary: {varied}",
    "base": "The base: a diffusers folder or a hub id",
    "seeds": "How many seeds",
}


def add(commands: Commands) -> None:
    new = commands.add(_new, "new", "Write a study file that passes every check.", study=False)
    new.add_argument("name", metavar="NAME", help="writes params/NAME.yaml")
    new.add_argument("--images", metavar="FOLDER", help="captioned images; default: OpenMoji")
    new.add_argument("--style", help="OpenMoji's style; default: sepia")
    new.add_argument("--vary", help="what is varied; default: positions")
    new.add_argument("--base", help="a diffusers folder or a hub id; default: models/emoji-unet")
    new.add_argument("--judge", help="an open_clip folder; default: models/emoji-clip")
    new.add_argument("--seeds", type=int, metavar="N", help="default: 2")

    doctor = commands.add(_doctor, "doctor", "Say whether this machine is ready.", study=False)
    doctor.add_argument("--json", action="store_true", help="as JSON")


def _new(arguments: argparse.Namespace) -> None:
    from fitspace.core.files import replacing
    from fitspace.plan import analysable, build_plan, checked
    from fitspace.plan.drafting import VARIED, Answers, draft

    path = FOLDER / f"{arguments.name}.yaml"
    if path.exists():
        raise UserError(f"{path}: is there already; allowed: another name")
    answers = Answers(arguments.name, **_answers(arguments, Answers, ", ".join(VARIED)))
    text = draft(answers, path)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            study, models = checked(temporary)
            if not models.absent:
                analysable(build_plan(study, models))
        except UserError as error:
            prefix = f"{temporary}: "
            raise UserError(problem.removeprefix(prefix) for problem in error.problems) from None
    print(f"{path}: next: fitspace plan {path}, then: snakemake --cores all --config study={path}")


def _answers(arguments: argparse.Namespace, model: type, varied: str) -> dict:
    """The options that are given; where somebody can answer, what is missing is asked."""
    given = {
        n: getattr(arguments, n) for n in ("images", "style", "vary", "base", "judge", "seeds")
    }
    found = {name: value for name, value in given.items() if value is not None}
    if sys.stdin is not None and sys.stdin.isatty():
        for name, question in ASKED.items():
            if name in found or (name == "images" and "style" in found):
                continue
            default = model.__dataclass_fields__[name].default
            shown = f" [{default}]" if default is not None else ""
            if answer := input(f"{question.format(varied=varied)}{shown}: ").strip():
                found[name] = answer
    if "images" in found:
        found["images"] = Path(found["images"])
    if isinstance(seeds := found.get("seeds"), str):
        if not seeds.isdecimal():
            raise UserError(f"--seeds: {seeds!r}; allowed: a whole number")
        found["seeds"] = int(seeds)
    return found


def _doctor(arguments: argparse.Namespace) -> int:
    from fitspace.stages.doctor import examine, render

    findings = examine()
    print(render(findings, as_json=arguments.json))
    return 2 if any(finding.state == "wrong" for finding in findings) else 0
