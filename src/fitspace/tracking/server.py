"""The connection to MLflow: its address and experiments; the only import of mlflow."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from fitspace.core.errors import UserError

DEFAULT_URI = "sqlite:///mlflow.db"
KIND = "mlflow.experimentKind"  # else the pages take the study for one of language models


def tracking_uri() -> str:
    """The address of MLFLOW_TRACKING_URI, else of the project's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def library() -> Any:
    """The mlflow library, without telemetry and with warnings only."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name, value in {
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_DISABLE_AGENT_HINT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # An unreachable server should be an error within seconds, not after minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name, level in {
        "alembic": logging.WARNING,
        "urllib3.connectionpool": logging.ERROR,
    }.items():
        logging.getLogger(name).setLevel(level)
    return mlflow


def without_password(text: str) -> str:
    """An address without the password in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def database_of(uri: str) -> Path | None:
    """The file of a sqlite address; None for any other address."""
    found = re.match(r"sqlite:///([^?]+)", uri)
    return Path(found[1]) if found else None


def client_uri(uri: str) -> str:
    """The address with an absolute path, because MLflow caches stores by their address."""
    database = database_of(uri)
    return uri if database is None else uri.replace(str(database), str(database.resolve()), 1)


def experiment_of(client: Any, uri: str, name: str) -> str:
    """The id of the study's experiment; creates it, or restores a deleted one, if necessary."""
    from mlflow import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = database_of(uri)
        place = database and (database.parent / "mlartifacts" / name).resolve().as_uri()
        try:
            return client.create_experiment(name, place, {KIND: "custom_model_development"})
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another one was faster
            if found is None:
                raise
    _is_of_here(found, uri)
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _is_of_here(experiment: Any, uri: str) -> None:
    """Raise UserError where a database was copied or moved: artefacts would go to the old place.

    MLflow remembers a place by its absolute path.
    """
    database, place = database_of(uri), urlparse(experiment.artifact_location)
    if database is None or place.scheme not in ("", "file"):
        return
    expected = (database.parent / "mlartifacts").resolve()
    found = Path(unquote(place.path))
    if not found.is_relative_to(expected):
        raise UserError(
            f"{database}: was made in another folder and would write into {found}; delete it, and "
            "`fitspace track STUDY.yaml` makes it anew from the results"
        )
