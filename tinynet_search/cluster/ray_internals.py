"""Every use of Ray's private internals, written for Ray 2.58, each with the Ray issue that it works around.

Called by ``connect``, ``placement`` and ``tune`` beside it, by the callbacks and by ``jobs``; no other file imports a
private module of Ray (``tests/test_imports.py``). Ray itself is imported inside the functions, since a machine that
only submits jobs has no Ray Tune.

Each docstring says what Ray does, why that is worked around, the issue, and when the function can be removed. Look at
all of them when the supported range of Ray in ``pyproject.toml`` changes.
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
from typing import TYPE_CHECKING, Any

from tinynet_search.errors import one_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# The class name of Ray Train's controller actors begins with this.
TRAIN_CONTROLLER = "TrainController"
# Loggers of Ray that report every folder that is uploaded with a job.
UPLOAD_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
# Ray's texts about a process that ended without a word, one that Ray killed for its node's memory, and a lost node.
_PROCESS_DIED = "unexpectedly exits with a connection error code"
_KILLED_FOR_MEMORY = "running low on memory"
_NODE_DIED = ("node has died", "node died", "node was terminated", "preempted")
_EXIT_DETAIL = re.compile(r"Worker exit detail: (.{1,150}?)(?:\. |\.?\n|\.?$)")
# What Tune writes before each failure of a trial in the trial's error file.
_FAILURE_HEAD = re.compile(r"^Failure # \d+ \(occurred at [^)]*\)\n", re.MULTILINE)


@contextlib.contextmanager
def own_sigterm_handler() -> Iterator[None]:
    """Keep this process's handler of SIGTERM through ``ray.init``.

    Ray: ``ray.init`` installs a handler of SIGTERM that exits the process, over the one that is set, and a shutdown of
    more than three seconds then ends in SIGABRT with a core dump. A search commits checkpoints first.
    Issue: ray-project/ray#17308 (handlers set before ``ray.init`` are lost), PR #39482 (the handler of today) and PR
    #64830 (the dump; closed, not merged).
    Remove when: ``ray.init`` keeps a handler that is set, or has an option to.
    """
    from ray._private import utils

    set_by_ray = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda sigterm_handler: None
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_by_ray
        if threading.current_thread() is threading.main_thread() and callable(handler):
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Let a cluster that is started inside listen on the loopback interface only.

    Ray: on Linux its servers listen on an address that other machines reach, and without a token they run whatever they
    are sent. On macOS and Windows Ray uses 127.0.0.1 unless RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is set; the constant
    behind that variable decides on Linux too, where it is true. It is set to false here for this process, and in the
    environment of those that it starts.
    Issue: ray-project/ray#18730 (loopback on macOS), PR #31166 (the variable) and PR #59852 (the node's address in place
    of 0.0.0.0); no issue found that asks for it on Linux as of Ray 2.58.
    Remove when: ``ray.init`` has a public argument for the address of a local cluster, or requires a token by default
    for local clusters and the project supports only such versions.
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
    """Let Tune copy no ``AWS_`` variable of the driver into the environment of its trials' actors.

    Ray: Tune puts the driver's keys of S3 into every trial's runtime environment, which Ray writes into a log of every
    node. Nodes have keys of their own.
    Issue: ray-project/ray#28276 (secrets of a runtime environment are logged).
    Remove when: Tune has an option for the variables that it propagates, or Ray logs none of them.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")
    }


@dataclass(frozen=True)
class NodeGroup:
    """A kind of node that an autoscaler can start, and how many of them at most."""

    name: str
    resources: Mapping[str, float]
    max_count: int


def node_groups() -> list[NodeGroup]:
    """The kinds of node that the cluster's autoscaler has reported to Ray; empty where it reports none.

    Ray: has what an autoscaler reports, without a public function to read it; ``ray.nodes`` has only nodes that run.
    Issue: ray-project/ray#49501 (closed by PR #49568, which added the private one) and #52033 (open).
    Remove when: Ray has a public function for the largest size of a cluster.
    """
    from ray._private import state

    config = state.state.get_cluster_config()
    groups = config.node_group_configs if config else []
    return [NodeGroup(group.name, dict(group.resources), group.max_count) for group in groups]


@dataclass(frozen=True)
class PlacementGroupRow:
    """Ray's record of a placement group.

    Attributes:
        job, creator: ids of the job and of the actor that made it, None where a driver or a task did.
        creator_died: as Ray has recorded it, which may be late.
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
    """Ray's record of an actor; ``process`` and ``owner`` are ids of its own process and of the one that made it."""

    class_name: str
    dead: bool
    process: bytes
    owner: bytes


