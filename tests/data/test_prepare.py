"""What the prepare stage asks for: one held-out image a group, whatever the captions."""

import numpy as np
import pytest

from fitspace.data.examples import Example, split_of
from fitspace.data.openmoji import STYLES, catalogue, render
from fitspace.stages.prepare import prompt_images


def _example(name: str, caption: str, group: str) -> Example:
    return Example(name, caption, group, "test", np.zeros((2, 2, 3), np.uint8))


def test_images_that_share_a_caption_are_each_asked_for():
    held_out = [_example(f"{i}.png", "a photo of sks dog", f"{i}.png") for i in range(6)]
    assert sorted(prompt_images(held_out)) == list(range(6))


def test_a_group_is_asked_for_once_by_its_first_image():
    tones = ["", ", light skin tone", ", dark skin tone"]
    held_out = [_example(f"{g}{t}", g + t, g) for g in ("wave", "clap") for t in tones]
    assert sorted(prompt_images(held_out)) == [0, 3]


def test_variants_of_a_figure_share_split_and_group():
    groups = {}
    for name, caption, group, _ in catalogue():
        groups.setdefault(group, []).append((name, caption))
    tones = [names for names in groups.values() if len(names) == 6]
    assert len(tones) > 250
    assert all(sum("skin tone" in c for _, c in names) == 5 for names in tones)
    held_out = sum(split_of(g) == "test" for g in groups)
    assert 0.07 < held_out / len(groups) < 0.13


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_what_its_name_says(style):
    path = next(row[3] for row in catalogue() if row[1] == "red heart")
    image, full = render(path, style, 32).astype(int), render(path, "full", 32).astype(int)
    corners = {"blueprint": (29, 78, 158), "night": (16, 24, 48), "sepia": (244, 228, 196),
               "invert": (0, 0, 0)}  # fmt: skip
    assert tuple(image[0, 0]) == corners.get(style, (255, 255, 255))
    centre = image[14, 16]
    red = centre[0] > centre[2] + 60
    assert red == (style in ("full", "flat", "night", "pixel"))
    if style == "invert":
        assert (image + full == 255).all()
    if style == "line":
        assert (image.min(-1) == image.max(-1)).all()
