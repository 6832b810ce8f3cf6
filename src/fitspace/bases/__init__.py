"""Base models: find a diffusers pipeline, identify it by digest, load its parts frozen.

Only local files are read, only safetensors, and never code that came with a model.
"""

from fitspace.bases.dit import (
    at_scale,
    class_table,
    new_classes,
    own_classes,
    scale,
)
from fitspace.bases.families import DENOISERS, FAMILIES, family_by, family_of
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
    load_teller,
    load_text,
    load_vae,
    scaling_of,
    text_tokens,
    to_model,
)
from fitspace.bases.trying import problems

__all__ = [
    "CONFIGS",
    "Conditions",
    "DENOISERS",
    "FAMILIES",
    "Family",
    "architecture",
    "at_scale",
    "caption_tokens",
    "class_table",
    "complete",
    "config",
    "cut_captions",
    "denoiser",
    "denoiser_config",
    "digest",
    "encode_captions",
    "family",
    "family_by",
    "family_in",
    "family_of",
    "fetch",
    "files",
    "from_config",
    "image_size",
    "labels",
    "load_denoiser",
    "load_process",
    "load_teller",
    "load_text",
    "load_vae",
    "named_config",
    "new_classes",
    "own_classes",
    "picked",
    "problems",
    "resolve",
    "scale",
    "scaling_of",
    "text_tokens",
    "to_model",
]
