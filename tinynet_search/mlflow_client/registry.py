"""Files of registered models, fetched without loading any model: ``models:/name@alias`` and ``models:/name/version``."""

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
    reaching,
    resolve_uri,
)

_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))/?")


@contextmanager
def fetched(uri: str, file: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """A file of a model version, in a temporary folder while inside.

    Args:
        tracking_uri: where the registry is; None is MLFLOW_TRACKING_URI, else the database in ``searches``.

    Raises:
        RequestError: the URI names no registered model, or there is no such version, or it holds no such file.
        TrackingError: MLflow does not answer.
    """
    found = _MODEL.fullmatch(uri)
    if not found:
        raise RequestError(
            f"{one_line(uri)!r} names no registered model: give models:/name@alias or models:/name/version"
        )
    where = resolve_uri(tracking_uri, None, "searches")
    shown, database = address(where), database_file(where)
    if database is not None and not database.is_file():
        raise TrackingError(
            f"no MLflow database at {shown}: give the tracking URI of the server that holds {uri}"
        )
    with tempfile.TemporaryDirectory() as folder:
        with reaching(where):
            from mlflow.artifacts import download_artifacts, list_artifacts

            location = _location(connect(where), uri, **found.groupdict())
            if not any(
                Path(item.path).name == file
                for item in list_artifacts(location, tracking_uri=where)
            ):
                raise RequestError(f"{uri} at {shown} holds no {file}: register a tiny formula")
            path = download_artifacts(f"{location}/{file}", dst_path=folder, tracking_uri=where)
        yield Path(path)


def _location(client: Any, uri: str, name: str, alias: str | None, version: str | None) -> str:
    """Where a model version's files lie; a version made of a logged model points to that model by its id."""
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
