"""Downloads files of registered models without loading the models.

Used by ``tinynet_search.formula`` for ``models:/name@alias`` and ``models:/name/version``.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search_spaces.errors import RequestError
from tinynet_search.errors import TrackingError, one_line
from tinynet_search.mlflow_client.connection import (
    address,
    connect,
    database_file,
    mlflow_access,
    resolve_uri,
)

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))/?")


@contextmanager
def downloaded_file(uri: str, file: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """Download a file of a model version to a temporary folder that exists within the context.

    Args:
        uri: ``models:/name@alias`` or ``models:/name/version``.
        file: the name of the file.
        tracking_uri: URI of the registry; None selects MLFLOW_TRACKING_URI, or else the database
            in ``searches``.

    Raises:
        RequestError: the URI is not one of a registered model, the version does not exist, or it
            does not contain the file.
        TrackingError: MLflow does not respond.
    """
    match = _MODEL_URI.fullmatch(uri)
    if not match:
        raise RequestError(
            f"{one_line(uri)!r} is not a registered model: "
            "pass models:/name@alias or models:/name/version"
        )
    registry = resolve_uri(tracking_uri, None, "searches")
    shown, database = address(registry), database_file(registry)
    if database is not None and not database.is_file():
        raise TrackingError(
            f"no MLflow database at {shown}: pass the tracking URI of the server that has {uri}"
        )
    with tempfile.TemporaryDirectory() as folder:
        with mlflow_access(registry):
            from mlflow.artifacts import download_artifacts, list_artifacts

            location = _location(connect(registry), uri, **match.groupdict())
            items = list_artifacts(location, tracking_uri=registry)
            if not any(Path(item.path).name == file for item in items):
                raise RequestError(
                    f"{uri} at {shown} does not contain {file}: register a tiny formula"
                )
            path = download_artifacts(f"{location}/{file}", dst_path=folder, tracking_uri=registry)
        yield Path(path)


def _location(client: Any, uri: str, name: str, alias: str | None, version: str | None) -> str:
    """Return the location of a model version's files.

    A version that was created from a logged model points to that model by its id.
    """
    from mlflow.exceptions import MlflowException

    try:
        model = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, version)
        )
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise RequestError(f"no formula {uri} in the registry: {one_line(error)}") from error
        raise
    location = client.get_model_version_download_uri(name, model.version)
    if location.startswith("models:/"):
        location = client.get_logged_model(
            location.removeprefix("models:/").strip("/")
        ).artifact_location
    return location.rstrip("/")
