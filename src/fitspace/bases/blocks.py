"""The blocks of denoisers: where the positions of 2303.18181 are, and which layers have which role.

One `Block` for each class of blocks, or form of a class. It says which positions such a block has,
and where a hook reads or changes the tensor there. diffusers' blocks give no access to the stream
between their branches, so a position is the input or output of a part of the block:

- an adapter only adds to the stream, and addition commutes: adding to what a branch adds to the
  stream is adding to the stream after the branch;
- the stream itself is read as the argument of the norm that follows;
- where a block multiplies a branch's output by a gate before adding it, the gate is one of the
  values that a norm returns, and can be moved to the branch's output.

No torch here, because settings are checked without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Place:
    """A tensor that a part of a block is given or returns.

    Attributes
    ----------
    part : path of the part; "" is the block itself.
    side : ``input`` or ``output``.
    at : its number among the inputs or outputs; None: the only output.
    name : of an input that may be given by its name.
    image : whether it has the shape of an image (n, c, h, w), not of tokens (n, h·w, c). Such a
        place is only read.
    """

    part: str
    side: str
    at: int | None = None
    name: str = "hidden_states"
    image: bool = False


def given(part: str, at: int = 0, name: str = "hidden_states") -> Place:
    """An input of a part of a block."""
    return Place(part, "input", at, name)


def returned(part: str, at: int | None = None) -> Place:
    """An output of a part of a block."""
    return Place(part, "output", at)


@dataclass(frozen=True)
class Block:
    """A class of blocks, or a form of it.

    Attributes
    ----------
    kind : the class of diffusers.
    orders : what has a row at a position -> the positions that can be added to each other, in the
        order in which a block computes them.
    read, write : position -> where its tensor is read, and where is added to it.
    again : position -> where the same is added once more: a branch reads the stream there and
        returns what is added to it.
    before : position -> the places whose sum is the stream in front of the branch at whose output
        is added to it; only there an adapter from a position to itself needs the sum.
    gates : branch -> which of the values that ``gated_by`` returns is its gate.
    gated_by : the part that returns gates, among several values or side by side with others.
    parts : how many such values are side by side.
    tanh : whether a gate is the hyperbolic tangent of that value.
    table : branch -> which row of the time's embedding, to which those of the block's
        ``scale_shift_table`` are added, if it has one, is its gate. Nobody adds to the output of
        such a branch.
    time : where a block with such a table is given the time's embedding, its rows side by side.
    width_at : position -> linear layer whose inputs are as wide as the position's tensor; at all
        others it is as wide as the outputs of ``ff``.
    stream : where the block returns its image's stream.
    beside : where in that stream text may be beside the image: ``before`` it, as many tokens as are
        no padding, or ``after`` it; "": nowhere, or always the same tokens.
    joined : linear layers that give at once what several branches add to the stream.
    norms : norm without parameters -> the layer that gives its shift and scale, and at which parts
        of that layer's output they are, in pairs (shift, scale).
    has : attribute of a block -> whether it is there and not false, to tell forms of a class apart.
    """

    kind: str
    orders: dict[str, tuple[str, ...]]
    read: dict[str, Place]
    write: dict[str, Place]
    again: dict[str, Place] = field(default_factory=dict)
    before: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    gates: dict[str, int] = field(default_factory=dict)
    gated_by: str = "norm1"
    parts: int = 1
    tanh: bool = False
    table: dict[str, int] = field(default_factory=dict)
    time: Place = Place("", "input", 4, "timestep")
    width_at: dict[str, str] = field(default_factory=dict)
    stream: Place = Place("", "output")
    beside: str = ""
    joined: tuple[str, ...] = ()
    norms: dict[str, tuple[str, tuple[tuple[int, int], ...]]] = field(default_factory=dict)
    has: dict[str, bool] = field(default_factory=dict)

    @property
    def positions(self) -> list[str]:
        return [position for order in self.orders.values() for position in order]

    @property
    def transformer(self) -> bool:
        """Whether it is a transformer block, with a stream of tokens."""
        return "Trans_out" in self.positions

    def reaches(self, source: str, target: str) -> bool:
        """Whether such a block has these positions, to read at one and to add at the other."""
        return source in self.read and target in self.write

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is such a block."""
        return any(c.__name__ == self.kind for c in type(module).__mro__) and all(
            _there(module, name) == there for name, there in self.has.items()
        )

    def width(self, module: nn.Module, position: str) -> int:
        """Width of the tokens at a position of a transformer block."""
        if position in self.width_at:
            return module.get_submodule(self.width_at[position]).in_features
        return module.get_submodule("ff.net.2").out_features


