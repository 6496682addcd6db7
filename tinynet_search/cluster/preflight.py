"""Checks before a search starts: versions, nodes, data, storage, MLflow, and room for a trial.

Called by ``tinynet check`` on this machine, and by the check job of ``tinynet submit`` on the
cluster. Each problem is one line that contains the fix. The checks write only a marker file, which
they remove again.
"""

import contextlib
import importlib.metadata
import json
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from search_spaces import RequestError, get_space
from tinynet_search.cluster.estimate import (
    Estimate,
    assumed_rate,
    estimate_time,
    measure_rate,
    median_trial,
    remaining_macs,
)
from tinynet_search.cluster.placement import (
    ClusterRequest,
    Placement,
    capacity,
    choose_placement,
    current_nodes,
    max_nodes,
    require_explicit_gpus,
    with_requested_concurrency,
)
from tinynet_search.config import Config, PlanInputs
from tinynet_search.errors import TrackingError, last_line, one_line
from tinynet_search.plan.preview import Preview, preview
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.lease import live_holder
from trainables.storage.folder import StorageError, open_folder

SCHEMA = 1
# Seconds that all nodes together have to check data and storage.
NODE_CHECK_TIMEOUT = 120.0
PACKAGES = ("tinynet-search", "ray", "torch", "mlflow", "timm")


@dataclass
class NodeRow:
    """A node of the cluster.

    Attributes:
        name: its address.
        driver: whether the driver runs on it.
        resources: its CPUs, GPUs and memory.
        versions: of the packages that are installed on it.
    """

    name: str
    driver: bool
    resources: dict[str, float]
    versions: dict[str, str] = field(default_factory=dict)


class NodeCheck(NamedTuple):
    """The result of the checks on one node: package versions, and one line per problem."""

    versions: dict[str, str]
    problems: list[str]


@dataclass
class Findings:
    """The results of all checks.

    Attributes:
        versions: of Python and of ``PACKAGES`` on the driver's machine.
        nodes: the nodes of the cluster.
        at_once: concurrent trials, at the largest size of a cluster that grows.
        why: how ``at_once`` was chosen, None if it was not chosen.
        estimate: the time that the rest of the search takes, None if unknown.
        notes: information that does not prevent the search.
        plan: the preview of the search, None if it could not be made.
        storage: the URL of the search directory, or of its parent without a plan.
        tracking: the address of MLflow.
        problems: one line each; with any problem the search would fail.
    """

    versions: dict[str, str]
    nodes: list[NodeRow] = field(default_factory=list)
    at_once: int = 0
    why: str | None = None
    estimate: Estimate | None = None
    notes: list[str] = field(default_factory=list)
    plan: Preview | None = None
    storage: str = ""
    tracking: str = ""
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        converted = {
            "nodes": [asdict(node) for node in self.nodes],
            "estimate": asdict(self.estimate) if self.estimate else None,
            "plan": self.plan.to_json() if self.plan else None,
        }
        return {"schema": SCHEMA, **vars(self), **converted}

    @classmethod
    def from_json(cls, values: Any) -> "Findings":
        """The findings in the output of ``tinynet check --json``.

        Raises:
            ValueError: the values are not such output.
        """
        return TypeAdapter(cls).validate_python(values)

    @contextlib.contextmanager
    def recording(self, *kinds: type[Exception]) -> Iterator[None]:
        """Record errors of these classes as problems."""
        try:
            yield
        except kinds as error:
            self.problems.append(one_line(error, 500))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that all machines of a search must share."""
    result = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[name] = importlib.metadata.version(name)
    return result


def check_search(
    config: Config, tracking: str | None = None, gpu: str | None = None, *, plan: bool = True
) -> Findings:
    """Check everything that a search needs, on the cluster that ``cluster`` connects to or starts.

    Args:
        config: the configuration of the search.
        tracking: MLflow's URI; overrides MLFLOW_TRACKING_URI and the configuration.
        gpu: the name of a GPU to estimate the time for; None measures the rate by a training of
            some seconds on a worker of the cluster.
        plan: whether to include the candidates and their cost; a single training has none.
    """
    from tinynet_search.cluster.connect import cluster

    findings, inputs = Findings(versions()), config.resolve()
    store = None
    with findings.recording(RequestError, StorageError):
        store = SearchStore(inputs.url)
        findings.storage = store.url if plan else store.url.partition("?")[0].rpartition("/")[0]
    if plan:
        with findings.recording(RequestError, StorageError):
            findings.plan = preview(inputs)
    with findings.recording(RequestError, TrackingError):
        findings.tracking = _check_tracking(config, tracking)
    if store is not None and plan:
        with findings.recording(RequestError, StorageError):
            _check_holder(store)
    name = f"{config.search.name} (check)"
    with findings.recording(RequestError), cluster(config.run, name):
        with findings.recording(RequestError, StorageError):
            findings.nodes = _check_nodes(config, findings.problems)
        with findings.recording(RequestError):
            _check_room(ClusterRequest.of(config, inputs), inputs, findings, gpu)
    return findings


def _check_room(
    request: ClusterRequest, inputs: PlanInputs, findings: Findings, gpu: str | None
) -> None:
    """Check that a trial fits, and add the number of concurrent trials and the time estimate."""
    rows = findings.plan.candidates if findings.plan else []
    nodes = max_nodes()
    macs = remaining_macs(inputs, rows)
    if request.run.wait_for_nodes and capacity(request, nodes) < 1:
        require_explicit_gpus(request)
        findings.notes.append(
            "no trial fits on the current nodes: the search will wait for more nodes "
            "(run.wait_for_nodes)"
        )
        placement = Placement(request, request.run.concurrency or 1)
    else:
        placement = with_requested_concurrency(choose_placement(request, macs, nodes))
        if request.run.wait_for_nodes and not request.run.concurrency:
            findings.notes.append(
                f"{placement.at_once} at once, even if the cluster grows: "
                "set run.concurrency for more"
            )
    findings.at_once, findings.why = placement.at_once, placement.why
    if not macs or findings.problems:
        return
    try:
        if gpu:
            share = placement.request.scaling.gpus or 1.0
            rate, source = assumed_rate(gpu, inputs.space_name, share)
            findings.estimate = estimate_time(placement, macs, rate, source)
        elif capacity(placement.request, current_nodes()):
            rate, source = measure_rate(placement.request, median_trial(inputs, rows))
            findings.estimate = estimate_time(placement, macs, rate, source)
    except TimeoutError as error:
        findings.notes.append(str(error))


def _check_tracking(config: Config, tracking: str | None) -> str:
    from tinynet_search.mlflow_client.connection import (
        address,
        connect,
        database_file,
        mlflow_access,
        resolve_uri,
    )

    uri = resolve_uri(tracking, config.tracking.uri, config.storage.path)
    file = database_file(uri)
    if file is None:
        with mlflow_access(uri):
            connect(uri).search_experiments(max_results=1)
    elif not _exists(file.parent):
        raise RequestError(f"tracking {uri}: {file.parent} does not exist on {platform.node()}")
    return address(uri)


def _check_holder(store: SearchStore) -> None:
    holder = live_holder(store.folder)
    if holder is not None:
        raise RequestError(
            f"search {store.url} is held by {holder.described}: wait for it, or stop it"
        )


def _check_nodes(config: Config, problems: list[str]) -> list[NodeRow]:
    """Run ``check_node`` on every node; return one row per node, and add the problems.

    A package version that differs from the driver's is a problem, too.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    driver_node = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with marker_file(config.storage.path) as marker:
        check = ray.remote(num_cpus=0, max_retries=0)(check_node)
        arguments = (json.dumps(config.model_dump(mode="json")), marker)
        strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        tasks = [
            check.options(scheduling_strategy=strategy).remote(*arguments)
            for strategy in strategies
        ]
        rows = [_row(node, driver_node) for node in nodes]
        # One timeout for all nodes together.
        ray.wait(tasks, num_returns=len(tasks), timeout=NODE_CHECK_TIMEOUT)
        for row, task in zip(rows, tasks, strict=True):
            try:
                result = ray.get(task, timeout=1.0)
            except Exception as error:  # the class depends on the cause: node lost, import failed
                result = NodeCheck({}, [f"the check failed ({one_line(last_line(error))})"])
            row.versions = result.versions
            problems += [
                f"node {row.name}: {problem}"
                for problem in [*_version_differences(result.versions), *result.problems]
            ]
    return rows


