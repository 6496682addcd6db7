"""What a cluster sees of a search, before anything is queued: versions, nodes, data, storage, MLflow, room for a trial.

Run where the search would run: on the cluster itself by ``tinynet submit``, or on this machine by ``tinynet check``.
Every finding is one line that says what to mend; nothing is written but a marker that is removed again.
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
    all_macs,
    by_name,
    calibrated,
    estimated,
    median_trial,
)
from tinynet_search.cluster.placement import (
    ClusterRequest,
    Placement,
    as_wished,
    at_once,
    grown,
    placed,
    present,
    require_named_gpus,
)
from tinynet_search.config import Config, PlanInputs
from tinynet_search.errors import TrackingError, last_line, one_line
from tinynet_search.plan.preview import Preview, preview
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.lease import live_holder
from trainables.storage.folder import StorageError, open_folder

SCHEMA = 1
# Seconds that every node gets to look for data and storage.
LOOK_TIMEOUT = 120.0
PACKAGES = ("tinynet-search", "ray", "torch", "mlflow", "timm")


@dataclass
class NodeRow:
    """A node of the cluster: its name, whether the driver is on it, what it has, what is installed there."""

    name: str
    driver: bool
    resources: dict[str, float]
    versions: dict[str, str] = field(default_factory=dict)


class Seen(NamedTuple):
    """What a process on a node sees: its versions, and what is missing there."""

    versions: dict[str, str]
    problems: list[str]


@dataclass
class Findings:
    """What was seen.

    Attributes:
        problems: one line each; a search that has any would fail.
        at_once: concurrent trials, on a cluster that grows when it has grown; why: how they were chosen, None where they were not.
        estimate: what is left, as time; notes: what is worth knowing and stops nothing.
        plan: the search as ``preview`` shows it, None where it could not be made.
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
        made = {
            "nodes": [asdict(node) for node in self.nodes],
            "estimate": asdict(self.estimate) if self.estimate else None,
            "plan": self.plan.to_json() if self.plan else None,
        }
        return {"schema": SCHEMA, **vars(self), **made}

    @classmethod
    def from_json(cls, values: Any) -> "Findings":
        """What ``tinynet check --json`` printed on another machine. Raises ValueError where it is something else."""
        return TypeAdapter(cls).validate_python(values)

    @contextlib.contextmanager
    def noting(self, *kinds: type[Exception]) -> Iterator[None]:
        """Take errors of these kinds down as problems."""
        try:
            yield
        except kinds as error:
            self.problems.append(one_line(error, 500))


def versions() -> dict[str, str]:
    """Of Python and of the packages that two machines of one search must share."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def check_search(
    config: Config, tracking: str | None = None, gpu: str | None = None, *, plan: bool = True
) -> Findings:
    """Look at everything that a search needs, on the cluster that ``cluster`` joins or starts.

    Args:
        tracking: MLflow's URI, before MLFLOW_TRACKING_URI and the configuration's.
        gpu: a GPU's name, to estimate the time from; without one a worker of the cluster trains for some seconds.
        plan: with the candidates and what they cost; a single training has none.
    """
    from tinynet_search.cluster.connect import cluster

    findings, inputs = Findings(versions()), config.resolve()
    store = None
    with findings.noting(RequestError, StorageError):
        store = SearchStore(inputs.url)
        findings.storage = store.url if plan else store.url.partition("?")[0].rpartition("/")[0]
    if plan:
        with findings.noting(RequestError, StorageError):
            findings.plan = preview(inputs)
    with findings.noting(RequestError, TrackingError):
        findings.tracking = _check_tracking(config, tracking)
    if store is not None and plan:
        with findings.noting(RequestError, StorageError):
            _check_holder(store)
    with findings.noting(RequestError), cluster(config.run):
        with findings.noting(RequestError, StorageError):
            findings.nodes = _check_nodes(config, findings.problems)
        with findings.noting(RequestError):
            _check_room(ClusterRequest.of(config, inputs), inputs, findings, gpu)
    return findings


def _check_room(
    request: ClusterRequest, inputs: PlanInputs, findings: Findings, gpu: str | None
) -> None:
    """Whether a trial fits, how many do, and what that comes to."""
    rows = findings.plan.candidates if findings.plan else []
    nodes = grown()
    macs = all_macs(inputs, rows)
    if request.run.wait_for_nodes and at_once(request, nodes) < 1:
        require_named_gpus(request)
        findings.notes.append(
            "no trial fits on the nodes there are: the search will wait for more (run.wait_for_nodes)"
        )
        place = Placement(request, request.run.concurrency or 1)
    else:
        place = as_wished(placed(request, macs, nodes))
        if request.run.wait_for_nodes and not request.run.concurrency:
            findings.notes.append(
                f"{place.at_once} at once to the end, however the cluster grows: run.concurrency asks for more"
            )
    findings.at_once, findings.why = place.at_once, place.why
    if not macs or findings.problems:
        return
    try:
        if gpu:
            share = place.request.scaling.gpus or 1.0
            findings.estimate = estimated(place, macs, *by_name(gpu, inputs.space_name, share))
        elif at_once(place.request, present()):
            measured = calibrated(place.request, median_trial(inputs, rows))
            findings.estimate = estimated(place, macs, *measured)
    except TimeoutError as error:
        findings.notes.append(str(error))


def _check_tracking(config: Config, tracking: str | None) -> str:
    from tinynet_search.mlflow_client.connection import (
        address,
        connect,
        database_file,
        reaching,
        resolve_uri,
    )

    uri = resolve_uri(tracking, config.tracking.uri, config.storage.path)
    file = database_file(uri)
    if file is None:
        with reaching(uri):
            connect(uri).search_experiments(max_results=1)
    elif not _there(file.parent):
        raise RequestError(f"tracking {uri}: {file.parent} does not exist on {platform.node()}")
    return address(uri)


def _check_holder(store: SearchStore) -> None:
    holder = live_holder(store.folder)
    if holder is not None:
        raise RequestError(
            f"search {store.url} is driven by {holder.described}: wait for it, or stop it"
        )


def _check_nodes(config: Config, problems: list[str]) -> list[NodeRow]:
    """Every node's view of the storage, the data and the space; what differs from ours, or is missing, is a problem."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with marked(config.storage.path) as marker:
        look = ray.remote(num_cpus=0, max_retries=0)(seen_here)
        arguments = (json.dumps(config.model_dump(mode="json")), marker)
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        looks = [
            look.options(scheduling_strategy=strategy).remote(*arguments) for strategy in there
        ]
        rows = [_row(node, head) for node in nodes]
        ray.wait(looks, num_returns=len(looks), timeout=LOOK_TIMEOUT)  # one end for all of them
        for row, reference in zip(rows, looks, strict=True):
            try:
                seen = ray.get(reference, timeout=1.0)
            except (
                Exception
            ) as error:  # a node that goes, an import that fails: Ray has a kind for each
                fault = f"it could not be looked at ({one_line(last_line(error))})"
                seen = Seen({}, [fault])
            row.versions = seen.versions
            problems += [
                f"node {row.name}: {problem}"
                for problem in [*_differing(seen.versions), *seen.problems]
            ]
    return rows


