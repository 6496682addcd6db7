"""Kills at named points: every one of them is a file operation of ``trainables.storage.folder.LocalFolder``.

The folder that TINYNET_CHAOS names holds ``armed.json``, what is to be killed at which operation; the first process
that reaches it takes it away, so it kills once. ``kills.jsonl`` and ``steps`` are what happened, for the suite to read.

``armed.json``: ``file`` (a pattern of paths), ``moment`` (before, half, staged or after a write; read), ``by`` (driver
or trial: whose operation), ``victim`` (``VICTIMS``), ``raylets`` and ``services`` (process ids of the cluster).
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
# As it is before any of it is watched.
_rename = os.rename
VICTIMS = (*ACTORS, "driver", "node", "cluster", "cluster and driver")


def home() -> Path:
    """What the suite and the processes it kills share; beside the search directory, never in it."""
    return Path(os.environ["TINYNET_CHAOS"])


def victims(victim: str, order: dict[str, Any], me: int) -> list[int]:
    """Process ids of what is to die at once, ``me`` among them where it belongs to them: the process that reached the point."""
    driver = int((home() / "driver.pid").read_text())
    if victim == "driver":
        return [driver]
    if victim == "node":
        raylet = parent(me)
        return [raylet, *children([raylet])]
    if victim.startswith("cluster"):
        all_of_it = [*order["services"], *children(order["raylets"])]
        return [*all_of_it, driver] if victim == "cluster and driver" else all_of_it
    actors = [pid for pid in children(order["raylets"]) if titled(pid, ACTORS[victim])]
    return [me] if me in actors else actors[:1]


def children(parents: list[int]) -> list[int]:
    return [
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(pid) in parents
    ]


def parent(pid: int) -> int:
    """A process's parent; 0 where there is no such process."""
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
    """SIGKILL, this process last, written down before."""
    line = {"name": name, "at": time.time(), "where": where, "pids": pids}
    with (home() / "kills.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    for pid in sorted(pids, key=lambda pid: pid == os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _role() -> str:
    return "driver" if Path(sys.argv[0]).name == "tinynet" else "trial"


def _taken(path: Path, *moments: str) -> dict[str, Any] | None:
    """The order that this operation fulfils, taken away so that it is carried out once."""
    armed, mine = home() / "armed.json", home() / f"taken-{os.getpid()}.json"
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
        _rename(armed, mine)
    except FileNotFoundError:
        return None
    return order


def _obey(order: dict[str, Any] | None, path: Path) -> None:
    if order is None:
        return
    if found := victims(order["victim"], order, os.getpid()):
        kill(order["name"], str(path), found)
    else:  # it has not started yet: the next time, then
        _put_back()


def _put_back() -> None:
    _rename(home() / f"taken-{os.getpid()}.json", home() / "armed.json")


class _NotRenamed(BaseException):
    """The file was staged, and what was to be killed then was not this process."""


@contextlib.contextmanager
def _at_rename(act: Callable[[], None]) -> Iterator[None]:
    """This thread's next rename or link does ``act`` and nothing else."""
    mine = threading.get_ident()

    def instead(real: Callable[..., Any]) -> Callable[..., Any]:
        def renaming(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() != mine:
                return real(*arguments, **options)
            act()
            raise _NotRenamed

        return renaming

    real = {name: getattr(os, name) for name in ("replace", "rename", "link")}
    try:
        for name, function in real.items():
            setattr(os, name, instead(function))
        yield
    except _NotRenamed:
        pass
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def _patch_folder(module: ModuleType) -> None:
    """Writes and reads of local folders, with the moments around and inside them."""
    local: Any = module.LocalFolder  # type: ignore[attr-defined]
    if _role() == "driver":
        (home() / "driver.pid").write_text(str(os.getpid()))
    read = local.read

    def watched(write: Any) -> Any:
        @wraps(write)
        def writing(self: Any, name: str, data: bytes) -> Any:
            path = self.path / name
            order = _taken(path, "before", "half", "staged")
            if order is not None and order["moment"] == "before":
                _obey(order, path)
            elif order is not None:
                part = data if order["moment"] == "staged" else data[: len(data) // 2]
                with _at_rename(lambda: _obey(order, path)):
                    write(self, name, part)
                    _put_back()  # somebody else has written it: nothing was staged
            done = write(self, name, data)
            _obey(_taken(path, "after"), path)
            return done

        return writing

    @wraps(read)
    def reading(self: Any, name: str, *arguments: Any, **options: Any) -> bytes:
        _obey(_taken(self.path / name, "read"), self.path / name)
        return read(self, name, *arguments, **options)

    local.write, local.write_once, local.read = (
        watched(local.write),
        watched(local.write_once),
        reading,
    )


def _patch_training(module: ModuleType) -> None:
    """One byte for every optimizer step that the first rank takes: what was trained in all, lost steps included."""
    trainer: Any = module.Trainer  # type: ignore[attr-defined]
    step = trainer._step
    counted = os.open(home() / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @wraps(step)
    def stepping(self: Any, *arguments: Any) -> Any:
        done = step(self, *arguments)
        if self.reporter.rank == 0:
            os.write(counted, b".")
        return done

    trainer._step = stepping


PATCHES = {"trainables.storage.folder": _patch_folder, "trainables.trainer": _patch_training}
