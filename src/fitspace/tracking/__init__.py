"""Import a study's runs into MLflow; the only room that imports mlflow."""

from fitspace.tracking.importing import Tracked, track
from fitspace.tracking.sending import live

__all__ = [
    "Tracked",
    "live",
    "track",
]
