"""All uses of Ray's private internals, written for Ray 2.58.

Called by the other modules of this package, by the callbacks and by ``jobs``. No other file
imports a private module of Ray (``tests/test_imports.py``). The functions import Ray lazily, since
a machine that only submits jobs has no Ray Tune.

Each docstring states the behaviour of Ray, the reason for the workaround, the Ray issue, and when
the function can be removed. Review all of them when the supported range of Ray in
``pyproject.toml`` changes.
"""

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinynet_search.errors import one_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# The prefix of the class name of Ray Train's controller actors.
TRAIN_CONTROLLER = "TrainController"
# Ray's loggers that report every folder that is uploaded with a job.
UPLOAD_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
# Ray's messages for a process that ended without an error, a process that Ray killed because its
# node ran out of memory, and a lost node.
_PROCESS_DIED = "unexpectedly exits with a connection error code"
_KILLED_FOR_MEMORY = "running low on memory"
_NODE_DIED = ("node has died", "node died", "node was terminated", "preempted")
_EXIT_DETAIL = re.compile(r"Worker exit detail: (.{1,150}?)(?:\. |\.?\n|\.?$)")
# The versions in Ray's message about a different version of Ray or Python.
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
# The header that Tune writes before each failure in a trial's error file.
_FAILURE_HEAD = re.compile(r"^Failure # \d+ \(occurred at [^)]*\)\n", re.MULTILINE)


@contextlib.contextmanager
def own_sigterm_handler() -> Iterator[None]:
    """Keep this process's SIGTERM handler through ``ray.init``.

    Ray: ``ray.init`` replaces the SIGTERM handler by one that exits the process, and a shutdown of
    more than three seconds then ends in SIGABRT with a core dump. A search commits checkpoints
    before it exits.
    Issue: ray-project/ray#17308 (handlers set before ``ray.init`` are lost), PR #39482 (the current
    handler) and PR #64830 (the dump; closed, not merged).
    Remove when: ``ray.init`` keeps an existing handler, or has an option for it.
    """
    from ray._private import utils

    original = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda sigterm_handler: None
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        utils.set_sigterm_handler = original
        if threading.current_thread() is threading.main_thread() and callable(handler):
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Make a cluster that starts in this context listen on the loopback interface only.

    Ray: on Linux its servers listen on an address that other machines can reach, and without a
    token they run any code that they receive. On macOS and Windows Ray uses 127.0.0.1 unless
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is set. The constant behind that variable also decides on
    Linux, where it is true. This function sets it to false for this process and, through the
    environment, for its child processes.
    Issue: ray-project/ray#18730 (loopback on macOS), PR #31166 (the variable) and PR #59852 (the
    node's address instead of 0.0.0.0); no issue found that requests it on Linux as of Ray 2.58.
    Remove when: ``ray.init`` has a public argument for the address of a local cluster, or requires
    a token by default for local clusters and the project supports only such versions.
    """
    from ray._private import ray_constants

    enabled, variable = ray_constants.ENABLE_RAY_CLUSTER, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    value = os.environ.get(variable)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[variable] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        if value is None:
            del os.environ[variable]
        else:
            os.environ[variable] = value


def drop_aws_variables() -> None:
    """Keep Tune from copying the driver's ``AWS_`` variables into the environment of its trials.

    Ray: Tune puts the driver's S3 keys into the runtime environment of every trial, and Ray writes
    that environment to a log on every node. Nodes have their own keys.
    Issue: ray-project/ray#28276 (secrets of a runtime environment are logged).
    Remove when: Tune has an option for the variables that it propagates, or Ray does not log them.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")
    }


@dataclass(frozen=True)
class NodeGroup:
    """A kind of node that an autoscaler can start, and the maximum number of such nodes."""

    name: str
    resources: Mapping[str, float]
    max_count: int


def node_groups() -> list[NodeGroup]:
    """The kinds of node that the cluster's autoscaler has reported to Ray; empty without a report.

    Ray: stores the autoscaler's report, but has no public function to read it; ``ray.nodes``
    returns running nodes only.
    Issue: ray-project/ray#49501 (closed by PR #49568, which added the private function) and #52033
    (open).
    Remove when: Ray has a public function for the maximum size of a cluster.
    """
    from ray._private import state

    config = state.state.get_cluster_config()
    groups = config.node_group_configs if config else []
    return [NodeGroup(group.name, dict(group.resources), group.max_count) for group in groups]