_STREAM = {
    "SA_in": given(""),
    "SA_out": returned("attn1"),
    "FFN_in": given("norm3"),
    "FFN_out": returned("ff"),
    "Trans_out": returned(""),
}
# h = attn1(norm1(h)) + h, then h = attn2(norm2(h), c) + h, then h = ff(norm3(h)) + h.
CROSS = Block(
    kind="BasicTransformerBlock",
    orders={
        "pixel token of a transformer block": (
            "SA_in", "SA_out", "CA_in", "CA_out", "FFN_in", "FFN_out", "Trans_out",
        ),
        "text token": ("CA_c",),
    },
    read=_STREAM
    | {
        "CA_in": given("norm2"),
        "CA_out": returned("attn2"),
        "CA_c": given("attn2", 1, "encoder_hidden_states"),
    },
    write={
        "SA_in": given(""),
        "CA_in": returned("attn1"),
        "FFN_in": returned("attn2"),
        "Trans_out": returned(""),
        "CA_c": given("attn2", 1, "encoder_hidden_states"),
    },
    before={"CA_in": (given(""),), "FFN_in": (given("norm2"),)},
    width_at={"CA_c": "attn2.to_k"},
    has={"attn2": True},
)  # fmt: skip
# As DiT's: h = gate·attn1(...) + h, then h = gate·ff(...) + h, with gates that norm1 returns.
ADALN_ZERO = Block(
    kind="BasicTransformerBlock",
    orders={
        "patch token of a transformer block": (
            "SA_in", "SA_out", "FFN_in", "FFN_out", "Trans_out",
        ),
    },
    read=_STREAM,
    write={
        "SA_in": given(""),
        "FFN_in": returned("attn1"),
        "Trans_out": returned(""),
    },
    before={"FFN_in": (given(""),)},
    gates={"attn1": 1, "ff": 4},
    norms={"norm1.norm": ("norm1.linear", ((0, 1),)), "norm3": ("norm1.linear", ((3, 4),))},
    has={"attn2": False},
)  # fmt: skip
# As PixArt's: h = gate·attn1(...) + h, then h = attn2(h, c) + h without a norm before, then
# h = gate·ff(norm2(h)·...) + h, with gates from a table.
ADALN_SINGLE = Block(
    kind="BasicTransformerBlock",
    orders={
        "patch token of a transformer block": (
            "SA_in", "SA_out", "CA_in", "CA_out", "FFN_in", "FFN_out", "Trans_out",
        ),
        "text token": ("CA_c",),
    },
    read=CROSS.read | {"CA_in": given("attn2"), "FFN_in": given("norm2")},
    write=CROSS.write | {"CA_in": given("attn2")},
    again={"CA_in": returned("attn2")},
    before={"FFN_in": (given("attn2"),)},
    table={"attn1": 2, "ff": 5},
    width_at=CROSS.width_at,
    has={"attn2": True, "scale_shift_table": True},
)  # fmt: skip
# As Sana's: PixArt's with a feed-forward of convolutions, which returns an image.
SANA_BLOCK = replace(
    ADALN_SINGLE,
    kind="SanaTransformerBlock",
    read=ADALN_SINGLE.read | {"FFN_out": Place("ff", "output", image=True)},
    width_at={p: "attn1.to_q" for p in ADALN_SINGLE.positions} | CROSS.width_at,
    has={},
)
RESNET = Block(
    kind="ResnetBlock2D",
    orders={"pixel of a ResNet block": ("Res_in", "Res_out")},
    read={"Res_in": given(""), "Res_out": returned("")},
    write={"Res_in": given(""), "Res_out": returned("")},
)


def _joint(second: bool, last: bool) -> Block:
    """A block of two streams, image and text, which attend to all tokens together (2403.03206).

    ``h = gate·attn(h, c)[0] + h``, then ``h = gate·ff(...) + h``; the text stream c alike, and in
    the last block it ends with the attention. Where there is a ``second`` attention, of the image
    to itself, it follows the first: SA_out is what the first adds.
    """
    text = "norm1_context.linear"
    # The last block's text norm gives scale and shift, in this order.
    norms = {"norm1_context.norm": (text, ((1, 0),) if last else ((0, 1),))}
    norms |= {} if last else {"norm2_context": (text, ((3, 4),))}
    both = ((0, 1), (6, 7)) if second else ((0, 1),)
    end = returned("attn2") if second else returned("attn", 0)
    return Block(
        kind="JointTransformerBlock",
        orders={
            "image token of a joint block": ("SA_in", "SA_out", "FFN_in", "FFN_out", "Trans_out"),
            "text token": ("CA_c",),
        },
        read={
            "SA_in": given(""),
            "SA_out": returned("attn", 0),
            "FFN_in": given("norm2"),
            "FFN_out": returned("ff"),
            "Trans_out": returned("", 1),
            "CA_c": given("", 1, "encoder_hidden_states"),
        },
        write={
            "SA_in": given(""),
            "FFN_in": end,
            "Trans_out": returned("", 1),
            "CA_c": given("", 1, "encoder_hidden_states"),
        },
        before={"FFN_in": (given(""), *((returned("attn", 0),) if second else ()))},
        gates={"attn": 1, "ff": 4} | ({"attn2": 6} if second else {}),
        stream=returned("", 1),
        norms={"norm1.norm": ("norm1.linear", both), "norm2": ("norm1.linear", ((3, 4),)), **norms},
        has={"attn2": second, "ff_context": not last},
    )


