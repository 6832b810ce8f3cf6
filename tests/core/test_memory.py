"""A device whose memory is too small: fewer at once, the same batch, or word of what to set."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from fitspace import methods, training
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision
from fitspace.training import sampling

import_torchvision()
from diffusers.configuration_utils import FrozenDict  # noqa: E402


class Small:
    """In place of a model's forward pass: a device that holds ``room`` examples at once."""

    def __init__(self, model, room: int):
        self.room, self.seen = room, []
        self.compute, model.forward = model.forward, self

    def __call__(self, x, timestep, **told):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.seen.append(len(x))
        return self.compute(x, timestep, **told)


class Shrinking(Small):
    """Its room changes: a whole batch twice, half of one, and less when that half is done."""

    def __call__(self, x, timestep, **told):
        self.room = {2: 4, 3: 3}.get(len(self.seen), self.room)
        return super().__call__(x, timestep, **told)


def fit_on(path, room: int, method="adapter", settings=None, device=Small, **changes):
    given = settings or {"input": "CA_out", "output": "FFN_in", "width": 4}
    attachment = methods.attach(tiny.unet(), method, given, 0)
    small = device(attachment.model, room)
    result = training.fit(
        attachment.model, attachment.trainable, tiny.task(), tiny.process(), 0.5,
        tiny.SETTINGS | {"batch_size": 8, "steps": 4, **changes}, 0, path,
        dropouts=attachment.dropouts,
    )  # fmt: skip
    return result, small.seen


@pytest.mark.parametrize("room, at_once", [(8, 8), (7, 4), (4, 4), (3, 2), (1, 1)])
def test_too_little_memory_halves_what_is_computed_at_once_and_keeps_the_batch(
    tmp_path, room, at_once
):
    whole, _ = fit_on(tmp_path / "a", 8)
    halved, seen = fit_on(tmp_path / "b", room)
    assert halved.examples_at_once == at_once and seen == [at_once] * (4 * 8 // at_once)
    # Equal but for the order of sums: float32 rounds at 6e-8.
    assert halved.losses == pytest.approx(whole.losses, rel=1e-5)
    for name, value in whole.parameters.items():
        torch.testing.assert_close(halved.parameters[name], value, rtol=1e-4, atol=1e-6)


def test_memory_that_ends_in_the_middle_of_a_batch_counts_no_example_twice(tmp_path):
    whole, _ = fit_on(tmp_path / "a", 8)
    halved, seen = fit_on(tmp_path / "b", 8, device=Shrinking)
    # In the third step memory ends after one half: all of it again, by twos.
    assert seen == [8, 8, 4, *[2] * 8] and halved.losses == pytest.approx(whole.losses, rel=1e-5)
    for name, value in whole.parameters.items():
        torch.testing.assert_close(halved.parameters[name], value, rtol=1e-4, atol=1e-6)


def test_memory_for_not_one_example_says_what_to_set(tmp_path):
    with pytest.raises(UserError, match="memory does not hold 1 at once.*allowed:.*batch_size"):
        fit_on(tmp_path / "a", 0)


def test_with_dropout_a_batch_is_never_halved_unseen(tmp_path):
    lora = {"rank": 2, "dropout": 0.1}
    result, _ = fit_on(tmp_path / "a", 8, "lora", lora)
    assert result.examples_at_once == 8
    with pytest.raises(UserError, match="does not hold 8 at once, and dropout masks .*batch_size"):
        fit_on(tmp_path / "b", 7, "lora", lora)


# --- sampling ---------------------------------------------------------------------------


class Decoder:
    """An autoencoder of which only the shapes matter, on the same small device."""

    config = FrozenDict(scaling_factor=0.5, block_out_channels=(1, 1))

    def decode(self, latents):
        return SimpleNamespace(sample=torch.tanh(latents[:, :3].repeat(1, 1, 2, 2)))


def draw(room: int, guidance: float = 2.0) -> tuple[np.ndarray, list[int]]:
    model = tiny.unet()
    small = Small(model, room)
    text = torch.randn(10, 5, 12, generator=torch.Generator().manual_seed(0))
    told, none = {"embeddings": text[1:]}, {"embeddings": text[:1]}
    noise = rng.initial_noise(0, 9, (4, 4, 4))
    images = sampling.generate(model, Decoder(), tiny.process(), told, none, noise, 3, guidance)
    return images, small.seen


@pytest.mark.parametrize("room", [16, 8, 7, 2])
def test_too_little_memory_draws_fewer_images_at_once_and_the_same_ones(room):
    whole, seen = draw(64)
    assert seen == [18] * 3  # with and without the caption
    images, seen = draw(room)
    assert max(seen) <= room and images.shape == whole.shape
    # A grey level where rounding falls on the other side.
    assert np.abs(images.astype(int) - whole.astype(int)).max() <= 1


def test_memory_for_not_one_image_is_one_message():
    with pytest.raises(
        UserError, match="images: the GPU's memory does not hold 1 at once.*allowed"
    ):
        draw(1)


def test_images_that_are_not_finite_are_no_pictures():
    model = tiny.unet()
    with torch.no_grad():
        model.conv_out.bias.fill_(torch.inf)
    noise = rng.initial_noise(0, 2, (4, 4, 4))
    told, none = {"embeddings": torch.zeros(2, 5, 12)}, {"embeddings": torch.zeros(1, 5, 12)}
    with pytest.raises(sampling.NotFinite, match="the samples are not finite"):
        sampling.generate(model, Decoder(), tiny.process(), told, none, noise, 2, 1)
