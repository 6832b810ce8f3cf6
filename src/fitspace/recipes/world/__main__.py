"""``python -m fitspace.recipes.world PART...``: train parts of the embedded world, or go on.

Everything half done lies in ``--work``; what is finished is written to ``--out``, and is not made
again while it is there. The bases need the autoencoder. A part that another process trains, such as
a job of a killed driver, is waited for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fitspace.core.errors import UserError
from fitspace.core.files import write_json
from fitspace.core.imports import import_torchvision
from fitspace.stages import running


def _autoencoder(work: Path, out: Path) -> None:
    from fitspace.recipes.world import autoencoder, drawings

    world, settings = drawings.load(work), autoencoder.Settings()
    trained = autoencoder.train(world, work / "autoencoder", settings)
    report = autoencoder.measure(trained.model, world)
    autoencoder.save(trained, report, settings, out)


def _judge(work: Path, out: Path) -> None:
    from fitspace.recipes.world import drawings, judge, texts

    world, first = drawings.load(work), work / "judge" / "first"
    if not _finished(first):
        trained = judge.train(world, work / "judge", judge.Settings())
        judge.save(trained.model.clip, world, trained.record(judge.Settings()), first)
    trained, record = texts.train(first, world, work / "judge")
    judge.save(trained.model.clip, world, record, out)


def _rewarder(work: Path, out: Path) -> None:
    from fitspace.recipes.world import drawings, judge, rewarder

    world, settings = drawings.load(work), rewarder.Settings()
    trained = rewarder.train(world, work / "rewarder", settings)
    judge.save(trained.model.clip, world, trained.record(settings), out, rewarder.DESIGN)


def _unet(work: Path, out: Path) -> None:
    from fitspace.recipes.world import denoiser, drawings, unet

    unet.train(drawings.load(work), _vae(out), work / "unet")
    denoiser.copy_pipeline(work / "unet" / "pipeline", out)


def _dit(work: Path, out: Path) -> None:
    from fitspace.recipes.world import denoiser, dit, drawings

    dit.train(drawings.load(work), _vae(out), work / "dit")
    denoiser.copy_pipeline(work / "dit" / "pipeline", out)


def _mmdit(work: Path, out: Path) -> None:
    from fitspace.recipes.world import denoiser, drawings, mmdit

    mmdit.train(drawings.load(work), _vae(out), work / "mmdit")
    denoiser.copy_pipeline(work / "mmdit" / "pipeline", out)


def _vae(out: Path) -> Path:
    vae = out.parent / "vae"
    if not (vae / "training.json").exists():
        raise UserError(f"{vae}: no finished autoencoder; train that part first")
    return vae


def _cards(work: Path, out: Path) -> None:
    """Measure all finished parts together, and write what they are into their folders.

    The bases are those with this very autoencoder.
    """
    from fitspace import bases
    from fitspace.recipes.world import autoencoder, card, denoiser, drawings, judge, rewarder

    found = out.parent
    if missing := [n for n in ("vae", "emoji-clip") if not (found / n / "training.json").exists()]:
        raise UserError(f"{found / name}: not finished; train that part first" for name in missing)
    world, vae = drawings.load(work), autoencoder.load(found / "vae")
    report = {"autoencoder": autoencoder.measure(vae, world)}
    reconstructed = {"reconstructed": lambda images: autoencoder.copies(vae, images)}
    designs = {"judge": judge.JUDGE}
    if _finished(found / rewarder.NAME):
        designs["rewarder"] = rewarder.DESIGN
    for part, design in designs.items():
        report[part] = judge.measure(found / design.name, world, reconstructed, design)
    ours = denoiser.weights_digest(found / "vae")
    finished = [
        bases.resolve(base)
        for base in (found / name for name in card.RECIPES)
        if (base / "vae").exists() and denoiser.weights_digest(base / "vae") == ours
    ]
    for base in finished:
        report[base.name] = card.RECIPES[base.name].measure(base, found / "emoji-clip", world)
    write_json(out, report)
    card.write_autoencoder(found / "vae", world, report)
    for part, design in designs.items():
        card.write_judge(found / design.name, world, report[part], design)
    for base in finished:
        card.write_base(base, world, report)


PARTS = {  # part -> how it is made, and what it is called when it is finished
    "autoencoder": (_autoencoder, "vae"),
    "judge": (_judge, "emoji-clip"),
    "rewarder": (_rewarder, "emoji-rewarder"),
    "unet": (_unet, "emoji-unet"),
    "dit": (_dit, "emoji-dit"),
    "mmdit": (_mmdit, "emoji-mmdit"),
    "cards": (_cards, "measured.json"),
}


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fitspace.recipes.world", description=__doc__)
    parser.add_argument("parts", choices=PARTS, nargs="+", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--work", type=Path, default=Path("results/base"))
    parser.add_argument("--out", type=Path, default=Path("results/base/finished"))
    arguments = parser.parse_args(given)
    import_torchvision()
    import torch

    torch.set_num_threads(1)  # sums in one order, whatever the machine
    try:
        for part in arguments.parts:
            make, name = PARTS[part]
            out = arguments.out / name
            with running.locked(arguments.work / f"{part}.lock"):
                if not _finished(out):
                    make(arguments.work, out)
    except UserError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    return 0


def _finished(out: Path) -> bool:
    """Whether a part is there: the last file that is written of each says so."""
    return (out / "training.json").exists() or (out / "model_index.json").exists()


if __name__ == "__main__":
    sys.exit(main())
