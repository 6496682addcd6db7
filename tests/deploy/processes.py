"""Starts Ray nodes of a real cluster as a user would, and ends them by their process ids.

Used by the tests of heads that are slow or killed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.tracking.helpers import free_port

# The programs of this environment, as on an image.
PROGRAMS = Path(sys.executable).parent


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of the tests with the programs on its path."""
    path = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", **variables}


@contextmanager
def short_folder() -> Iterator[Path]:
    """Yield a folder for Ray's files: the paths of its sockets may have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="tn-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@dataclass
class Head:
    """A head started by ``ray start --head --block``, with the ports of its services."""

    process: "subprocess.Popen[bytes]"
    dashboard: str
    log: Path

    def responds(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.dashboard}/api/gcs_healthz", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def wait(self, seconds: float = 180) -> None:
        """Wait until the dashboard responds."""
        end = time.monotonic() + seconds
        while not self.responds():
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < end, self.log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill the head and all of its processes at once, as a host that loses power."""
        kill([*descendants(self.process.pid), self.process.pid])
        self.process.wait(20)


@dataclass(frozen=True)
class Ports:
    """The ports of a head, which a new head takes over."""

    gcs: int
    dashboard: int
    client: int
    agent: int

    @classmethod
    def free(cls) -> "Ports":
        return cls(*(free_port() for _ in range(4)))


def start_head(
    folder: Path, ports: Ports, *options: str, variables: Mapping[str, str] | None = None
) -> Head:
    """Start a head on 127.0.0.1, with its log in ``folder``.

    Args:
        folder: Ray's temporary folder.
        ports: its ports.
        options: more options of ``ray start``.
        variables: more environment variables.
    """
    log = folder / f"head-{time.monotonic_ns()}.log"
    command = [
        str(PROGRAMS / "ray"),
        "start",
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={ports.gcs}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports.dashboard}",
        f"--ray-client-server-port={ports.client}",
        "--dashboard-agent-listen-port=0",
        f"--temp-dir={folder}/ray",
        "--object-store-memory=100000000",
        "--disable-usage-stats",
        "--block",
        *options,
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**(variables or {})),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Head(process, f"http://127.0.0.1:{ports.dashboard}", log)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes that a process started, directly or not."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    pids = {pid}
    while more := {child for child, parent in parents.items() if parent in pids} - pids:
        pids |= more
    return sorted(pids - {pid})


def kill(pids: Sequence[int]) -> None:
    """Kill processes at once: none of them runs on while the others end."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