@dataclass(frozen=True)
class PlacementGroupRow:
    """Ray's record of a placement group.

    Attributes:
        id: the id of the group.
        job: the id of the job that created it.
        creator: the id of the actor that created it, None if a driver or a task created it.
        creator_died: whether Ray has recorded the creator's death; the record may be late.
        detached: whether the group outlives its creator.
        state: ``PENDING``, ``PREPARED``, ``CREATED``, ``REMOVED`` or ``RESCHEDULING``.
    """

    id: bytes
    job: bytes
    creator: bytes | None
    creator_died: bool
    detached: bool
    state: str


@dataclass(frozen=True)
class ActorRow:
    """Ray's record of an actor.

    Attributes:
        class_name: the name of the actor's class.
        dead: whether the actor is dead.
        process: the id of the actor's process.
        owner: the id of the process that created the actor.
    """

    class_name: str
    dead: bool
    process: bytes
    owner: bytes


def placement_groups() -> list[PlacementGroupRow]:
    """All placement groups of the cluster, with their creators.

    Ray: ``ray.util.placement_group_table`` and the State API omit the job and the actor that
    created a group. These decide whether a group is in use: Ray Train's cleaner can miss the group
    of a controller that dies while the group is being created, and Ray keeps that group until the
    job ends.
    Issue: ray-project/ray#34333 (the job of a group in the State API; closed as stale), #62753 (the
    race) and #65881 (groups that end with their actor).
    Remove when: #62753 or #65881 is fixed in every supported version, together with ``actor_row``,
    ``dead_jobs`` and ``placement_groups.remove_abandoned``; ``waiting_trials`` in that
    module needs the creators in the public table.
    """
    from ray._raylet import ActorID
    from ray.core.generated import gcs_pb2

    kind: Any = gcs_pb2
    no_actor = ActorID.nil().binary()
    states = kind.PlacementGroupTableData.PlacementGroupState
    rows = []
    for raw in _tables().get_placement_group_table():
        row = kind.PlacementGroupTableData.FromString(raw)
        creator = row.creator_actor_id
        rows.append(
            PlacementGroupRow(
                id=row.placement_group_id,
                job=row.creator_job_id,
                creator=None if creator == no_actor else creator,
                creator_died=row.creator_actor_dead,
                detached=row.is_detached,
                state=states.Name(row.state),
            )
        )
    return rows


def actor_row(actor: bytes) -> ActorRow | None:
    """Ray's record of an actor, None if Ray has no record.

    Ray: the public record of an actor comes from the dashboard, which not every cluster runs, and
    omits the owner.
    Issue: see ``placement_groups``.
    Remove when: see ``placement_groups``.
    """
    from ray._raylet import ActorID
    from ray.core.generated import gcs_pb2

    kind: Any = gcs_pb2
    raw = _tables().get_actor_info(ActorID(actor))
    if not raw:
        return None
    row = kind.ActorTableData.FromString(raw)
    return ActorRow(
        class_name=row.class_name,
        dead=row.state == kind.ActorTableData.DEAD,
        process=row.address.worker_id,
        owner=row.owner_address.worker_id,
    )


def dead_jobs() -> set[bytes]:
    """The ids of the jobs that have ended.

    Ray: ``ray.util.state.list_jobs`` needs the dashboard, which not every cluster runs.
    Issue: see ``placement_groups``.
    Remove when: see ``placement_groups``.
    """
    from ray._private import state

    return {bytes.fromhex(row["JobID"]) for row in state.jobs() if row["IsDead"]}


def _tables() -> Any:
    """Ray's accessor for the tables in the cluster's control store; Ray connects it once."""
    from ray._private import state

    return state.state._connect_and_get_accessor()


def trial_actor(trial: Any) -> Any:
    """The handle of the actor that runs a Tune trial, None if the trial has no actor.

    Ray: Tune does not end a trial whose process hangs, and callbacks have no public access to the
    actor of a trial.
    Issue: ray-project/ray#47475 (a hard timeout for trials).
    Remove when: Tune has that timeout, or passes the actor to callbacks.
    """
    return trial.temporary_state.ray_actor


def actor_id(actor: Any) -> bytes:
    """The id of the actor of a handle.

    Ray: an actor can read its own id from its runtime context; an actor handle has no public id.
    Issue: no issue found as of Ray 2.58.
    Remove when: actor handles have a public id.
    """
    return actor._actor_id.binary()


def failure_texts(trial: Any) -> list[str]:
    """The text of each failure of a Tune trial, oldest first; empty without failures.

    Ray: callbacks have access to the last exception of a trial only; the trial's error file
    contains all of them, one after another.
    Issue: no issue found as of Ray 2.58.
    Remove when: Tune passes the exception of each failure to callbacks.
    """
    try:
        with open(trial.error_file, errors="replace") as file:
            return _FAILURE_HEAD.split(file.read())[1:]
    except (OSError, TypeError):
        return []


