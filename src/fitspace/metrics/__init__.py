"""The metrics of a run's samples and the models that compute them.

CLIP-T, CLIP-I and diversity by a judge (any open_clip model); Fréchet distance, KID, precision
and recall on EfficientNet-lite0 features; FID if a study names Inception-v3's weights. Importing
this package imports no torch.
"""

from fitspace.metrics.extractors import NAMED
from fitspace.metrics.measuring import (
    evaluate,
    evaluate_subject,
    reference_features,
    subject_features,
)
from fitspace.metrics.reading import read_features, read_metrics
from fitspace.metrics.table import (
    EXTRACTOR,
    EXTRACTOR_SHA256,
    INTERVAL,
    JUDGE_FEATURES,
    METRICS,
    NAMES,
    NEIGHBOURHOOD,
    OF_HELD_OUT,
    OF_SUBJECT,
    SHOW_COPIES,
    SUBJECT_FEATURES,
    VERSION,
    Metric,
    alone,
    measured,
)
from fitspace.metrics.trying import cut_captions, problems
from fitspace.metrics.weights import (
    fetch_judge,
    identity,
    judge_files,
    judge_folder,
    weights_file,
)

__all__ = [
    "EXTRACTOR",
    "EXTRACTOR_SHA256",
    "JUDGE_FEATURES",
    "INTERVAL",
    "METRICS",
    "Metric",
    "NAMED",
    "NAMES",
    "NEIGHBOURHOOD",
    "OF_HELD_OUT",
    "OF_SUBJECT",
    "SHOW_COPIES",
    "SUBJECT_FEATURES",
    "VERSION",
    "alone",
    "cut_captions",
    "evaluate",
    "evaluate_subject",
    "fetch_judge",
    "identity",
    "judge_files",
    "judge_folder",
    "measured",
    "problems",
    "read_features",
    "read_metrics",
    "reference_features",
    "subject_features",
    "weights_file",
]
