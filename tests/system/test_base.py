"""``snakemake base``: the embedded models from nothing, by a recipe of few steps and drawings."""

from __future__ import annotations

import hashlib
import re

import pytest
from drivers import end, start, until
from project import Project

FEW = {  # in the recipe's source
    r"\bsteps: int = [\d_]+": "steps: int = 8",
    r"\bbatch_size: int = \d+": "batch_size: int = 4",
    r"\bwarmup_steps: int = \d+": "warmup_steps: int = 2",
    r"else list\(catalogue\)": "else list(catalogue)[:12]",
    r"\bCHECKPOINT_SECONDS = [\d.]+": "CHECKPOINT_SECONDS = -1.0",  # after each step
}


@pytest.fixture
def project(origin, tmp_path):
    """A clone without any model, whose recipe is quick."""
    cloned = origin.clone(tmp_path / "whole")
    recipe = (cloned / "src/fitspace/recipes/world").glob("*.py")
    source = {file: file.read_text() for file in recipe}
    for old, new in FEW.items():
        assert any(re.search(old, text) for text in source.values()), old
        source = {file: re.sub(old, new, text) for file, text in source.items()}
    for file, text in source.items():
        file.write_text(text)
    cloned.git("rm", "-r", "--quiet", "models")
    return cloned


def made(project: Project) -> dict[str, str]:
    """SHA-256 of every file of all models, but for how long it took."""
    found = {n: c for n, c in project.files("models").items() if not n.endswith(".md")}
    return {
        name: hashlib.sha256(re.sub(rb'"hours": [\d.]+', b"", content)).hexdigest()
        for name, content in found.items()
    }


@pytest.mark.slow
def test_all_models_are_made_from_nothing_and_killed_drivers_change_no_bit(project, tmp_path):
    killed = project.copy(tmp_path / "killed")
    assert not (project / "models").exists()
    said = project.run("snakemake", "--cores", "2", "base").stderr
    assert "7 jobs: 1 world_autoencoder" in said
    whole = made(project)
    # Three single models, their copies of the autoencoder, denoisers and text encoders: MiniLM's
    # two copies are not in git.
    assert sum(name.endswith(".safetensors") for name in whole) == 3 + 3 + 3 + 2 + 2
    for base in ("emoji-unet", "emoji-dit", "emoji-mmdit", "emoji-clip", "emoji-rewarder", "vae"):
        assert "OpenMoji" in (project / f"models/{base}/README.md").read_text()

    work = killed / "results/base"
    first = start(killed, target="base")
    until((work / "autoencoder/checkpoint.safetensors").exists, first)
    first.kill()  # its jobs go on, and the next driver's wait for them
    first.wait()
    killed.run("snakemake", "--unlock", "base")
    second = start(killed, target="base")
    until((work / "unet/checkpoint.safetensors").exists, second)
    end(second)
    killed.run("snakemake", "--unlock", "base")
    assert not (killed / "models/emoji-unet/model_index.json").exists()
    third = killed.run("snakemake", "--cores", "2", "base").stderr
    assert "1 world_unet" in third and "world_autoencoder" not in third
    assert made(killed) == whole
    assert "jobs:" not in killed.run("snakemake", "--cores", "2", "base").stderr
