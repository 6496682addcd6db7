"""Builds the ``tinynet`` command of a job, with the metadata that Ray stores with it.

Called by ``submission``, ``watching`` and the entry point of jobs. No secrets are in the metadata.
"""

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from search_spaces.errors import RequestError
from tinynet_search.cluster.connect import DASHBOARD_NAME
from tinynet_search.config import Config, Values
from tinynet_search.errors import one_line
from tinynet_search.version import __version__
from trainables.storage.folder import check_no_credentials

if TYPE_CHECKING:
    from tinynet_search.train.request import TrainRequest

REQUEST, CONFIG = "tinynet.request", "{config}"
# The metadata of jobs that tinynet submitted. SHIPPED lists the uploads that a resumed job needs
# again.
KIND, NAME, STORAGE, OWNER = "tinynet.kind", "tinynet.name", "tinynet.storage", "tinynet.owner"
TRACKING, VERSION, SHIPPED = "tinynet.tracking", "tinynet.version", "tinynet.shipped"


@dataclass(frozen=True)
class JobCommand:
    """One ``tinynet`` command for a cluster.

    Attributes:
        kind: ``search`` or ``train``.
        name: the name of the search or the training job.
        arguments: of the command, with ``CONFIG`` in place of the configuration.
        values: of the configuration.
        owner: of the search or the training job.
        storage: the URL that the command writes to, recorded in the job's metadata.
        tracking: MLflow's URI, recorded in the job's metadata; empty for the cluster's default.
        check_values: the configuration for the check job, None if it is ``values``.
    """

    kind: str
    name: str
    owner: str
    arguments: tuple[str, ...]
    values: Values
    storage: str
    tracking: str
    check_values: Values | None = None

    def metadata(self, shipped: Collection[str]) -> dict[str, str]:
        """The metadata of the job; Ray requires strings as values."""
        request = {
            "name": self.name,
            "arguments": list(self.arguments),
            "config": dict(self.values),
        }
        fields = {
            KIND: self.kind,
            NAME: self.name,
            OWNER: self.owner,
            DASHBOARD_NAME: self.name if self.kind != "check" else f"{self.name} (check)",
            STORAGE: self.storage,
            TRACKING: self.tracking,
            VERSION: __version__,
        }
        return {**fields, SHIPPED: ",".join(shipped), REQUEST: json.dumps(request)}


def search_command(config: Config, tracking: str | None, retry: Collection[str] = ()) -> JobCommand:
    """The command of a search.

    Raises:
        RequestError: the configuration has a path of this machine, or contains a secret.
    """
    # Unset values stay unset: the cluster chooses them.
    values = config.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    # The cluster's default would be the login name of its containers.
    values.setdefault("search", {})["owner"] = config.owner
    values.get("run", {}).pop("address", None)
    _require_absolute_paths(
        config.storage.path, str((config.data.model_extra or {}).get("path") or "/")
    )
    uri = _tracking(tracking, config.tracking.uri)
    values = _with_registration(values, config)
    retry_options = tuple(argument for reason in retry for argument in ("--retry", reason))
    return JobCommand(
        "search",
        str(config.search.name),
        config.owner,
        ("search", CONFIG, *tracking_option(uri), *retry_options),
        values,
        config.url,
        uri or "",
    )