def _row(node: Mapping[str, Any], head: str) -> NodeRow:
    """From Ray's row of a node."""
    resources = {
        key: amount for key, amount in node["Resources"].items() if key in ("CPU", "GPU", "memory")
    }
    return NodeRow(node["NodeManagerAddress"], node["NodeID"] == head, resources)


def _differing(theirs: Mapping[str, str]) -> list[str]:
    ours = versions()
    different = [
        name
        for name in ours
        if name in theirs and _as_one(name, theirs[name]) != _as_one(name, ours[name])
    ]
    return [f"{name} {theirs[name]}, and {ours[name]} on the driver's" for name in different]


def _as_one(name: str, version: str) -> str:
    """What two machines must share of it: of Python the first two numbers."""
    return ".".join(version.split(".")[:2]) if name == "python" else version


@contextlib.contextmanager
def marked(storage: str) -> Iterator[tuple[str, str]]:
    """A file in the storage that only its readers can know: its name and what it says. Removed afterwards.

    Raises:
        RequestError: the storage is a folder in a place that is not there; StorageError: it cannot be written.
    """
    if "://" not in storage and not (_there(Path(storage)) or _there(Path(storage).parent)):
        here = platform.node()
        raise RequestError(
            f"storage {storage}: there is no such folder on {here}: give one that every node reaches, or an object store's URL"
        )
    folder = open_folder(storage)
    name, text = f"tinynet-check-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    folder.write(name, text.encode())
    try:
        yield name, text
    finally:
        with contextlib.suppress(OSError):
            folder.remove(name)


def seen_here(configuration: str, marker: tuple[str, str]) -> Seen:
    """What this node's process sees: its versions and what is missing."""
    config = Config.model_validate(json.loads(configuration))
    looks: dict[str, Callable[[], str | None]] = {
        "space": lambda: _space(config),
        "data": lambda: _data(config),
        "storage": lambda: _storage(config, marker),
    }
    problems = []
    for what, look in looks.items():
        try:
            problem = look()
        except Exception as error:  # a user's module can raise anything
            problem = f"{what}: {type(error).__name__}: {one_line(error)}"
        problems += [problem] if problem else []
    return Seen(versions(), problems)


def _space(config: Config) -> None:
    get_space(config.space.name)


def _data(config: Config) -> str | None:
    path = config.data_settings().get("path")
    return None if path is None or _there(Path(str(path))) else f"data {path} is not there"


def _storage(config: Config, marker: tuple[str, str]) -> str | None:
    name, text = marker
    path = config.storage.path
    try:
        found = open_folder(path).read(name).decode()
    except OSError:
        found = None
    return (
        None
        if found == text
        else f"storage {path} is not the driver's: every node must reach the same folder there"
    )


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