JOINT = tuple(_joint(second, last) for second in (False, True) for last in (False, True))
# As FLUX.1's: blocks of two streams, none of which ends the text's.
FLUX_JOINT = replace(_joint(False, last=False), kind="FluxTransformerBlock", has={})
# Then blocks of one: h = h + gate·W(attn(n), mlp(n)), of text and image tokens together, with
# n = norm(h). A block is given the streams apart, and returns them so. The feed-forward reads what
# the attention reads, and one layer makes both into one sum.
FLUX_SINGLE = Block(
    kind="FluxSingleTransformerBlock",
    orders={
        "image token of a single block": ("SA_in", "FFN_in", "Trans_out"),
        "text token": ("CA_c",),
    },
    read={
        "SA_in": given(""),
        "FFN_in": given(""),
        "Trans_out": returned("", 1),
        "CA_c": given("", 1, "encoder_hidden_states"),
    },
    write={
        "SA_in": given(""),
        "Trans_out": returned("", 1),
        "CA_c": given("", 1, "encoder_hidden_states"),
    },
    width_at=dict.fromkeys(("SA_in", "FFN_in", "Trans_out", "CA_c"), "attn.to_q"),
    stream=returned("", 1),
    joined=("proj_out",),
    norms={"norm.norm": ("norm.linear", ((0, 1),))},
)
# As FLUX.2's: the same, but modulated from outside, so that gates are no values of a norm. What is
# added between the branches is added where the second one reads, and once more at the end.
FLUX2_JOINT = Block(
    kind="Flux2TransformerBlock",
    orders=FLUX_JOINT.orders,
    read=FLUX_JOINT.read,
    write=FLUX_JOINT.write | {"FFN_in": given("norm2")},
    again={"FFN_in": returned("", 1)},
    table={"attn": 2, "ff": 5},
    time=given("", 2, "temb_mod_img"),
    width_at=dict.fromkeys(FLUX_JOINT.read, "attn.to_q"),
    stream=returned("", 1),
)
# Its blocks of one stream are given text and image as one, and cannot tell them apart.
FLUX2_SINGLE = Block(
    kind="Flux2SingleTransformerBlock",
    orders={"token of a single block": ("SA_in", "FFN_in", "Trans_out")},
    read={"SA_in": given(""), "FFN_in": given(""), "Trans_out": returned("")},
    write={"SA_in": given(""), "Trans_out": returned("")},
    width_at=dict.fromkeys(("SA_in", "FFN_in", "Trans_out"), "attn.to_qkv_mlp_proj"),
)

# As Qwen-Image's: FLUX.1's blocks of two streams alone, each modulated by a layer of its own.
QWENIMAGE_BLOCK = replace(
    FLUX_JOINT,
    kind="QwenImageTransformerBlock",
    read=FLUX_JOINT.read | {"FFN_in": given("img_norm2"), "FFN_out": returned("img_mlp")},
    gates={"attn": 2, "img_mlp": 5},
    gated_by="img_mod",
    parts=6,
    width_at=dict.fromkeys(FLUX_JOINT.read, "attn.to_q"),
    norms={
        f"{stream}_norm{norm}": (f"{stream}_mod.1", ((3 * norm - 3, 3 * norm - 2),))
        for stream in ("img", "txt")
        for norm in (1, 2)
    },
)
# As Lumina2's: h = h + tanh(gate)·norm2(attn(norm1(h))), then the feed-forward alike, of the tokens
# of text and image as one, and before that of those of the image alone. Blocks that are not
# modulated read text alone: no form of them is here.
LUMINA2_BLOCK = Block(
    kind="Lumina2TransformerBlock",
    orders={"token of a block": ("SA_in", "SA_out", "FFN_in", "FFN_out", "Trans_out")},
    read={
        "SA_in": given(""),
        "SA_out": returned("norm2"),
        "FFN_in": given("ffn_norm1"),
        "FFN_out": returned("ffn_norm2"),
        "Trans_out": returned(""),
    },
    write={"SA_in": given(""), "FFN_in": returned("norm2"), "Trans_out": returned("")},
    before={"FFN_in": (given(""),)},
    gates={"norm2": 1, "ffn_norm2": 3},
    tanh=True,
    width_at=dict.fromkeys(("SA_in", "SA_out", "FFN_in", "FFN_out", "Trans_out"), "attn.to_q"),
    beside="before",
    has={"modulation": True},
)
# As Z-Image's: Lumina2's under other names. The text stands behind the image.
ZIMAGE_BLOCK = replace(
    LUMINA2_BLOCK,
    kind="ZImageTransformerBlock",
    read=LUMINA2_BLOCK.read | {"SA_out": returned("attention_norm2")},
    write=LUMINA2_BLOCK.write | {"FFN_in": returned("attention_norm2")},
    gates={"attention_norm2": 1, "ffn_norm2": 3},
    gated_by="adaLN_modulation",
    parts=4,
    width_at=dict.fromkeys(LUMINA2_BLOCK.width_at, "attention.to_q"),
    beside="after",
)

