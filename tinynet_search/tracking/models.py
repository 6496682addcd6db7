"""Registered models: made where missing, each content one version under its key, aliases that MLflow allows."""

import hashlib
import re
from typing import TYPE_CHECKING

from tinynet_search.tracking.projection import KEY

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
DIGEST, REGISTERED = "tinynet.digest", "tinynet.registered"


def digest_of(data: str | bytes) -> str:
    """Names a content: what is registered or sent under the same digest is not sent again."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def ensure_model(client: "MlflowClient", name: str, description: str) -> None:
    """The registered model of a name, created if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def only_version(client: "MlflowClient", name: str, key: str, digest: str) -> str | None:
    """The first version of a content under a key, None where there is none; the others, which lost answers left, are deleted."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST}` = '{digest}'")
    versions = sorted(int(version.version) for version in found if version.tags.get(KEY) == key)
    for version in versions[1:]:
        client.delete_model_version(name, str(version))
    return str(versions[0]) if versions else None


def allowed_alias(alias: str) -> bool:
    """MLflow keeps v1, v2, ... and latest for itself."""
    return bool(re.fullmatch(r"[\w-]{1,255}", alias, re.ASCII)) and not re.fullmatch(
        r"v\d+|latest", alias, re.IGNORECASE
    )
