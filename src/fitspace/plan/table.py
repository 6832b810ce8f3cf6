"""The stages of a run: their numbers and what each reads."""

from __future__ import annotations

# Raise a stage's number when its results change: a golden test holds the numbers in place.
VERSIONS = {"prior": 1, "prepare": 1, "reference": 1, "train": 1, "sample": 1, "evaluate": 2}
# Stage -> the stages of the same run whose results it reads.
UPSTREAM = {
    "prior": (), "prepare": ("prior",), "reference": ("prepare",), "train": ("prepare",),
    "sample": ("prepare", "train"), "evaluate": ("sample", "reference"),
}  # fmt: skip
