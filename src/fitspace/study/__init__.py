"""The models of a study file. This room looks at no base and no data."""

from fitspace.study.models import (
    CHECKPOINT,
    DRAWN,
    TUNING,
    Analysis,
    Arm,
    DreamBooth,
    SampleSettings,
    Study,
    Task,
    TrainSettings,
)

__all__ = [
    "CHECKPOINT",
    "DRAWN",
    "TUNING",
    "Analysis",
    "Arm",
    "DreamBooth",
    "SampleSettings",
    "Study",
    "Task",
    "TrainSettings",
]
