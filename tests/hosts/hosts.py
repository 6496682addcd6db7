"""Simulated hosts on this machine, for the cluster test.

Each host is a network and a mount namespace with a separate address, disk and shared memory. One
bridge connects the hosts.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

NET = "10.77.0"
# The address of this machine in the hosts' network.
GATEWAY = f"{NET}.1"
BRIDGE, PREFIX = "tinynet-br", "tn-"
# Directories that are private to each host.
PRIVATE_DIRECTORIES = ("/dev/shm", "/tmp/tinynet-ray")


def missing_requirement() -> str | None:
    """The reason why this machine cannot simulate hosts, or None."""
    if os.geteuid() != 0:
        return "simulated hosts need root"
    if not all(map(shutil.which, ("ip", "unshare", "mount"))):
        return "simulated hosts need the commands ip, unshare and mount"
    return None


class Hosts:
    """Context manager that creates the network and its hosts.

    On exit it ends every process that was started on a host and removes the network.
    """

    def __init__(self, names: Sequence[str], logs: Path) -> None:
        self.addresses = {name: f"{NET}.{10 + number}" for number, name in enumerate(names)}
        self.logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Hosts":
        self._remove()
        try:
            self._create()
        except BaseException:
            self._remove()
            raise
        return self

    def _create(self) -> None:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for name, address in self.addresses.items():
            namespace, outer, inner = f"{PREFIX}{name}", f"{PREFIX}{name}o", f"{PREFIX}{name}i"
            _ip("netns", "add", namespace)
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", namespace)
            _ip("link", "set", outer, "master", BRIDGE, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "link", "set", inner, "name", "eth0", "up")
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        for directory in PRIVATE_DIRECTORIES:
            Path(directory).mkdir(exist_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self.addresses:
            self.stop(name)
        self._remove()

    def _remove(self) -> None:
        """Remove what exists of the network, including leftovers of a run that was killed."""
        for name in self.addresses:
            self._kill(name)
            subprocess.run(
                ["ip", "netns", "delete", f"{PREFIX}{name}"], capture_output=True, check=False
            )
            subprocess.run(
                ["ip", "link", "delete", f"{PREFIX}{name}o"], capture_output=True, check=False
            )
        subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)

    def _kill(self, name: str) -> None:
        while pids := _pids(name):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the host's service, as its init would, with empty private directories."""
        mounts = "; ".join(f"mount -t tmpfs tmpfs {directory}" for directory in PRIVATE_DIRECTORIES)
        in_namespace = [
            "ip",
            "netns",
            "exec",
            f"{PREFIX}{name}",
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'{mounts}; exec "$@"',
            "sh",
            *command,
        ]
        with (self.logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                in_namespace, env=dict(environment), stdout=log, stderr=log, start_new_session=True
            )

    def running(self, name: str) -> bool:
        return name in self._running and self._running[name].poll() is None

    def stop(self, name: str) -> None:
        """Stop the host's service with SIGTERM, after 30 seconds with SIGKILL."""
        process = self._running.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._kill(name)

    def disconnect(self, name: str) -> None:
        """Set the host's network link down."""
        _ip("link", "set", f"{PREFIX}{name}o", "down")

    def reconnect(self, name: str) -> None:
        """Set the host's network link up."""
        _ip("link", "set", f"{PREFIX}{name}o", "up")

    def pids(self, name: str) -> list[int]:
        return _pids(name)


def _pids(name: str) -> list[int]:
    """Ids of the processes in the host's network namespace."""
    listed = subprocess.run(
        ["ip", "netns", "pids", f"{PREFIX}{name}"], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in listed.stdout.split()]


def _ip(*arguments: str) -> None:
    completed = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if completed.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {completed.stderr.strip()}")
