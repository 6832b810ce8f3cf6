"""The images that tasks give: of a style, of a folder, degraded."""

from __future__ import annotations

import numpy as np
import pytest
from control_study import build_images
from control_study import task as content
from PIL import Image

from fitspace import data
from fitspace.core.errors import UserError
from fitspace.data import given, openmoji, sources
from fitspace.study import DEGRADATIONS, Task

SIDES = (24, 48)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_images(tmp_path / "images")
    return tmp_path


def drawing(side: int) -> np.ndarray:
    """A disc on a ground, the same at every size."""
    y, x = np.mgrid[:side, :side] / side
    inside = (y - 0.5) ** 2 + (x - 0.4) ** 2 < 0.08
    return np.where(inside[..., None], [200, 30, 60], [240, 240, 120]).astype(np.uint8)


def test_every_degradation_has_a_function():
    assert given.DEGRADE.keys() == DEGRADATIONS.keys()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_more_of_a_degradation_leaves_less_of_an_image(kind, side):
    image, row = drawing(side), DEGRADATIONS[kind]
    less, more = (row.default, row.high) if kind != "jpeg" else (row.default, row.low)
    lost = []
    for amount in (less, more):
        found = given.DEGRADE[kind](image, amount, "one")
        assert found.dtype == np.uint8 and found.shape == image.shape
        assert np.array_equal(found, given.DEGRADE[kind](image, amount, "one"))
        lost.append(np.abs(found.astype(float) - image).mean())
    assert 0 < lost[0] < lost[1]


def test_what_is_drawn_depends_on_the_images_name():
    image = drawing(48)
    for kind in ("noise", "mask"):
        one, other = (given.DEGRADE[kind](image, 0.2, name) for name in ("a", "b"))
        assert not np.array_equal(one, other)


def test_a_mask_hides_its_share_and_nothing_else():
    image = drawing(48)
    found = given.mask(image, 0.25, "a")
    changed = (found != image).any(2)
    assert changed.sum() == 24 * 24 and (found[changed] == given.HIDDEN).all()


@pytest.mark.parametrize("side", SIDES)
def test_a_blur_is_a_share_of_the_side(side):
    line = np.zeros((side, side, 3), np.uint8)
    line[:, side // 2 :] = 255
    edge = given.blur(line, 0.05, "")[side // 2, :, 0].astype(float)
    slope = np.diff(edge).max() / 255  # of a Gaussian's integral: 1 / (σ √2π) a pixel
    assert slope == pytest.approx(1 / (0.05 * side * np.sqrt(2 * np.pi)), rel=0.12)


def test_downscaled_blocks_keep_their_mean():
    image = drawing(48)
    small = given.downscale(image, 4.0, "")
    blocks = [x.reshape(12, 4, 12, 4, 3).mean((1, 3)) for x in (image, small)]
    assert np.abs(blocks[0] - blocks[1]).mean() < 5


def test_a_style_is_the_same_drawing(monkeypatch):
    rows = [row for row in openmoji.catalogue() if "skin tone" not in row[1]][::400]
    monkeypatch.setattr(openmoji, "catalogue", lambda: tuple(rows))
    task = Task(name="a", source="openmoji", style="full", given={"style": "line"})
    found, _, _ = data.stream(task, 24)
    found = list(found)
    assert len(found) > 3
    paths = {row[0]: row[3] for row in rows}
    for example in found:
        assert np.array_equal(example.given, openmoji.render(paths[example.name], "line", 24))
        assert np.array_equal(example.image, openmoji.render(paths[example.name], "full", 24))


def test_pairs_are_found_by_name_whatever_their_ending(folder):
    found, notes, _ = data.stream(Task(**content()), 32)
    for example in found:
        other = folder / "images-given" / example.name.replace(".png", ".bmp")
        assert np.array_equal(example.given, np.array(Image.open(other)))
    assert notes == []


def test_pairs_that_lack_are_named_all_at_once(folder):
    for name in ("03", "07"):
        (folder / f"images-given/{name}.bmp").unlink()
    Image.new("RGB", (4, 4)).save(folder / "images-given/05.png")
    with pytest.raises(UserError) as error:
        sources.outline(Task(**content()))
    assert "no image for: '03.png', '07.png'" in error.value.problems[0]
    assert "several images for: '05.png'" in error.value.problems[1]


def test_given_images_that_cannot_be_read_are_named_and_blank_ones_noted(folder):
    Image.new("RGB", (32, 32), "white").save(folder / "images-given/02.bmp")
    found, notes, _ = data.stream(Task(**content()), 32)
    list(found)
    assert notes == ["given images of one colour alone: '02.png'"]
    (folder / "images-given/04.bmp").write_bytes(b"none")
    (found,) = given.problems(Task(**content()), 64)
    assert found.startswith("given with '04.png': not an image")
    with pytest.raises(UserError, match="given with '04.png'"):
        list(data.stream(Task(**content()), 32)[0])


def test_identities_tell_what_is_given(folder):
    def of(**own) -> dict:
        return data.identity(Task(**content(given=own)))

    plain = data.identity(Task(name="a", source="folder", path="images"))
    blurred = of(degraded="blur")
    assert blurred == plain | {"given": {"degraded": "blur", "amount": 0.03}}
    assert blurred == of(degraded="blur", amount=0.03) != of(degraded="blur", amount=0.04)
    before = of(path="images-given")
    Image.new("RGB", (4, 4)).save(folder / "images-given/02.bmp")
    assert before != of(path="images-given")


WRONG = {
    "two": ({"path": "b", "degraded": "blur"}, "path, degraded; needed: one of"),
    "none": ({}, "none; needed: one of style, path, degraded"),
    "amount alone": ({"path": "b", "amount": 2.0}, "only with degraded"),
    "too much": ({"degraded": "mask", "amount": 2.0}, "allowed with mask: 0.01 to 0.9"),
    "half a quality": ({"degraded": "jpeg", "amount": 10.5}, "a whole number"),
    "a style of a folder": ({"style": "line"}, "allowed with source: openmoji"),
}


@pytest.mark.parametrize(("own", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_given_is_refused(own, said):
    with pytest.raises(ValueError, match=said):
        Task(**content(given=own))


def test_a_style_does_not_give_itself_nor_a_subject_an_image():
    with pytest.raises(ValueError, match="is the task's own style"):
        Task(name="a", source="openmoji", style="full", given={"style": "full"})
    subject = {"noun": "person", "prompts": ["{} in snow"]}
    with pytest.raises(ValueError, match="not with dreambooth"):
        Task(name="a", source="folder", path="x", dreambooth=subject, given={"degraded": "blur"})
