"""What differs from one family of denoisers to another, for all who are not of a family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fitspace.bases.blocks import Block

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

# What a denoiser is told of images beside the time step: name -> tensor, first axis the images.
Conditions = dict[str, "torch.Tensor"]
# How a denoiser is asked for its prediction, see `Family`.
Ask = Callable[[Callable, Any, "torch.Tensor", "torch.Tensor", Conditions], "torch.Tensor"]


def picked(conditions: Conditions, rows: Any) -> Conditions:
    """These rows of each condition; ``rows`` is a slice or a list."""
    return {name: values[rows] for name, values in conditions.items()}


def by_name(hand: Callable[[Conditions], dict[str, Any]]) -> Ask:
    """Asks a denoiser that takes latents and time steps as they are; ``hand`` makes of conditions
    its other keyword arguments."""

    def ask(call: Callable, config: Any, noisy: Any, t: Any, conditions: Conditions) -> Any:
        return call(noisy, timestep=t, **hand(conditions)).sample

    return ask


def not_whole(config: dict[str, Any], *keys: str) -> list[str]:
    """What is wrong with keys of a denoiser's configuration that have to be whole numbers."""
    return [
        f"{key}: {config.get(key)!r}; allowed: a whole number"
        for key in keys
        if not isinstance(config.get(key), int)
    ]


def _patch_size(config: Any) -> int:
    return config.get("patch_size", 1)


def _as_it_is(guided: torch.Tensor, with_text: torch.Tensor) -> torch.Tensor:
    return guided


