"""Kills processes at named points, which are file operations of ``LocalFolder``.

Imported by every process of a chaos test. The folder in TINYNET_CHAOS contains ``armed.json``:
which process to kill at which operation. The first process that reaches the operation removes the
file, so that it kills once, and records the kill in ``kills.jsonl``; ``steps`` has one byte per
optimizer step.

``armed.json``: ``file`` (a pattern of paths), ``moment`` (before, half, staged or after a write;
read), ``by`` (the operation of a driver or of a trial), ``victim`` (one of ``VICTIMS``),
``raylets`` and ``services`` (process ids of the cluster).
"""

import contextlib
import fnmatch
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

ACTORS = {
    "trial process": "ray::ImplicitFunc",
    "Train worker": "ray::RayTrainWorker",
    "Train controller": "ray::TrainController",
}
# The original, before it is patched.
_rename = os.rename
VICTIMS = (*ACTORS, "driver", "node", "cluster", "cluster and driver")


def shared_folder() -> Path:
    """The folder that the suite and the killed processes share, outside the search directory."""
    return Path(os.environ["TINYNET_CHAOS"])


def victims(victim: str, order: dict[str, Any], own_pid: int) -> list[int]:
    """Process ids to kill; ``own_pid`` is the process that reached the point."""
    driver = int((shared_folder() / "driver.pid").read_text())
    if victim == "driver":
        return [driver]
    if victim == "node":
        raylet = parent(own_pid)
        return [raylet, *children([raylet])]
    if victim.startswith("cluster"):
        pids = [*order["services"], *children(order["raylets"])]
        return [*pids, driver] if victim == "cluster and driver" else pids
    actors = [pid for pid in children(order["raylets"]) if titled(pid, ACTORS[victim])]
    return [own_pid] if own_pid in actors else actors[:1]


def children(parents: list[int]) -> list[int]:
    return [
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(pid) in parents
    ]


def parent(pid: int) -> int:
    """The parent's process id; 0 if the process does not exist."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def titled(pid: int, title: str) -> bool:
    try:
        return title in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def kill(name: str, where: str, pids: list[int]) -> None:
    """Record the kill, then send SIGKILL, to this process last."""
    line = {"name": name, "at": time.time(), "where": where, "pids": pids}
    with (shared_folder() / "kills.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    for pid in sorted(pids, key=lambda pid: pid == os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _role() -> str:
    return "driver" if Path(sys.argv[0]).name == "tinynet" else "trial"


def _take_order(path: Path, *moments: str) -> dict[str, Any] | None:
    """The order for this operation, removed so that it is carried out once."""
    armed, taken = shared_folder() / "armed.json", shared_folder() / f"taken-{os.getpid()}.json"
    try:
        order = json.loads(armed.read_text())
    except (FileNotFoundError, ValueError):
        return None
    if (
        order["moment"] not in moments
        or order["by"] != _role()
        or not fnmatch.fnmatch(str(path), order["file"])
    ):
        return None
    try:
        _rename(armed, taken)
    except FileNotFoundError:
        return None
    return order


def _carry_out(order: dict[str, Any] | None, path: Path) -> None:
    if order is None:
        return
    if pids := victims(order["victim"], order, os.getpid()):
        kill(order["name"], str(path), pids)
    else:  # the victim has not started: wait for the next such operation
        _put_back()


def _put_back() -> None:
    _rename(shared_folder() / f"taken-{os.getpid()}.json", shared_folder() / "armed.json")


class _NotRenamed(BaseException):
    """Raised in place of a rename: the file was staged, and a different process was killed."""


@contextlib.contextmanager
def _at_rename(act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` in place of this thread's next rename or link."""
    thread = threading.get_ident()

    def replaced(original: Callable[..., Any]) -> Callable[..., Any]:
        def renaming(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() != thread:
                return original(*arguments, **options)
            act()
            raise _NotRenamed

        return renaming

    originals = {name: getattr(os, name) for name in ("replace", "rename", "link")}
    try:
        for name, function in originals.items():
            setattr(os, name, replaced(function))
        yield
    except _NotRenamed:
        pass
    finally:
        for name, function in originals.items():
            setattr(os, name, function)


def _patch_folder(module: ModuleType) -> None:
    """Patch writes and reads of local folders to check for orders."""
    local: Any = module.LocalFolder  # type: ignore[attr-defined]
    if _role() == "driver":
        (shared_folder() / "driver.pid").write_text(str(os.getpid()))
    read = local.read

    def watched(write: Any) -> Any:
        @wraps(write)
        def writing(self: Any, name: str, data: bytes) -> Any:
            path = self.path / name
            order = _take_order(path, "before", "half", "staged")
            if order is not None and order["moment"] == "before":
                _carry_out(order, path)
            elif order is not None:
                part = data if order["moment"] == "staged" else data[: len(data) // 2]
                with _at_rename(lambda: _carry_out(order, path)):
                    write(self, name, part)
                    _put_back()  # a different process has written the file: nothing was staged
            result = write(self, name, data)
            _carry_out(_take_order(path, "after"), path)
            return result

        return writing

    @wraps(read)
    def reading(self: Any, name: str, *arguments: Any, **options: Any) -> bytes:
        _carry_out(_take_order(self.path / name, "read"), self.path / name)
        return read(self, name, *arguments, **options)

    local.write, local.write_once, local.read = (
        watched(local.write),
        watched(local.write_once),
        reading,
    )


def _patch_training(module: ModuleType) -> None:
    """Append one byte per optimizer step of the first rank, repeated steps included."""
    trainer: Any = module.Trainer  # type: ignore[attr-defined]
    step = trainer._step
    steps_file = os.open(shared_folder() / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @wraps(step)
    def stepping(self: Any, *arguments: Any) -> Any:
        loss = step(self, *arguments)
        if self.reporter.rank == 0:
            os.write(steps_file, b".")
        return loss

    trainer._step = stepping


PATCHES = {"trainables.storage.folder": _patch_folder, "trainables.trainer": _patch_training}
