"""Registers the weights of a finished training in MLflow, and manages registered models.

The weights become artifacts of the run and a version of the model that is named after the network.
The alias ``champion`` is the version with the highest ``top1`` (the first of equal ones) among
those trained on the same data (tag ``data``) as the version registered last. Accuracies on other
data are not compared. ``load_exported`` and ``tinynet export`` read the folder of a downloaded
version. Used by ``JobPublisher`` and by the conclusion of a search.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import RequestError
from search_spaces.weights import MAX_FILE_BYTES
from tinynet_search.errors import one_line
from tinynet_search.tracking.projection import KEY
from tinynet_search.tracking.runs import Child, Runs
from trainables.storage.documents import SMALL, parsed
from trainables.storage.folder import Folder
from trainables.trial_folder import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
DIGEST, REGISTERED = "tinynet.digest", "tinynet.registered"
ARTIFACT_FOLDER = "model"
SENT_TAG = f"{DIGEST}.{ARTIFACT_FOLDER}"


def content_digest(data: str | bytes) -> str:
    """Return the digest of an artifact; content whose digest MLflow has is not sent again."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def ensure_model(client: "MlflowClient", name: str, description: str) -> None:
    """Create a registered model unless it exists."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def deduplicated_version(client: "MlflowClient", name: str, key: str, digest: str) -> str | None:
    """Return the first version with this key and digest, None if there is none.

    Lost responses may have left duplicates: they are deleted.
    """
    versions = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST}` = '{digest}'")
    numbers = sorted(int(version.version) for version in versions if version.tags.get(KEY) == key)
    for number in numbers[1:]:
        client.delete_model_version(name, str(number))
    return str(numbers[0]) if numbers else None


def allowed_alias(alias: str) -> bool:
    """Whether MLflow allows an alias: v1, v2, ... and latest are reserved."""
    return bool(re.fullmatch(r"[\w-]{1,255}", alias, re.ASCII)) and not re.fullmatch(
        r"v\d+|latest", alias, re.IGNORECASE
    )


def register_weights(
    runs: Runs, child: Child, folder: Folder, model: str, tags: Mapping[str, str]
) -> None:
    """Register the weights in a trial folder; what MLflow already has is not sent again.

    Args:
        runs: the runs of the job.
        child: the run of the training.
        folder: the trial folder.
        model: name of the registered model.
        tags: tags of the version: ``top1``, ``data``, ``run_id``, ...

    Raises:
        RequestError: a file in the folder is damaged, or larger than the limit.
    """
    client, run_id = runs.client, child.run_id
    try:
        files = {
            WEIGHTS_FILE: folder.read(WEIGHTS_FILE, MAX_FILE_BYTES),
            CONFIG_FILE: _portable_config(folder.read(CONFIG_FILE, SMALL), model),
        }
    except FileNotFoundError:
        return  # the weights were deleted to free space: the result is valid without them
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{folder.url}: its weights or their {CONFIG_FILE} are damaged "
            f"({one_line(error, 100)}): remove them"
        ) from error
    run = client.get_run(run_id)
    digest = content_digest(files[WEIGHTS_FILE] + files[CONFIG_FILE])
    if run.data.tags.get(SENT_TAG) != digest:
        with tempfile.TemporaryDirectory() as temporary:
            for name, data in files.items():
                (Path(temporary) / name).write_bytes(data)
            client.log_artifacts(run_id, temporary, ARTIFACT_FOLDER)
        client.set_tag(run_id, SENT_TAG, digest)
    version = deduplicated_version(client, model, tags[KEY], digest)
    if version is None:
        ensure_model(client, model, f"Weights of {model}: {WEIGHTS_FILE} and {CONFIG_FILE}")
        source = f"{run.info.artifact_uri}/{ARTIFACT_FOLDER}"
        client.create_model_version(
            model, source, run_id=run_id, tags={**tags, DIGEST: digest}, await_creation_for=0
        )
        version = deduplicated_version(client, model, tags[KEY], digest)
    _update_champion(client, model, tags["data"])
    client.set_tag(run_id, REGISTERED, f"{model}/{version}")


def _update_champion(client: "MlflowClient", model: str, data: str) -> None:
    versions = client.search_model_versions(f"name = '{model}' and tags.`data` = '{data}'")
    # Any client may tag a version: values that are not a percentage are ignored.
    scored = [
        version
        for version in versions
        if re.fullmatch(r"\d{1,3}(\.\d{1,9})?", version.tags.get("top1", ""), re.ASCII)
    ]
    best = max(scored, key=lambda version: (float(version.tags["top1"]), -int(version.version)))
    client.set_registered_model_alias(model, CHAMPION, best.version)


def _portable_config(config: bytes, name: str) -> bytes:
    """Return a trial's configuration with the name of its network and without local data paths."""
    values: dict[str, Any] = parsed(config)
    data = {key: value for key, value in values["data"].items() if key not in ("path", "cache")}
    return json.dumps({**values, "name": name, "data": data}, indent=1).encode()