def as_long(guided: torch.Tensor, with_text: torch.Tensor) -> torch.Tensor:
    """A guided prediction, each of its vectors along the last axis as long as that with text."""
    return guided * (with_text.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


def _nothing(model: nn.Module) -> None:
    """Most models are what they should be as diffusers loads them."""


def _most(kept: dict[str, int]) -> int:
    """Text tokens, where embeddings of several encoders stand side by side."""
    return max(kept.values())


def _always(config: dict[str, Any]) -> bool:
    return True


def _never(kind: str, config: dict[str, Any]) -> bool:
    return False


def _is_not(config: dict[str, Any]) -> bool:
    return False


def _no_problems(config: dict[str, Any]) -> list[str]:
    return []


@dataclass(frozen=True)
class Reading:
    """How captions become conditions by a pipeline's own ``encode_prompt``.

    Attributes
    ----------
    pipeline : the pipeline's class in diffusers.
    encode : that pipeline with only what reads text, captions, a device and the images' side [px]
        -> conditions. The empty caption is what the pipeline guides away from.
    kept : a pipeline's folder -> each tokenizer's component, and how many tokens it keeps.
    tokens : what `kept` returns -> how many text tokens the denoiser is told.
    """

    pipeline: str
    encode: Callable[[Any, Sequence[str], Any, int], Conditions]
    kept: Callable[[Path], dict[str, int]]
    tokens: Callable[[dict[str, int]], int] = _most


@dataclass(frozen=True)
class Family:
    """A family of denoisers.

    Attributes
    ----------
    name : in settings and messages.
    title : as prose writes it.
    component : the pipeline's folder that holds the denoiser.
    kind : the class of diffusers that loads it today.
    needs : components of its pipeline beside the denoiser, the autoencoder and the scheduler.
    told : what it is told beside the time step: names of its conditions, as prepared tasks have
        them, and their form there (see :func:`fitspace.core.files.read_tensors`).
    ask : a denoiser or a function in its place, the denoiser's configuration, noisy latents
        (n, c, h, w), time steps (n,) and conditions -> what it predicts, shaped as the latents.
    blank : conditions without content, for a denoiser's configuration, so many images and tokens.
    sizes : of the letters in ``told``: the configuration's keys that hold them.
    blocks : the forms of its blocks.
    scales : whether it makes images of a multiple of its own side.
    controls : how it can be told of an image, see :mod:`fitspace.bases.control`; ``img2img`` tells
        it nothing.
    copied : the class of diffusers that a copy of its encoder is, made of the same blocks.
    flows : whether its process is flow matching, not diffusion.
    shifted : whether its autoencoder's latents are shifted before they are scaled.
    vae : the class of diffusers that its autoencoder is.
    normalised : whether that says the mean and the deviation of each channel of its latents.
    drawn : whether training draws latents from what the autoencoder gives as their distribution, as
        diffusers' script does; else it takes the mean.
    named : whether files of adapters name the family: its layers have the names of another's, which
        no pipeline of diffusers loads.
    biases : whether its layers have biases.
    norms : whether the norms of its transformer blocks have parameters.
    final : the layers after its last transformer block, where prompts can be put before the tokens
        of each block.
    side : side of its latents by default, where its configuration has no ``sample_size``: that of
        the autoencoder [px] says then how large images are.
    packs : side of the squares of latents that it takes as one, with their channels side by side.
    patch : the denoiser's configuration -> side of the squares of latents that it makes tokens of.
    steps : how its pipeline chooses the steps of a flow's solver, see
        :class:`fitspace.bases.process.FlowMatching`.
    distilled : whether a denoiser of this configuration is told the scale of the guidance, so that
        one prediction is guided already.
    shifts_by : what its pipeline counts for a dynamic shift of the steps: the ``tokens`` of an
        image, or the ``channels`` of its latents.
    rescaled : a guided prediction and that with text -> what its pipeline takes of the former.
    folds : whether several runs can form one batch; not where masks decide shapes.
    tokens : how many text tokens it is told, where the pipeline's own number is not known.
    reading : how captions become conditions; None: they are what the one text encoder gives last.
    optional : components that its pipeline may have beside those it needs.
    form : whether a configuration of ``kind`` is one of this family.
    also : whether a denoiser saved as another class, with this configuration, is one of these.
    settle : called once with a model as diffusers loads it.
    problems : what in a denoiser's configuration nothing here knows how to use, as ``key: value;
        allowed``.
    """

    name: str
    title: str
    component: str
    kind: str
    needs: tuple[str, ...]
    told: dict[str, str]
    ask: Ask
    blank: Callable[[Any, int, int, torch.dtype], Conditions]
    sizes: dict[str, str]
    blocks: tuple[Block, ...]
    scales: bool = False
    controls: tuple[str, ...] = ()
    copied: str | None = None
    flows: bool = False
    shifted: bool = False
    vae: str = "AutoencoderKL"
    normalised: bool = False
    drawn: bool = True
    named: bool = False
    biases: bool = True
    norms: bool = False
    final: tuple[str, ...] = ()
    side: int | None = None
    packs: int = 1
    patch: Callable[[Any], int] = _patch_size
    steps: str = "solver"
    shifts_by: str = "tokens"
    rescaled: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _as_it_is
    folds: bool = True
    distilled: Callable[[dict[str, Any]], bool] = _is_not
    tokens: int = 77
    reading: Reading | None = None
    optional: tuple[str, ...] = ()
    form: Callable[[dict[str, Any]], bool] = _always
    also: Callable[[str, dict[str, Any]], bool] = _never
    settle: Callable[[nn.Module], None] = _nothing
    problems: Callable[[dict[str, Any]], list[str]] = _no_problems

    @property
    def by_class(self) -> bool:
        """Whether it is told classes, not words."""
        return "labels" in self.told

    @property
    def maps(self) -> bool:
        """Whether it looks for words by a cross-attention of its own, to all tokens alike."""
        return self.has("CA_in") and "mask" not in self.told

    @property
    def components(self) -> tuple[str, ...]:
        """The components of its pipeline that are used, needed or not."""
        return (self.component, "vae", *self.needs, *self.optional, "scheduler")

    def matches(self, kind: str, config: dict[str, Any]) -> bool:
        """Whether a denoiser saved as this class, with this configuration, is one of these."""
        return (kind == self.kind and self.form(config)) or self.also(kind, config)

    def has(self, position: str) -> bool:
        """Whether its blocks have a position."""
        return any(position in block.positions for block in self.blocks)

    def block_of(self, module: nn.Module) -> Block | None:
        """The form of a block of the denoiser; None for a module that is no block."""
        return next((block for block in self.blocks if block.fits(module)), None)

    def latents(self, config: Any) -> tuple[int, int]:
        """Channels and side of the latents that a denoiser of this configuration takes; the side by
        default, where the autoencoder says it."""
        side = config["sample_size"] if self.side is None else self.side
        return config.get("in_channels", 4) // self.packs**2, side

    def image_tokens(self, config: Any, side: int) -> int:
        """How many tokens latents of this side are to a transformer of this configuration."""
        return (side // (self.packs * self.patch(config))) ** 2

    def of_image(
        self, block: Block, stream: torch.Tensor, conditions: Conditions, tokens: int
    ) -> torch.Tensor:
        """Of what a block returns, (n, k, d), the tokens of the image, (n, ``tokens``, d); all, of
        a block that says nothing of text beside them."""
        import torch

        if block.beside == "before" and stream.shape[1] > tokens:
            text = conditions["mask"].sum(1).tolist()
            return torch.stack([s[n : n + tokens] for s, n in zip(stream, text, strict=True)])
        return stream[:, :tokens] if block.beside == "after" else stream

    def predict(
        self,
        model: nn.Module,
        noisy: torch.Tensor,
        t: torch.Tensor,
        conditions: Conditions,
        call: Callable | None = None,
    ) -> torch.Tensor:
        """What a denoiser predicts of noisy latents (n, c, h, w) at time steps (n,).

        ``call`` is called in place of the denoiser, such as with other parameters.
        """
        return self.ask(call or model, model.config, noisy, t, conditions)
