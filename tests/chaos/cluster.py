"""A local Ray cluster of several nodes whose processes can be killed and replaced.

Used by the chaos suite.
"""

import os
import signal
import time
from collections.abc import Iterable
from typing import Any

from tests.chaos.injected.killer import children, titled
from tinynet_search.cluster.connect import RAY_ENVIRONMENT

HEAD = {
    "num_cpus": 0,
    "include_dashboard": True,
    "dashboard_host": "127.0.0.1",
    "dashboard_port": 0,
}
IDLE = "ray::IDLE"
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
# Timeouts in seconds.
STOP_TIMEOUT, START_TIMEOUT = 120.0, 180.0


class ChaosCluster:
    """A head without CPUs and ``nodes`` of one CPU each, with this process's environment."""

    def __init__(self, nodes: int = 2) -> None:
        os.environ.update(RAY_ENVIRONMENT)
        self._nodes = nodes
        self._pids: set[int] = set()
        self._start()

    def _start(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(initialize_head=True, head_node_args=dict(HEAD))
        for _ in range(self._nodes):
            self._cluster.add_node(num_cpus=1)
        self._cluster.wait_for_nodes(START_TIMEOUT)

    @property
    def address(self) -> str:
        return self._cluster.address

    def raylets(self) -> list[int]:
        return [
            process.pid
            for node in self._cluster.list_all_nodes()
            for process in _processes(node, "raylet")
        ]

    def services(self) -> list[int]:
        """Every process of the cluster, raylets included, without the workers."""
        return [
            process.pid for node in self._cluster.list_all_nodes() for process in _processes(node)
        ]

    def actors(self, title: str) -> list[int]:
        """Processes of this cluster's actors whose title contains ``title``."""
        return [pid for pid in children(self.raylets()) if titled(pid, title)]

    def node_pids(self) -> list[int]:
        """The processes of a worker node that trains, or of any worker node if none does."""
        nodes = [
            process.pid
            for node in self._cluster.worker_nodes
            for process in _processes(node, "raylet")
        ]
        busy = [
            pid
            for pid in nodes
            if any(titled(child, "ray::") and not titled(child, IDLE) for child in children([pid]))
        ]
        raylet = (busy or nodes)[0]
        return [raylet, *children([raylet])]

    def remember(self) -> None:
        """Record every running process, to check at the end that it has ended."""
        self._pids |= {*self.services(), *children(self.raylets())}

    def repair(self) -> None:
        """Replace killed nodes, or restart the complete cluster at a different address."""
        dead = [node for node in self._cluster.worker_nodes if not _alive(node, "raylet")]
        if not _alive(self._cluster.head_node, "gcs_server"):
            self._clear()
            self._start()
            return
        for node in dead:
            self._cluster.remove_node(node, allow_graceful=False)
            self._cluster.add_node(num_cpus=1)

    def wait_until_idle(self) -> None:
        """Wait until no trial, worker or controller of any search is running."""

        def busy() -> list[int]:
            return [
                pid
                for pid in children(self.raylets())
                if any(titled(pid, t) for t in _SEARCH_PROCESSES)
            ]

        end = time.monotonic() + STOP_TIMEOUT
        while busy():
            assert time.monotonic() < end, (
                f"processes left behind: {[_title(pid) for pid in busy()]}"
            )
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the cluster and check that all of its processes have ended."""
        self.remember()
        self._clear()

    def wait_until_ended(self) -> None:
        end = time.monotonic() + STOP_TIMEOUT
        while remaining := [pid for pid in self._pids if is_running(pid)]:
            assert time.monotonic() < end, (
                f"processes of the cluster left behind: {[_title(pid) for pid in remaining]}"
            )
            time.sleep(0.2)
        self._pids.clear()

    def _clear(self) -> None:
        # A raylet's agents end a minute after the raylet, so they are killed here. The processes of
        # a search must end without being killed.
        agents = [pid for pid in self._pids if any(titled(pid, title) for title in AGENTS)]
        for node in [*self._cluster.worker_nodes, self._cluster.head_node]:
            self._cluster.remove_node(node, allow_graceful=False)
        kill_all(pid for pid in agents if is_running(pid))
        self.wait_until_ended()


_SEARCH_PROCESSES = (
    "ray::ImplicitFunc",
    "ray::RayTrainWorker",
    "ray::TrainController",
    "ray::inline_trial",
    "ray::ray_train_trial",
)


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _processes(node: Any, kind: str | None = None) -> list[Any]:
    return [
        info.process
        for name, infos in node.all_processes.items()
        if kind in (None, name)
        for info in infos
    ]


def _alive(node: Any, kind: str) -> bool:
    """Whether all processes of a kind on a node are running.

    A process whose main thread has ended may still wait for its other threads.
    """
    return all(
        process.poll() is None and is_running(process.pid) for process in _processes(node, kind)
    )


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _title(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as line:
            return f"{pid} {line.read().replace(chr(0), ' ')[:100]}"
    except OSError:
        return str(pid)
