"""The weights of a finished training in MLflow: artifacts of its run, a version of the model named after its network.

``champion`` is, of the versions trained on the same data (tag ``data``) as the one registered last, that of the highest
``top1``; of equal ones the first. Accuracies on other data are not compared. A downloaded version is a folder that
``load_exported`` and ``tinynet export`` read.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import RequestError
from search_spaces.weights import LARGEST
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


PLACE = "model"
SENT = f"{DIGEST}.{PLACE}"


def content_digest(data: str | bytes) -> str:
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


def deliver(runs: Runs, child: Child, folder: Folder, model: str, tags: Mapping[str, str]) -> None:
    """Bring the weights in a trial's folder to MLflow; what is already there is not sent again.

    Args:
        model: the registered model's name.
        tags: of the version: ``top1``, ``data``, ``run_id``, ...

    Raises:
        RequestError: a file there is damaged, or larger than any of ours.
    """
    client, run_id = runs.client, child.run_id
    try:
        files = {
            WEIGHTS_FILE: folder.read(WEIGHTS_FILE, LARGEST),
            CONFIG_FILE: _travelling(folder.read(CONFIG_FILE, SMALL), model),
        }
    except FileNotFoundError:
        return  # someone has made room: the result counts without its weights
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{folder.url}: its weights or their {CONFIG_FILE} are damaged ({one_line(error, 100)}): remove them"
        ) from error
    run = client.get_run(run_id)
    digest = content_digest(files[WEIGHTS_FILE] + files[CONFIG_FILE])
    if run.data.tags.get(SENT) != digest:
        with tempfile.TemporaryDirectory() as place:
            for name, data in files.items():
                (Path(place) / name).write_bytes(data)
            client.log_artifacts(run_id, place, PLACE)
        client.set_tag(run_id, SENT, digest)
    version = only_version(client, model, tags[KEY], digest)
    if version is None:
        ensure_model(client, model, f"Weights of {model}: {WEIGHTS_FILE} and {CONFIG_FILE}")
        source = f"{run.info.artifact_uri}/{PLACE}"
        client.create_model_version(
            model, source, run_id=run_id, tags={**tags, DIGEST: digest}, await_creation_for=0
        )
        version = only_version(client, model, tags[KEY], digest)
    _crown(client, model, tags["data"])
    client.set_tag(run_id, REGISTERED, f"{model}/{version}")


def _crown(client: "MlflowClient", model: str, data: str) -> None:
    versions = client.search_model_versions(f"name = '{model}' and tags.`data` = '{data}'")
    # Anybody may tag a version: what is no percentage is passed over.
    scored = [
        version
        for version in versions
        if re.fullmatch(r"\d{1,3}(\.\d{1,9})?", version.tags.get("top1", ""), re.ASCII)
    ]
    best = max(scored, key=lambda version: (float(version.tags["top1"]), -int(version.version)))
    client.set_registered_model_alias(model, CHAMPION, best.version)


def _travelling(config: bytes, name: str) -> bytes:
    """A trial's configuration under its network's name, without the folders of the machine that its images lay on."""
    values: dict[str, Any] = parsed(config)
    data = {key: value for key, value in values["data"].items() if key not in ("path", "cache")}
    return json.dumps({**values, "name": name, "data": data}, indent=1).encode()