def train_command(request: "TrainRequest") -> JobCommand:
    """The command of a training.

    Raises:
        RequestError: the request has a path of this machine, contains a secret, or is not valid.
    """
    from tinynet_search.train.request import RequestedNetwork, complete_config, read_request

    # The configuration is read here; the data are checked on the cluster.
    values = read_request(replace(request, data=None))
    data = request.data or str(values.get("data", {}).get("path") or "petals")
    storage = str(values.get("storage", {}).get("path", "searches"))
    _require_absolute_paths(storage, "/" if data == "petals" else data)
    if request.formula is not None and (
        request.formula.endswith(".json") or Path(request.formula).exists()
    ):
        raise RequestError(
            f"--formula {one_line(request.formula)!r} is a file on this machine: "
            "pass --rdw and --space, or a formula of the registry"
        )
    uri = _tracking(request.tracking, (values.get("tracking") or {}).get("uri"))
    # The training runs as a trial on one of the nodes, with the node's GPU if it has one, and not
    # in the process of the job on the head.
    values["run"] = {**values.get("run", {}), "address": "auto"}
    if not values.setdefault("scaling", {}).keys() & {"auto", "gpus", "workers"}:
        values["scaling"] = {**values["scaling"], "auto": True}
    data_section = {"name": "imagefolder", "path": data} if data != "petals" else {"name": data}
    with_data = {**values, "data": values.get("data") or data_section}
    config = complete_config(with_data, RequestedNetwork(request).space, request)
    # The cluster's default would be the login name of its containers.
    owner = {"owner": config.owner}
    values["search"] = {**values.get("search", {}), **owner}
    values = _with_registration(values, config)
    options = {
        key: getattr(request, key)
        for key in ("rdw", "c", "space", "formula", "extrapolate", "data", "name")
    }
    flags = [
        part
        for key, value in options.items()
        if value not in (None, False)
        for part in _option(key, value)
    ]
    default_name = f"c{request.c:g}" if request.c is not None else f"rdw-{request.rdw}"
    name = request.name or request.network or default_name
    arguments = (
        "train",
        *([request.network] if request.network else []),
        CONFIG,
        *flags,
        *tracking_option(uri),
    )
    checked = config.model_copy(
        update={
            "run": config.run.model_copy(update={"address": None}),
            "search": config.search.model_copy(update=owner),
        }
    )
    check_values = checked.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    return JobCommand(
        "train",
        _job_name(name),
        config.owner,
        arguments,
        values,
        storage,
        uri or "",
        check_values,
    )


def _option(key: str, value: str | float | bool) -> tuple[str, ...]:
    option = f"--{key.replace('_', '-')}"
    return (option,) if value is True else (option, str(value))


def _job_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "job"


def _require_absolute_paths(storage: str, data: str) -> None:
    """Raise RequestError for relative paths, which only this machine can resolve."""
    check_no_credentials(storage)
    examples = {
        "storage.path": "/shared/searches, s3://bucket/searches",
        "data.path": "/data/imagenet100-packed",
    }
    for key, path in (("storage.path", storage), ("data.path", data)):
        if "://" not in path and not Path(path).is_absolute():
            raise RequestError(
                f"{key} {path!r} is relative to this machine: "
                f"set the path or URL on the cluster's nodes ({examples[key]})"
            )


def _with_registration(values: Values, config: Config) -> Values:
    """The settings of a job, with ``[tracking]`` without the URI, an option of the command.

    The experiment that MLFLOW_EXPERIMENT_NAME selects on this machine becomes a setting.
    """
    section = {key: value for key, value in values.get("tracking", {}).items() if key != "uri"}
    if experiment := config.experiment(config.space.name):
        section["experiment"] = experiment
    others = {key: value for key, value in values.items() if key != "tracking"}
    return {**others, "tracking": section} if section else others


def _tracking(option: str | None, configured: str | None) -> str | None:
    """MLflow's URI if it is set on this machine; None means the cluster's default.

    Raises:
        RequestError: a URI contains a secret, or is not valid.
    """
    from tinynet_search.mlflow_client.connection import address, resolve_uri

    uris = [uri for uri in (option, os.environ.get("MLFLOW_TRACKING_URI"), configured) if uri]
    for uri in uris:
        try:
            check_no_credentials(uri)
            has_secret = "@" in urlsplit(uri).netloc
        except RequestError:
            has_secret = True
        if has_secret:
            raise RequestError(
                f"tracking {one_line(address(uri))} contains credentials, which the job's metadata "
                "would expose: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the "
                "cluster's environment"
            )
    return resolve_uri(uris[0], None, "/") if uris else None


def tracking_option(uri: str | None) -> tuple[str, ...]:
    return ("--tracking", uri) if uri else ()
