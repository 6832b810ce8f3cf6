"""The tuners of peft: which of them work on a denoiser, and the fields of their configurations.

A field's name, types and default are read from the source of the installed peft, without importing
it: importing peft imports torch and transformers, and checking a study has to be fast.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fitspace.core.reading import short

SCALARS = {"bool": bool, "int": int, "float": float, "str": str}


class Tuner(NamedTuple):
    """What fitspace has to know of a tuner beyond its configuration.

    ``rest``: part of a parameter's name -> the value at which its change is nothing, where the
    change is linear in these parameters (see :mod:`fitspace.methods.strength`). ``drawn``: what
    peft draws from ±1/√inputs, drawn here by (seed, parameter name). ``kept``: tensors of a layer
    that peft draws or computes and does not train; a file holds them, because another machine may
    compute others. ``moves``: the initial values with which it does not start from the base.
    ``random``: whether it draws in training. ``on_meta``: whether peft builds it without weights.
    ``reads``: whether every pass reads the values of the base's weights.
    ``shared``: of what is kept, what peft's own files hold once. ``exports``: whether those hold
    all of it.
    """

    rest: dict[str, float] = {}
    drawn: frozenset[str] = frozenset()
    kept: tuple[str, ...] = ()
    moves: tuple[bool | str, ...] = (False,)
    merges: bool = True
    convolutions: bool = False
    random: bool = False
    on_meta: bool = True
    reads: bool = False
    shared: tuple[str, ...] = ()
    exports: bool = True


TUNERS = {
    "BEFT": Tuner({"beft_bias": 0.0}, merges=False),
    "BOFT": Tuner({"boft_R": 0.0, "boft_s": 1.0}, convolutions=True, on_meta=False),
    "C3A": Tuner(
        {"c3a_kernel": 0.0}, moves=(False, "xavier_uniform", "kaiming_uniform", "gaussian")
    ),
    "DEFT": Tuner(),
    "DELORA": Tuner({"delora_lambda": 0.0}),
    "FOURIERFT": Tuner({"fourierft_spectrum": 0.0}, kept=("indices",), exports=False),
    "GLORA": Tuner(reads=True),
    "GRALORA": Tuner({"gralora_B": 0.0}),
    "HIRA": Tuner({"hira_B": 0.0}, convolutions=True, reads=True),
    "HRA": Tuner(convolutions=True, reads=True),
    "IA3": Tuner({"ia3_l": 1.0}, convolutions=True),
    "LILY": Tuner(merges=False),
    "LN_TUNING": Tuner(),
    "LOHA": Tuner(
        {"hada_w2_b": 0.0},
        drawn=frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a"}),
        convolutions=True,
    ),
    "LOKR": Tuner(
        {"lokr_w1": 0.0},
        drawn=frozenset({"lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
        convolutions=True,
    ),
    "LORA": Tuner({"lora_B": 0.0, "start_B": 0.0}, drawn=frozenset({"lora_A"}), convolutions=True),
    "MISS": Tuner({"miss_block": 0.0}),
    "OFT": Tuner({"oft_R": 0.0}),
    "OSF": Tuner(kept=("_osf_U_low_init", "_osf_S_low_init", "_osf_V_low_init")),
    "PEANUT": Tuner({"peanut_B": 0.0}, reads=True),
    "PSOFT": Tuner(kept=("_psoft_A_cache", "_psoft_B_cache")),
    "PVERA": Tuner(
        {"pvera_lambda_b": 0.0},
        kept=("pvera_A", "pvera_B"),
        shared=("pvera_A", "pvera_B"),
        random=True,
    ),
    "RANDLORA": Tuner({"randlora_lambda": 0.0}, kept=("randlora_A", "randlora_B")),
    "ROAD": Tuner({"road_theta": 0.0, "road_alpha": 1.0}),
    "SHIRA": Tuner({"shira_weight": 0.0}, kept=("shira_indices",), on_meta=False, reads=True),
    "SUPERTUNING": Tuner(
        {"supertuning_values": 0.0, "supertuning_lora_B": 0.0},
        kept=("supertuning_indices",),
        reads=True,
    ),
    "TINYLORA": Tuner({"tinylora_v": 0.0}, kept=("tinylora_A", "tinylora_B", "tinylora_P")),
    "UNILORA": Tuner(
        kept=(
            "unilora_indices_A",
            "unilora_indices_B",
            "unilora_scales_A",
            "unilora_scales_B",
        ),
        moves=(True, False),
        exports=False,
        on_meta=False,
    ),
    "VBLORA": Tuner(moves=(True,)),
    "VERA": Tuner({"vera_lambda_b": 0.0}, kept=("vera_A", "vera_B"), shared=("vera_A", "vera_B")),
    "WAVEFT": Tuner({"waveft_spectrum": 0.0}, kept=("waveft_indices",), exports=False),
}

_TOKENS = "it changes the tokens of a language model; a denoiser has none"
REFUSED = {
    "ADALORA": "its ranks follow from a budget that peft's own training loop allots, and its loss "
    "has a term of its own",
    "ADAMSS": "the number of its parameters follows from a clustering of the base's weights, which "
    "differs from machine to machine",
    "ADAPTION_PROMPT": _TOKENS,
    "CARTRIDGE": _TOKENS,
    "CPT": _TOKENS,
    "FROD": "it decomposes layers of one name together, and theirs differ in width",
    "MULTITASK_PROMPT_TUNING": _TOKENS,
    "POLY": "it routes by the number of a task, and a training has one task",
    "PREFIX_TUNING": _TOKENS,
    "PROMPT_TUNING": _TOKENS,
    "P_TUNING": _TOKENS,
    "SHADOW": "it runs beside the decoder of a language model",
    "TRAINABLE_TOKENS": _TOKENS,
    "XLORA": "it mixes adapters that are trained already",
}

# Fields of peft that fitspace decides, each with what decides it here.
_WHERE = "`target` says which layers are changed"
_SEED = "the run's seed decides what is drawn"
_STEP = "training draws by step, and sampling draws nothing but an image's noise"
_SAVED = "a file always holds what it needs"
_BASE = "the base's own parameters stay frozen"
OURS = {
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
         "feedforward_modules", "fan_in_fan_out", "use_effective_conv2d", "ensure_weight_tying"),
        _WHERE,
    ),
    **dict.fromkeys(
        ("random_loc_seed", "projection_prng_key", "projection_seed", "proj_seed", "random_seed"),
        _SEED,
    ),
    **dict.fromkeys(("generator_seed", "sample_at_inference"), _STEP),
    **dict.fromkeys(
        ("save_projection", "save_indices", "save_precomputed_indices", "save_only_topk_weights"),
        _SAVED,
    ),
    **dict.fromkeys(("bias", "modules_to_save"), _BASE),
    **dict.fromkeys(
        ("megatron_core", "use_qalora", "qalora_group_size"), "the base's weights are whole numbers"
    ),
}  # fmt: skip
READS = "reads the values of the base's weights in every pass"
FROM_WEIGHTS = ("pissa", "olora")  # LoRA's initial values that are parts of the base's weights
# LoRA's initial values that fitspace cannot give.
STARTS = {
    **dict.fromkeys(
        ("eva", "corda"), "starts from what the layers see of a task's images, before any training"
    ),
    "loftq": "changes the base's weights into quantized ones",
    "mica": "trains B alone, with an A that is no part of peft's files",
}


@dataclass(frozen=True)
class PeftField:
    """A field of a configuration that holds a single value: its types, choices and default."""

    types: tuple[type, ...]
    choices: tuple[Any, ...]
    default: Any = None

    def problem(self, value: Any) -> str | None:
        """Why a value does not fit the field; None if it does."""
        if value in self.choices and type(value) in {type(c) for c in self.choices}:
            return None
        accepted = (*self.types, int) if float in self.types else self.types
        if type(value) in accepted:
            return None
        return f"{short(value)}; allowed: {self.allowed}"

    @property
    def allowed(self) -> str:
        """What fits, in words."""
        return ", ".join([*(t.__name__ for t in self.types), *map(str, self.choices)])


@cache
def fields(peft_type: str) -> dict[str, PeftField]:
    """Name -> field, for a tuner of `TUNERS`: those that hold a single value and that a study may
    set."""
    return {
        line.target.id: found
        for line in _configuration(peft_type).body
        if isinstance(line, ast.AnnAssign) and line.target.id not in OURS
        if (found := _field(line)).types or found.choices
    }


@cache
def seeds(peft_type: str) -> list[str]:
    """The fields from which a tuner draws, set from the run's seed."""
    lines = [n for n in _configuration(peft_type).body if isinstance(n, ast.AnnAssign)]
    return [n.target.id for n in lines if OURS.get(n.target.id) is _SEED]


