"""Downloads files of registered models without loading the models.

Used by ``formula_models`` for ``models:/name@alias`` and ``models:/name/version``.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search_spaces.errors import RequestError
from tinynet_search.errors import TrackingError, one_line
from tinynet_search.mlflow_client.connection import (
    address,
    connect,
    database_file,
    missing_version,
    mlflow_access,
    resolve_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))/?")
# MLflow's error codes for a model, a version and an alias that do not exist.
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
MAX_MODELS = 1000


class MissingModelError(RequestError):
    """A registered model, its version or its alias does not exist."""


@dataclass(frozen=True)
class ModelReference:
    """A version of a registered model, by its alias or its number."""

    name: str
    alias: str | None
    version: str | None

    @classmethod
    def parse(cls, uri: str) -> "ModelReference":
        """Parse ``models:/name@alias`` or ``models:/name/version``.

        Raises:
            RequestError: it is neither.
        """
        match = _MODEL_URI.fullmatch(uri)
        if not match:
            raise RequestError(
                f"{one_line(uri)!r} is not a registered model: "
                "pass models:/name@alias or models:/name/version"
            )
        return cls(**match.groupdict())

    def __str__(self) -> str:
        end = f"@{self.alias}" if self.alias else f"/{self.version}"
        return f"models:/{self.name}{end}"


def registry_uri(tracking_uri: str | None, model: str) -> str:
    """Return the URI of the registry that contains a model.

    Args:
        tracking_uri: None selects MLFLOW_TRACKING_URI, or else the database in ``searches``.
        model: the model, for the message.

    Raises:
        TrackingError: it is a database that does not exist.
    """
    registry = resolve_uri(tracking_uri, None, "searches")
    database = database_file(registry)
    if database is not None and not database.is_file():
        raise TrackingError(
            f"no MLflow database at {address(registry)}: "
            f"pass the tracking URI of the server that has {model}"
        )
    return registry


@contextmanager
def downloaded_file(uri: str, file: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """Download a file of a model version to a temporary folder that exists within the context.

    Args:
        uri: ``models:/name@alias`` or ``models:/name/version``.
        file: the name of the file.
        tracking_uri: see ``registry_uri``.

    Raises:
        MissingModelError: the model, or its version, does not exist.
        RequestError: the URI is not one of a registered model, or the version does not contain the
            file.
        TrackingError: MLflow does not respond.
    """
    model = ModelReference.parse(uri)
    registry = registry_uri(tracking_uri, uri)
    with tempfile.TemporaryDirectory() as folder:
        with mlflow_access(registry):
            from mlflow.artifacts import download_artifacts, list_artifacts

            location = _location(connect(registry), model, address(registry))
            items = list_artifacts(location, tracking_uri=registry)
            if not any(Path(item.path).name == file for item in items):
                raise RequestError(
                    f"{uri} at {address(registry)} does not contain {file}: register a tiny formula"
                )
            path = download_artifacts(f"{location}/{file}", dst_path=folder, tracking_uri=registry)
        yield Path(path)


def models_with_prefix(registry: str, prefix: str) -> "list[RegisteredModel]":
    """Return the registered models whose name starts with a prefix, sorted by name.

    Raises:
        TrackingError: MLflow does not respond.
    """
    with mlflow_access(registry):
        models = connect(registry).search_registered_models(
            f"name LIKE '{prefix}%'", max_results=MAX_MODELS
        )
    return sorted(models, key=lambda model: model.name)


def _location(client: "MlflowClient", model: ModelReference, shown: str) -> str:
    """Return the location of a model version's files.

    A version that was created from a logged model points to that model by its id.
    """
    from mlflow.exceptions import MlflowException

    try:
        version = model.version
        if model.alias:
            version = client.get_model_version_by_alias(model.name, model.alias).version
        location = client.get_model_version_download_uri(model.name, str(version))
    except MlflowException as error:
        if error.error_code in _MISSING:
            raise MissingModelError(
                missing_version(client, str(model), shown, model.name, model.alias)
            ) from error
        raise
    if location.startswith("models:/"):
        location = client.get_logged_model(
            location.removeprefix("models:/").strip("/")
        ).artifact_location
    return location.rstrip("/")