def process_died_on_live_node(text: str) -> bool:
    """Whether Ray's error message reports a process that died while its node was alive.

    Ray: only the message of the error contains why an actor died. Its wording distinguishes a
    process that crashed or that the kernel killed from a process that was lost with its node.
    Issue: ray-project/ray#20534 (the plan for that error; closed as stale) and PR #45497 (the
    node's death in it).
    Remove when: ``ray.exceptions.ActorDiedError`` has the cause as a public attribute, and Tune
    passes it to callbacks.
    """
    died = _PROCESS_DIED in text or killed_for_memory(text)
    return died and not any(words in text for words in _NODE_DIED)


def killed_for_memory(text: str) -> bool:
    """Whether Ray's error message reports a process that Ray killed because its node ran out of
    memory.

    Ray, issue, and when to remove: see ``process_died_on_live_node``.
    """
    return _KILLED_FOR_MEMORY in text


def death_detail(text: str) -> str:
    """The informative part of Ray's error message about a dead process, as one line.

    Ray, issue, and when to remove: see ``process_died_on_live_node``.
    """
    detail = _EXIT_DETAIL.search(text)
    return one_line(detail[1] if detail else text.strip().rpartition("\n")[2], 200)


def upload_size(folder: Path) -> int:
    """The number of bytes that Ray would upload for a working folder, by Ray's own directory walk.

    The walk skips ``.git``, environments, and the patterns in ``.gitignore`` and ``.rayignore``.
    Ray: packs a working folder of any size, and rejects a large one only afterwards.
    Issue: ray-project/ray#45602 (open) and PR #63404 (a warning after the packing).
    Remove when: Ray rejects a folder that is too large before it packs it, and reports the size.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    size = 0

    def add(path: Path) -> None:
        nonlocal size
        with contextlib.suppress(OSError):  # the file may have been removed
            size += 0 if path.is_dir() else path.stat().st_size

    excluded = packaging._get_excludes(folder, ray_constants.get_runtime_env_default_excludes())
    packaging._dir_travel(
        folder,
        [excluded],
        add,
        include_gitignore=os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE) != "1",
    )
    return size


def silence_uploads() -> None:
    """Suppress the messages of Ray's job client about the folders that it uploads.

    Ray: the client logs two lines per folder with loggers of private modules, and has no option to
    turn them off.
    Issue: no issue found as of Ray 2.58.
    Remove when: the client has an option for its log level.
    """
    for name in UPLOAD_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def job_client(
    url: str, headers: dict[str, str], verify: str | bool, timeout: tuple[float, float]
) -> "JobSubmissionClient":
    """Ray's client for the Jobs API, with a timeout on every request.

    Args:
        url: the address of the dashboard.
        headers: HTTP headers of every request.
        verify: a file of CA certificates, or whether to verify certificates.
        timeout: seconds for a connection, and for a response.

    Ray: the client has no timeout; a tunnel whose remote end is gone accepts requests and never
    responds.
    Issue: no issue found as of Ray 2.58.
    Remove when: ``JobSubmissionClient`` has a timeout.
    """
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            options.setdefault("timeout", timeout)
            return super()._do_request(method, endpoint, **options)

    return Client(url, headers=headers, verify=verify)


def cluster_version(client: "JobSubmissionClient") -> str:
    """The version of Ray on the cluster of a client.

    Ray: the client compares the cluster's version with a minimum; its ``get_version`` returns the
    version of the Jobs API.
    Issue: no issue found as of Ray 2.58.
    Remove when: the client has a public function for it.

    Raises:
        KeyError, TypeError: the response is not from Ray's dashboard.
    """
    return client._do_request("GET", "/api/version").json()["ray_version"]


class Versions(NamedTuple):
    """Versions of Ray and Python."""

    ray: str
    python: str


def version_mismatch(error: BaseException) -> tuple[Versions, Versions] | None:
    """The versions of the cluster and of this process, if Ray refused to connect because of them.

    Ray: a driver and the nodes of a cluster need the same version of Ray, patch version included.
    ``ray.init`` raises a RuntimeError with a message of seven lines.
    Issue: no issue found as of Ray 2.58.
    Remove when: Ray raises a specific exception with the versions.
    """
    versions = _VERSIONS.findall(str(error)) if "Version mismatch" in str(error) else []
    return (Versions(*versions[0]), Versions(*versions[1])) if len(versions) == 2 else None


def reports_no_dashboard(error: BaseException) -> bool:
    """Whether an error of Ray's job client means that the server is not Ray's dashboard.

    Ray: the client raises a RuntimeError with a message for this.
    Issue: no issue found as of Ray 2.58.
    Remove when: the client raises a specific exception for it.
    """
    return "404" in str(error) and "Version check" in str(error)