def _configuration(peft_type: str) -> ast.ClassDef:
    """The class of a tuner's configuration: the one that sets this ``peft_type``."""
    (package,) = importlib.util.find_spec("peft").submodule_search_locations
    source = Path(package) / "tuners" / peft_type.lower() / "config.py"
    said = f"self.peft_type = PeftType.{peft_type}"
    classes = ast.parse(source.read_text(encoding="utf-8")).body
    return next(
        node for node in classes if isinstance(node, ast.ClassDef) and said in ast.unparse(node)
    )


def _field(line: ast.AnnAssign) -> PeftField:
    """``name: Optional[Union[int, Literal["a"]]] = field(default=..., ...)``."""
    types, choices = [], []

    def look(node: ast.expr) -> None:
        if isinstance(node, ast.Name) and node.id in SCALARS:
            types.append(SCALARS[node.id])
        elif isinstance(node, ast.BinOp):  # a | b
            look(node.left)
            look(node.right)
        elif isinstance(node, ast.Subscript):
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if ast.unparse(node.value) == "Literal":
                choices.extend(ast.literal_eval(item) for item in items)
            elif ast.unparse(node.value) in ("Optional", "Union"):
                for item in items:
                    look(item)

    look(line.annotation)
    given = {k.arg: k.value for k in getattr(line.value, "keywords", ())}
    default = ast.literal_eval(given["default"]) if types or choices else None
    plain = [c for c in choices if c not in STARTS and "[" not in str(c)]
    return PeftField(tuple(dict.fromkeys(types)), tuple(plain), default)
