"""Hosts on this machine: network and mount namespaces with addresses, disks and shared memory of their own, on one bridge."""

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
# The address of this machine among them.
GATEWAY = f"{NET}.1"
BRIDGE, PREFIX = "tinynet-br", "tn-"
# What each host has for itself, where the others have theirs.
OWN = ("/dev/shm", "/tmp/tinynet-ray")


def lacking() -> str | None:
    """Why this machine cannot play hosts, None where it can."""
    if os.geteuid() != 0:
        return "hosts of their own need root"
    if not all(map(shutil.which, ("ip", "unshare", "mount"))):
        return "hosts of their own need ip, unshare and mount"
    return None


class Hosts:
    """The network and its hosts, while inside; every process that was started there is gone afterwards."""

    def __init__(self, names: Sequence[str], logs: Path) -> None:
        self.addresses = {name: f"{NET}.{10 + number}" for number, name in enumerate(names)}
        self.logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Hosts":
        self._clear()
        try:
            self._make()
        except BaseException:
            self._clear()
            raise
        return self

    def _make(self) -> None:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for name, address in self.addresses.items():
            space, out, into = f"{PREFIX}{name}", f"{PREFIX}{name}o", f"{PREFIX}{name}i"
            _ip("netns", "add", space)
            _ip("link", "add", out, "type", "veth", "peer", "name", into)
            _ip("link", "set", into, "netns", space)
            _ip("link", "set", out, "master", BRIDGE, "up")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", into, "name", "eth0", "up")
            _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        for place in OWN:
            Path(place).mkdir(exist_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self.addresses:
            self.end(name)
        self._clear()

    def _clear(self) -> None:
        """Whatever is there of it, of this run or of one that was killed."""
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
        while pids := _inside(name):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run a host's one service, as its init would; what a host had on its own disks before is gone."""
        mounts = "; ".join(f"mount -t tmpfs tmpfs {place}" for place in OWN)
        inside = [
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
                inside, env=dict(environment), stdout=log, stderr=log, start_new_session=True
            )

    def running(self, name: str) -> bool:
        return name in self._running and self._running[name].poll() is None

    def end(self, name: str) -> None:
        """Have a host's service end in order."""
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

    def cut(self, name: str) -> None:
        """Pull its cable."""
        _ip("link", "set", f"{PREFIX}{name}o", "down")

    def join(self, name: str) -> None:
        _ip("link", "set", f"{PREFIX}{name}o", "up")

    def pids(self, name: str) -> list[int]:
        return _inside(name)


def _inside(name: str) -> list[int]:
    found = subprocess.run(
        ["ip", "netns", "pids", f"{PREFIX}{name}"], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
