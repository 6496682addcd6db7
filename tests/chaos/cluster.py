"""A Ray cluster of several nodes on this machine that can be killed in part or as a whole, and made good again."""

import os
import signal
import time
from collections.abc import Iterable
from typing import Any

from tests.chaos.injected.killer import children, titled
from tinynet_search.cluster.connect import QUIET

HEAD = {
    "num_cpus": 0,
    "include_dashboard": True,
    "dashboard_host": "127.0.0.1",
    "dashboard_port": 0,
}
IDLE = "ray::IDLE"
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
# Hang guards, in seconds.
GONE, STARTED = 120.0, 180.0


class ChaosCluster:
    """A head without CPUs and ``nodes`` of one CPU each, with the environment that this process has now."""

    def __init__(self, nodes: int = 2) -> None:
        os.environ.update(QUIET)
        self._nodes = nodes
        self._family: set[int] = set()
        self._start()

    def _start(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(initialize_head=True, head_node_args=dict(HEAD))
        for _ in range(self._nodes):
            self._cluster.add_node(num_cpus=1)
        self._cluster.wait_for_nodes(STARTED)

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
        """Every process that makes the cluster, raylets included; their workers are not among them."""
        return [
            process.pid for node in self._cluster.list_all_nodes() for process in _processes(node)
        ]

    def actors(self, title: str) -> list[int]:
        """Processes of this cluster's actors by the start of their title."""
        return [pid for pid in children(self.raylets()) if titled(pid, title)]

    def node_pids(self) -> list[int]:
        """A worker node that trains, as its processes; any where none does."""
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
        """Count every process there is now to those that must be gone in the end."""
        self._family |= {*self.services(), *children(self.raylets())}

    def heal(self) -> None:
        """Put back what was killed: a node for a node, or the whole cluster anew, at another address."""
        dead = [node for node in self._cluster.worker_nodes if not _alive(node, "raylet")]
        if not _alive(self._cluster.head_node, "gcs_server"):
            self._clear()
            self._start()
            return
        for node in dead:
            self._cluster.remove_node(node, allow_graceful=False)
            self._cluster.add_node(num_cpus=1)

    def wait_quiet(self) -> None:
        """Until no trial, worker or controller is left of any search."""

        def busy() -> list[int]:
            return [pid for pid in children(self.raylets()) if any(titled(pid, t) for t in _OURS)]

        end = time.monotonic() + GONE
        while busy():
            assert time.monotonic() < end, (
                f"processes left behind: {[_title(pid) for pid in busy()]}"
            )
            time.sleep(0.2)

    def stop(self) -> None:
        """End the cluster; every process it ever had is gone afterwards."""
        self.remember()
        self._clear()

    def wait_gone(self) -> None:
        end = time.monotonic() + GONE
        while left := [pid for pid in self._family if there(pid)]:
            assert time.monotonic() < end, (
                f"processes of the cluster left behind: {[_title(pid) for pid in left]}"
            )
            time.sleep(0.2)
        self._family.clear()

    def _clear(self) -> None:
        # A raylet's agents look for it for a minute before they end by themselves; whatever of ours is left must end by itself.
        agents = [pid for pid in self._family if any(titled(pid, title) for title in AGENTS)]
        for node in [*self._cluster.worker_nodes, self._cluster.head_node]:
            self._cluster.remove_node(node, allow_graceful=False)
        kill_all(pid for pid in agents if there(pid))
        self.wait_gone()


_OURS = (
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
    """A process whose first thread is gone may wait for its others, and cannot be collected yet."""
    return all(process.poll() is None and there(process.pid) for process in _processes(node, kind))


def there(pid: int) -> bool:
    """Whether there is such a process; one that only waits to be collected is none."""
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