def _row(node: Mapping[str, Any], driver_node: str) -> NodeRow:
    """Convert an item of ``ray.nodes()``."""
    resources = {
        key: amount for key, amount in node["Resources"].items() if key in ("CPU", "GPU", "memory")
    }
    return NodeRow(node["NodeManagerAddress"], node["NodeID"] == driver_node, resources)


def _version_differences(node_versions: Mapping[str, str]) -> list[str]:
    driver_versions = versions()
    return [
        f"{name} {node_versions[name]}, but {version} on the driver's node"
        for name, version in driver_versions.items()
        if name in node_versions
        and _significant(name, node_versions[name]) != _significant(name, version)
    ]


def _significant(name: str, version: str) -> str:
    """The part of a version that all machines must share: of Python, major and minor."""
    return ".".join(version.split(".")[:2]) if name == "python" else version


@contextlib.contextmanager
def marker_file(storage: str) -> Iterator[tuple[str, str]]:
    """Write a file of random name and content to the storage, and remove it afterwards.

    A node that can read it has the same storage as the driver.

    Yields:
        The name and the content of the file.

    Raises:
        RequestError: the storage is a local folder, and neither it nor its parent exists.
        StorageError: the storage is not writable.
    """
    if "://" not in storage and not (_exists(Path(storage)) or _exists(Path(storage).parent)):
        raise RequestError(
            f"storage {storage} does not exist on {platform.node()}: "
            "set a folder that every node can access, or the URL of an object store"
        )
    folder = open_folder(storage)
    name, text = f"tinynet-check-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    folder.write(name, text.encode())
    try:
        yield name, text
    finally:
        with contextlib.suppress(OSError):
            folder.remove(name)


def check_node(configuration: str, marker: tuple[str, str]) -> NodeCheck:
    """Check space, data and storage in a process on a node."""
    config = Config.model_validate(json.loads(configuration))
    checks: dict[str, Callable[[], str | None]] = {
        "space": lambda: _check_space(config),
        "data": lambda: _check_data(config),
        "storage": lambda: _check_storage(config, marker),
    }
    problems = []
    for name, check in checks.items():
        try:
            problem = check()
        except Exception as error:  # a user's module can raise any exception
            problem = f"{name}: {type(error).__name__}: {one_line(error)}"
        problems += [problem] if problem else []
    return NodeCheck(versions(), problems)


def _check_space(config: Config) -> None:
    get_space(config.space.name)


def _check_data(config: Config) -> str | None:
    path = config.data_settings().get("path")
    return None if path is None or _exists(Path(str(path))) else f"data {path} does not exist"


def _check_storage(config: Config, marker: tuple[str, str]) -> str | None:
    name, text = marker
    path = config.storage.path
    try:
        content = open_folder(path).read(name).decode()
    except OSError:
        content = None
    if content == text:
        return None
    return f"storage {path} is not the driver's storage: every node must access the same folder"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
