"""The metrics and what is known of each."""

from __future__ import annotations

VERSION = 1
# By what a task is judged: held-out images and captions, or, with dreambooth, its subject.
OF_HELD_OUT = (
    "fd_effnet",
    "kid_effnet",
    "precision",
    "recall",
    "clip_t",
    "clip_i",
    "clip_i_paired",
    "diversity",
)
OF_SUBJECT = ("clip_i", "clip_i_elsewhere", "clip_t", "diversity", "prior_drift")
FID = "fid"  # of held-out images too, where the study names Inception-v3's weights
NAMES = tuple(dict.fromkeys([*OF_HELD_OUT, *OF_SUBJECT, FID]))
LOWER_IS_BETTER = ("fd_effnet", "kid_effnet", "prior_drift", FID)
# The Fréchet distance corrected for its bias in n, and the limits of its 95% interval.
INTERVAL = ("fd_effnet_jackknife", "fd_effnet_low", "fd_effnet_high")
# What the features of either kind of task are: dtype, rows and numbers a row.
FEATURES = {
    "judge_images": "F32 m e",
    "judge_texts": "F32 p e",
    "judge_paired": "F32 p e",
    "effnet": "F32 m d",
}
INCEPTION_FEATURES = {"inception": "F32 m 2048"}  # beside FEATURES, for FID
SUBJECT_FEATURES = {"judge_images": "F32 m e", "judge_texts": "F32 n e", "judge_class": "F32 n e"}
# Their expected value depends on the number of samples; that of the others does not.
DEPENDS_ON_N = ("fd_effnet", "precision", "recall", FID)
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the samples, in the curve against their number
EXTRACTOR = "effnet-lite0-v1"
EXTRACTOR_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NEIGHBOURHOOD = 3  # of precision and recall (1904.06991, section 3.1)