def placement_groups() -> list[PlacementGroupRow]:
    """Every placement group of the cluster, with its creator.

    Ray: ``ray.util.placement_group_table`` and the State API leave out which job and which actor made a group. They
    decide whether a group is in use, since Ray Train's cleaner can miss the group of a controller that dies while the
    group is made, and Ray itself keeps the group until the job ends.
    Issue: ray-project/ray#34333 (the job of a group in the State API; closed as stale), #62753 (the race) and #65881
    (groups that end with their actor).
    Remove when: #62753 or #65881 is fixed in every supported version, with ``actor_row``, ``dead_jobs`` and
    ``callbacks/placement_groups.sweep``; ``waiting`` there needs the creators in the public table.
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
    """Ray's record of an actor, None where Ray has none.

    Ray: the public record of an actor comes from the dashboard, which not every cluster runs, and leaves out its owner.
    Issue: as of ``placement_groups``.
    Remove when: as of ``placement_groups``.
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
    """Ids of the jobs that have ended.

    Ray: ``ray.util.state.list_jobs`` needs the dashboard, which not every cluster runs.
    Issue: as of ``placement_groups``.
    Remove when: as of ``placement_groups``.
    """
    from ray._private import state

    return {bytes.fromhex(row["JobID"]) for row in state.jobs() if row["IsDead"]}


def _tables() -> Any:
    """Ray's accessor of the tables in the cluster's control store; it is connected once."""
    from ray._private import state

    return state.state._connect_and_get_accessor()


def trial_actor(trial: Any) -> Any:
    """The handle of the actor that trains a trial of Tune's, None while it has none.

    Ray: Tune ends no trial whose process hangs, and its callbacks get trials without a public way to their actors.
    Issue: ray-project/ray#47475 (a hard timeout for trials).
    Remove when: Tune has that timeout, or gives the actor to callbacks.
    """
    return trial.temporary_state.ray_actor


def actor_id(actor: Any) -> bytes:
    """The id of an actor by its handle.

    Ray: an actor can read its own id from its runtime context; the holder of a handle has no public way to it.
    Issue: no issue found as of Ray 2.58.
    Remove when: handles of actors have a public id.
    """
    return actor._actor_id.binary()


def failure_texts(trial: Any) -> list[str]:
    """What Tune wrote of each failure of a trial, the oldest first; empty where there is none.

    Ray: callbacks learn of a trial's last exception only; all of them are in its error file, one after another.
    Issue: no issue found as of Ray 2.58.
    Remove when: Tune gives callbacks the exception of each failure.
    """
    try:
        with open(trial.error_file, errors="replace") as file:
            return _FAILURE_HEAD.split(file.read())[1:]
    except (OSError, TypeError):
        return []


def process_died_on_live_node(text: str) -> bool:
    """Whether this text of Ray's is about a process that died while its node lived.

    Ray: why an actor died is in the text of its error only. A process that the kernel killed, or that crashed, is told
    from one that was lost with its node by the words.
    Issue: ray-project/ray#20534 (the plan for that error; closed as stale) and PR #45497 (the node's death in it).
    Remove when: ``ray.exceptions.ActorDiedError`` has the cause as a public attribute, and Tune hands it to callbacks.
    """
    died = _PROCESS_DIED in text or killed_for_memory(text)
    return died and not any(words in text for words in _NODE_DIED)


def killed_for_memory(text: str) -> bool:
    """Whether this text of Ray's is about a process that Ray killed since its node ran out of memory.

    Ray, issue, and when to remove: as of ``process_died_on_live_node``.
    """
    return _KILLED_FOR_MEMORY in text


def death_detail(text: str) -> str:
    """The informative part of Ray's text about a dead process, as one line.

    Ray, issue, and when to remove: as of ``process_died_on_live_node``.
    """
    detail = _EXIT_DETAIL.search(text)
    return one_line(detail[1] if detail else text.strip().rpartition("\n")[2], 200)


def upload_size(folder: Path) -> int:
    """Bytes of a folder that Ray would upload with a job, by Ray's own walk.

    The walk leaves out ``.git``, environments, and what ``.gitignore`` and ``.rayignore`` name.
    Ray: packs a working folder of any size first, and refuses it afterwards.
    Issue: ray-project/ray#45602 (open) and PR #63404 (a warning after the packing).
    Remove when: Ray refuses a folder that is too large before it packs it, with its size.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    size = 0

    def add(path: Path) -> None:
        nonlocal size
        with contextlib.suppress(OSError):  # removed in the meantime
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
    """Let Ray's job client log nothing about the folders that it uploads.

    Ray: the client logs two lines for each folder by loggers of its private modules, and has no option against it.
    Issue: no issue found as of Ray 2.58.
    Remove when: the client has an option for its log level.
    """
    for name in UPLOAD_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def job_client(
    url: str, headers: dict[str, str], verify: str | bool, timeout: tuple[float, float]
) -> "JobSubmissionClient":
    """Ray's client of the Jobs API whose requests all end.

    Args:
        timeout: seconds for a connection, and for an answer.

    Ray: the client waits for ever; a tunnel whose other end is gone takes requests and never answers.
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

    Ray: the client compares the cluster's version with a minimum; its ``get_version`` gives that of the Jobs API.
    Issue: no issue found as of Ray 2.58.
    Remove when: the client has a public function for it.

    Raises:
        KeyError, TypeError: what answers is not Ray's dashboard.
    """
    return client._do_request("GET", "/api/version").json()["ray_version"]


def reports_no_dashboard(error: BaseException) -> bool:
    """Whether an error of Ray's job client says that what answers is not Ray's dashboard.

    Ray: the client raises RuntimeError with a text for this.
    Issue: no issue found as of Ray 2.58.
    Remove when: the client raises an error of its own kind for it.
    """
    return "404" in str(error) and "Version check" in str(error)
