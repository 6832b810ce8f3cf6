"""The metrics of a run's samples and the models that compute them.

Always measured: CLIP-T, CLIP-I and diversity by a judge (any open_clip model); Fréchet distance,
KID, precision and recall on EfficientNet-lite0 features; FID if a study names Inception-v3's
weights. A study names further ones, see :mod:`fitspace.metrics.further`. Importing this package
imports no torch.
"""

from fitspace.metrics.extractors import JUDGE, NAMED
from fitspace.metrics.keeping import Kept
from fitspace.metrics.measuring import (
    evaluate,
    evaluate_subject,
    features_of,
    of_last_prompts,
    reference_features,
    subject_features,
)
from fitspace.metrics.metric import GIVEN, TRAINING, Compared, Metric
from fitspace.metrics.reading import read_features, read_metrics
from fitspace.metrics.table import (
    INTERVAL,
    JUDGE_FEATURES,
    METRICS,
    NAMES,
    NEIGHBOURHOOD,
    OF_HELD_OUT,
    OF_SUBJECT,
    SHOW_COPIES,
    SUBJECT_FEATURES,
    alone,
    asked,
    beside_untouched,
    extractors_of,
    measured,
    weights_for,
)
from fitspace.metrics.trying import cut_captions, problems
from fitspace.metrics.weights import (
    EXTRACTOR,
    EXTRACTOR_SHA256,
    VERSION,
    fetch_judge,
    identity,
    judge_files,
    judge_folder,
    weights_file,
    weights_of,
)

__all__ = [
    "Compared",
    "EXTRACTOR",
    "EXTRACTOR_SHA256",
    "GIVEN",
    "JUDGE_FEATURES",
    "INTERVAL",
    "JUDGE",
    "Kept",
    "METRICS",
    "Metric",
    "NAMED",
    "NAMES",
    "NEIGHBOURHOOD",
    "OF_HELD_OUT",
    "OF_SUBJECT",
    "SHOW_COPIES",
    "SUBJECT_FEATURES",
    "TRAINING",
    "VERSION",
    "alone",
    "asked",
    "beside_untouched",
    "cut_captions",
    "evaluate",
    "evaluate_subject",
    "extractors_of",
    "features_of",
    "fetch_judge",
    "identity",
    "judge_files",
    "judge_folder",
    "measured",
    "of_last_prompts",
    "problems",
    "read_features",
    "read_metrics",
    "reference_features",
    "subject_features",
    "weights_file",
    "weights_for",
    "weights_of",
]
