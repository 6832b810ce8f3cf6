"""Every tuner of peft that works on a denoiser, with settings for a tiny one."""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    """A tuner with settings that suit layers 8 to 16 wide, and what it promises."""

    peft_type: str
    settings: dict[str, Any] = {}
    identity: bool = True
    merges: bool = True
    strength: bool = True


CASES = [
    Case("BEFT", merges=False),
    Case("BOFT", {"boft_block_size": 2}),
    Case("C3A", {"block_size": 4}, identity=False),
    Case("DEFT", {"r": 2}, strength=False),
    Case("DELORA", {"r": 2}),
    Case("FOURIERFT", {"n_frequency": 20, "scaling": 10.0}, identity=False),
    Case("GLORA", {"r": 2}, strength=False),
    Case("GRALORA", {"r": 4}),
    Case("HIRA", {"r": 2}),
    Case("HRA", {"r": 2}, strength=False),
    Case("IA3"),
    Case("LILY", {"r": 2}, merges=False, strength=False),
    Case("LN_TUNING", strength=False),
    Case("LOHA", {"r": 2}),
    Case("LOKR", {"r": 2}),
    Case("LORA", {"r": 2}),
    Case("MISS", {"r": 2}),
    Case("OFT", {"oft_block_size": 4}),
    Case("OSF", {"effective_rank": 2}, strength=False),
    Case("PEANUT", {"r": 2}),
    Case("PSOFT", {"r": 4}, strength=False),
    Case("PVERA", {"r": 4}),
    Case("RANDLORA", {"r": 2, "randlora_alpha": 4}),
    Case("ROAD", {"group_size": 4}),
    Case("SHIRA", {"r": 2}),
    Case("SUPERTUNING", {"sparsity": 0.8}),
    Case("TINYLORA", {"u": 4}),
    Case("UNILORA", identity=False, strength=False),
    Case("VBLORA", {"vector_length": 4, "num_vectors": 8}, identity=False, strength=False),
    Case("VERA", {"r": 4}),
    Case("WAVEFT", {"n_frequency": 20}),
]
