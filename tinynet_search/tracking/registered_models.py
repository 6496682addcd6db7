"""Registers weights in MLflow, and decides which version of a registered model is the champion.

The weights of a finished training become artifacts of the run and a version of the model that is
named after the network. ``load_exported`` and ``tinynet export`` read the folder of a downloaded
version. Used by ``JobPublisher``, and by ``registered_formula`` for the formula of a search.

One rule moves the alias ``champion`` of weights and formulas, ``update_champion``.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
# Tags of a version: the fingerprint of the data, the top-1 of weights in percent, and the owner.
DATA_TAG, TOP1_TAG = "data", "top1"
CLASS_NAMES_FILE = "class_names.json"
DIGEST, REGISTERED = "tinynet.digest", "tinynet.registered"
ARTIFACT_FOLDER = "model"
SENT_TAG = f"{DIGEST}.{ARTIFACT_FOLDER}"


def content_digest(data: str | bytes) -> str:
    """Return the digest of an artifact; content whose digest MLflow has is not sent again."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def class_names_text(names: Sequence[str]) -> str:
    """Return the content of class_names.json: the names in the order of the labels."""
    return json.dumps(list(names), indent=1, ensure_ascii=False) + "\n"


def ensure_model(
    client: "MlflowClient", name: str, description: str, tags: Mapping[str, str] | None = None
) -> None:
    """Create a registered model unless it exists."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, dict(tags or {}), description)
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


def update_champion(
    client: "MlflowClient",
    model: str,
    version: str,
    is_better: Callable[["ModelVersion", "ModelVersion"], bool],
    *,
    promote: bool,
) -> None:
    """Move the alias ``champion`` of a model to a version, or keep it where it is.

    It moves if there is no champion, on request, or if the version was trained on the same data
    (tag ``data``) as the present champion and is better. Results on other data are not compared.

    Args:
        client: an MLflow client.
        model: name of the registered model.
        version: number of the version.
        is_better: whether its first argument is better than the second, the present champion.
        promote: whether to move it in any case.
    """
    champion = version_with_alias(client, model, CHAMPION)
    if champion is not None and str(champion.version) == version:
        return
    if champion is not None and not promote:
        new = client.get_model_version(model, version)
        data = new.tags.get(DATA_TAG)
        if data is None or champion.tags.get(DATA_TAG) != data or not is_better(new, champion):
            return
    client.set_registered_model_alias(model, CHAMPION, version)


def version_with_alias(client: "MlflowClient", model: str, alias: str) -> "ModelVersion | None":
    """Return the version of a model that has an alias, None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def number_of(version: "ModelVersion", tag: str) -> float | None:
    """Return the number in a tag of a version, None if it is not one: any client may tag."""
    text = version.tags.get(tag, "")
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,12})?(e-\d\d)?", text, re.ASCII) else None


def register_weights(
    runs: Runs,
    child: Child,
    folder: Folder,
    model: str,
    tags: Mapping[str, str],
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
    assert version is not None
    update_champion(client, model, version, _has_higher_top1, promote=False)
    client.set_tag(run_id, REGISTERED, f"{model}/{version}")


def promote_weights(client: "MlflowClient", model: str, key: str) -> str | None:
    """Make the weights of a training the champion.

    Args:
        client: an MLflow client.
        model: name of the registered model.
        key: key of the training's run.

    Returns:
        The number of the version, None if the training has no registered weights.
    """
    versions = client.search_model_versions(f"name = '{model}' and tags.`{KEY}` = '{key}'")
    if not versions:
        return None
    version = str(max(int(version.version) for version in versions))
    update_champion(client, model, version, _has_higher_top1, promote=True)
    return version


def _has_higher_top1(new: "ModelVersion", champion: "ModelVersion") -> bool:
    new_top1, champion_top1 = number_of(new, TOP1_TAG), number_of(champion, TOP1_TAG)
    return new_top1 is not None and champion_top1 is not None and new_top1 > champion_top1


def _portable_config(config: bytes, name: str) -> bytes:
    """Return a trial's configuration with the name of its network and without local data paths."""
    values: dict[str, Any] = parsed(config)
    data = {key: value for key, value in values["data"].items() if key not in ("path", "cache")}
    return json.dumps({**values, "name": name, "data": data}, indent=1).encode()
