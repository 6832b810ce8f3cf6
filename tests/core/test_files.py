"""Atomic writes, canonical JSON, sidecars that catch every change."""

import dataclasses
import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fitspace.core import files
from fitspace.core.errors import UserError
from fitspace.core.files import growing
from fitspace.plan import Stage
from fitspace.stages.sidecars import read_sidecar, verified, write_sidecar


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_written_files_have_ordinary_permissions(tmp_path):
    umask = os.umask(0o022)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)  # fmt: skip


@given(_json)
def test_canonical_json_survives_a_round_trip(content):
    text = files.canonical(content)
    assert files.canonical(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_digest_does_not_depend_on_the_order_of_keys(content):
    assert files.digest(content) == files.digest(dict(reversed(content.items())))


def test_digest_is_the_published_sha256():
    # SHA-256 of the two bytes {}: a value anyone can compute with sha256sum.
    expected = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert files.digest({}) == expected


@pytest.fixture
def stage(tmp_path):
    stage = Stage("train", tmp_path / "run~0123", "0123", {"stage": "train"})
    for name in ("adapter.safetensors", "history.csv"):
        files.write_text(stage.folder / name, name)
    outputs = sorted(stage.folder.iterdir())
    write_sidecar(stage, inputs=[], outputs=outputs, started="now", facts={"trainable": 3})
    return stage


def _flip(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


CHANGES = {
    "bit flipped": (lambda f: _flip(f / "adapter.safetensors"), "adapter.safetensors: changed"),
    "truncated": (lambda f: (f / "history.csv").write_text(""), "history.csv: changed"),
    "removed": (lambda f: (f / "history.csv").unlink(), "history.csv: missing"),
    "sidecar removed": (lambda f: (f / "train.json").unlink(), "train.json: missing"),
    "sidecar truncated": (lambda f: (f / "train.json").write_text("{"), "not a sidecar"),
    "sidecar of nothing": (lambda f: (f / "train.json").write_text("[]"), "not a sidecar"),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_every_change_is_found_and_named(stage, change, message):
    change(stage.folder)
    with pytest.raises(UserError, match=message):
        read_sidecar(stage.sidecar)


def test_the_sidecar_of_another_run_is_refused(stage):
    assert verified(stage)["key"] == stage.key
    for other in (
        dataclasses.replace(stage, key="4567"),
        dataclasses.replace(stage, material={"stage": "train", "seed": 1}),
    ):
        with pytest.raises(UserError, match="is of key '0123'"):
            verified(other)


def test_an_honest_stage_passes_also_after_a_move(stage, tmp_path):
    assert read_sidecar(stage.sidecar)["facts"] == {"trainable": 3}
    moved = stage.folder.rename(tmp_path / "elsewhere")
    assert read_sidecar(moved / "train.json")["outputs"][0]["size"] > 0


def test_a_sidecar_says_what_it_was_made_on(stage):
    environment = read_sidecar(stage.sidecar)["environment"]
    assert environment["packages"]["torch"] and len(environment["source_sha256"]) == 64
    assert environment["cpu"] and environment["python"]


@pytest.mark.parametrize("pieces", [1, 3, 7])
def test_tensors_that_grow_are_the_bytes_of_safetensors(tmp_path, pieces):
    draw = np.random.default_rng(0)
    tensors = {
        "std": draw.random((14, 2, 3)).astype(np.float16),
        "mean": draw.random((14, 2, 3)).astype(np.float16),
        "labels": draw.integers(0, 9, 14),
        "images": draw.integers(0, 256, (14, 3, 3, 3), np.uint8),
    }
    save_file(tensors, tmp_path / "theirs")
    with growing(tmp_path / "ours") as file:
        for name, values in tensors.items():
            for part in np.array_split(values, pieces):
                file.append(name, part)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "theirs"]


def test_a_tensor_that_grows_keeps_its_shape_and_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="a: float16"), growing(tmp_path / "file") as file:
        file.append("a", np.zeros((2, 3), np.float16))
        file.append("a", np.zeros((2, 4), np.float16))
    assert list(tmp_path.iterdir()) == []
