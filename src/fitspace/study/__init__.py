"""The models of a study file. This room looks at no base and no data."""

from fitspace.study.models import (
    CHECKPOINT,
    CONTROL,
    CONTROLS,
    DEGRADATIONS,
    DRAWN,
    LEARNT,
    OF_CONTROL,
    TUNING,
    Analysis,
    Arm,
    DreamBooth,
    Given,
    SampleSettings,
    Study,
    Task,
    TrainSettings,
)

__all__ = [
    "CHECKPOINT",
    "CONTROL",
    "CONTROLS",
    "DEGRADATIONS",
    "DRAWN",
    "LEARNT",
    "OF_CONTROL",
    "TUNING",
    "Analysis",
    "Arm",
    "DreamBooth",
    "Given",
    "SampleSettings",
    "Study",
    "Task",
    "TrainSettings",
]
