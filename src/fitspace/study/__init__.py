"""What the user wrote: the models of a study file. Looks at no base and no data."""

from fitspace.study.models import (
    Analysis,
    Arm,
    DreamBooth,
    SampleSettings,
    Study,
    Task,
    TrainSettings,
)

__all__ = [
    "Analysis",
    "Arm",
    "DreamBooth",
    "SampleSettings",
    "Study",
    "Task",
    "TrainSettings",
]