# Class of blocks of which the last in a model has layers that lead nowhere: nobody reads its text.
NOT_READ = {
    "QwenImageTransformerBlock": (
        "attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    ),
}  # fmt: skip
# Role -> the layers that have it, by the class of the module that they are in.
LAYERS = {
    "Attention": {
        "q": ("to_q", "add_q_proj"),
        "k": ("to_k", "add_k_proj"),
        "v": ("to_v", "add_v_proj"),
        "out": ("to_out.0", "to_add_out"),
    },
    # Z-Image's has the same name as all others'.
    "FeedForward": {"ff_in": ("net.0.proj", "w1", "w3"), "ff_out": ("net.2", "w2")},
    "Flux2FeedForward": {"ff_in": ("linear_in",), "ff_out": ("linear_out",)},
    "LuminaFeedForward": {"ff_in": ("linear_1", "linear_3"), "ff_out": ("linear_2",)},
    "Flux2ParallelSelfAttention": {  # two layers in place of six
        **dict.fromkeys(("q", "k", "v", "ff_in"), ("to_qkv_mlp_proj",)),
        **dict.fromkeys(("out", "ff_out"), ("to_out",)),
    },
    "GLUMBConv": {"ff_in": ("conv_inverted",), "ff_out": ("conv_point",)},
    "FluxSingleTransformerBlock": {
        "ff_in": ("proj_mlp",),
        "out": ("proj_out",),
        "ff_out": ("proj_out",),
    },
    "ResnetBlock2D": {"conv": ("conv1", "conv2")},
}
LAYERS |= dict.fromkeys(("FluxAttention", "Flux2Attention"), LAYERS["Attention"])
# Projections that read the same tensor; in cross-attention q reads another.
PROJECTIONS = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))


def layers(model: nn.Module, roles: tuple[str, ...]) -> dict[str, nn.Module]:
    """Path -> layer, for every layer of a model that has one of the roles.

    Roles are those of `LAYERS`, and ``text_k`` and ``text_v``: keys and values of the text.
    """
    found = {}
    for path, module in model.named_modules():
        own = _roles(module)
        if "k" in own:  # of the text, alone or beside those of the image
            text = ("to_k", "to_v") if crosses(module) else PROJECTIONS[1][1:]
            own = own | dict(zip(("text_k", "text_v"), zip(text), strict=True))
        for part in (part for role in roles for part in own.get(role, ())):
            layer = _within(module, part)
            if layer is not None:
                found[f"{path}.{part}"] = layer
    last = {type(module).__name__: path for path, module in model.named_modules()}
    dead = {f"{last[kind]}.{part}" for kind in NOT_READ.keys() & last for part in NOT_READ[kind]}
    return {path: layer for path, layer in found.items() if path not in dead}


def attends(module: nn.Module) -> bool:
    """Whether a module is an attention."""
    return "q" in _roles(module)


def feeds(module: nn.Module) -> bool:
    """Whether a part of a block is a feed-forward alone."""
    return "ff_out" in _roles(module) and not attends(module)


def _there(module: nn.Module, name: str) -> bool:
    value = getattr(module, name, None)
    return value is not None and value is not False


def crosses(attention: nn.Module) -> bool:
    """Whether an attention's keys and values are those of the text alone."""
    return getattr(attention, "is_cross_attention", False)


def _roles(module: nn.Module) -> dict[str, tuple[str, ...]]:
    kinds = (LAYERS[c.__name__] for c in type(module).__mro__ if c.__name__ in LAYERS)
    return next(kinds, {})


def _within(module: nn.Module, path: str) -> nn.Module | None:
    """A layer of a module; None where it has none, or one that leads nowhere: in the last block of
    two streams nobody reads what the text's queries find."""
    if path == "add_q_proj" and getattr(module, "to_add_out", None) is None:
        return None
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module
