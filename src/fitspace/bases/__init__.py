"""Base models: find a diffusers pipeline, identify it by digest, load its parts frozen.

Only local files are read, only safetensors, and never code that came with a model.
"""

from fitspace.bases.control import (
    Control,
    add_control,
    control_for,
    control_of,
    control_parameters,
    fold_control,
    taught_part,
)
from fitspace.bases.dit import (
    at_scale,
    class_table,
    new_classes,
    own_classes,
    scale,
)
from fitspace.bases.families import DENOISERS, FAMILIES, family_of
from fitspace.bases.family import Conditions, Family, picked
from fitspace.bases.finding import (
    CONFIGS,
    architecture,
    complete,
    config,
    denoiser,
    denoiser_config,
    digest,
    family,
    family_in,
    fetch,
    files,
    image_size,
    labels,
    named_config,
    resolve,
)
from fitspace.bases.loading import (
    caption_tokens,
    cut_captions,
    encode_captions,
    from_config,
    load_denoiser,
    load_process,
    load_text,
    load_vae,
    to_model,
)
from fitspace.bases.trying import problems
from fitspace.bases.usable import tokens_of

__all__ = [
    "CONFIGS",
    "Conditions",
    "Control",
    "DENOISERS",
    "FAMILIES",
    "Family",
    "add_control",
    "architecture",
    "at_scale",
    "caption_tokens",
    "class_table",
    "complete",
    "config",
    "control_for",
    "control_of",
    "control_parameters",
    "cut_captions",
    "denoiser",
    "denoiser_config",
    "digest",
    "encode_captions",
    "family",
    "family_in",
    "family_of",
    "fetch",
    "files",
    "fold_control",
    "from_config",
    "image_size",
    "labels",
    "load_denoiser",
    "load_process",
    "load_text",
    "load_vae",
    "named_config",
    "new_classes",
    "own_classes",
    "picked",
    "problems",
    "resolve",
    "scale",
    "taught_part",
    "to_model",
    "tokens_of",
]
