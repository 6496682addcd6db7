"""Folders on storage that is full, read-only, without links or full of other things: real file systems, no pretence."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.helpers import tiny_spec, without_times
from trainables.result import EpochRecord
from trainables.spec import Alone
from trainables.storage.folder import (
    ArrowFolder,
    Folder,
    LocalFolder,
    StorageError,
    TooLargeError,
    open_folder,
)
from trainables.trial import run_trial
from trainables.trial_folder import result_name


@pytest.fixture(params=["local", "file", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """The same contract wherever files lie."""
    if request.param == "local":
        return LocalFolder(tmp_path / "search")
    if request.param == "file":
        return open_folder(f"file://{tmp_path}/search")
    return open_folder(
        request.getfixturevalue("object_storage")(f"contract-{uuid.uuid4().hex[:8]}")
    )


def test_the_contract(folder: Folder) -> None:
    assert folder.names() == folder.names("x/y") == []
    assert not folder.exists("x")
    folder.remove("x")
    folder.sweep()
    with pytest.raises(FileNotFoundError, match=r"search|contract"):
        folder.read("x")
    folder.write("a/b.json", b"one")
    folder.write("a/b.json", b"two")
    assert folder.write_once("r.json", b"first")
    assert not folder.write_once("r.json", b"second")
    assert (folder.read("a/b.json"), folder.read("r.json"), folder.sub("a").read("b.json")) == (
        b"two",
        b"first",
        b"two",
    )
    assert (folder.names(), folder.names("a"), folder.exists("a/b.json")) == (
        ["a", "r.json"],
        ["b.json"],
        True,
    )
    with pytest.raises(TooLargeError, match="3 bytes"):
        folder.read("a/b.json", 2)
    assert folder.read("a/b.json", 3) == b"two"
    folder.write("a/deep/c", b"1")
    folder.remove("a")
    folder.remove("r.json")
    assert folder.names() == folder.names("a") == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _hidden(place: Path) -> list[Path]:
    return list(place.rglob(".*"))


def test_a_full_disk(small: Path) -> None:
    """The line names the file; what was there stays; no part of a file is left; with room again the same write succeeds."""
    folder = LocalFolder(small / "search")
    folder.write("plan.json", b"p" * 1000)
    folder.write("weights", b"w" * 120_000)
    for write in (folder.write, folder.write_once):
        with pytest.raises(StorageError) as full:
            write("trials/a/weights", b"x" * 200_000)
        assert full.value.errno == errno.ENOSPC
        assert (
            str(full.value)
            == f"{small}/search/trials/a/weights cannot be written (No space left on device)"
        )
    with pytest.raises(StorageError, match="No space left"):
        folder.write("weights", b"n" * 200_000)
    assert folder.read("weights") == b"w" * 120_000
    assert folder.read("plan.json") == b"p" * 1000
    assert folder.names("trials/a") == _hidden(small) == []
    folder.remove("weights")
    assert folder.write_once("trials/a/weights", b"x" * 200_000)


def test_a_disk_that_turns_read_only(small: Path) -> None:
    folder = LocalFolder(small / "search")
    folder.write("a/plan.json", b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: folder.write("a/plan.json", b"new"), "written"),
        (lambda: folder.write_once("a/new.json", b"new"), "written"),
        (lambda: folder.remove("a/plan.json"), "removed"),
        (lambda: folder.remove("a"), "removed"),
    ]
    for call, doing in calls:
        with pytest.raises(
            StorageError, match=rf"search/a\S* cannot be {doing} \(Read-only file system\)"
        ) as refused:
            call()
        assert refused.value.errno == errno.EROFS
    assert folder.read("a/plan.json") == b"old"
    assert not folder.write_once("a/plan.json", b"new")
    subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
    folder.write("a/plan.json", b"new")
    assert folder.read("a/plan.json") == b"new"


LIMITED = """
import resource, signal, sys
from trainables.storage.folder import open_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = open_folder(sys.argv[1])
folder.write("plan.json", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for write in (folder.write, folder.write_once):
    for name in ("plan.json", "new.json"):
        try:
            print("False" if write(name, b"x" * 60_000) is False else "written")
        except OSError as error:
            print(error.errno, error)
"""


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_that_may_not_grow(tmp_path: Path, scheme: str) -> None:
    """As a full disk, where nothing can be mounted: a limit of the process, reached in the middle of a file."""
    command = [sys.executable, "-c", LIMITED, f"{scheme}{tmp_path}/search"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    refused = [
        f"{errno.EFBIG} {scheme}{tmp_path}/search/{name} cannot be written ("
        for name in ("plan.json", "new.json")
    ]
    lines = done.stdout.splitlines()
    assert [
        line.startswith(start)
        for line, start in zip(lines, [refused[0], refused[1], "False", refused[1]], strict=True)
    ] == [True] * 4
    assert open_folder(tmp_path / "search").names() == ["plan.json"]
    assert (tmp_path / "search" / "plan.json").read_bytes() == b"old"
    assert _hidden(tmp_path) == []


class Stops(Alone):
    """Ends the training after so many epochs."""

    def __init__(self, after: Callable[[int], None]) -> None:
        object.__setattr__(self, "_after", after)

    def report(self, record: EpochRecord) -> None:
        self._after(record.epoch)  # type: ignore[attr-defined]


def _filled(place: Path, leave: int) -> Path:
    """A file that takes all but so many bytes of a file system."""
    file = place / "ballast"
    found = os.statvfs(place)
    file.write_bytes(b"b" * max(0, found.f_bavail * found.f_frsize - leave))
    return file


@pytest.fixture
def room_for_a_trial(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "room"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_trial_whose_disk_fills_up(room_for_a_trial: Path, tmp_path: Path) -> None:
    """In the middle of a checkpoint, and with no room for the result: the error names the file, the last checkpoint stays
    whole, and with room again the trial ends with the numbers of an undisturbed one."""
    spec = tiny_spec()
    whole = run_trial(spec, str(tmp_path / "whole"), Alone())
    root = room_for_a_trial / "search"
    trial = root / spec.folder

    def fill(epochs: int) -> None:
        if epochs == 1:
            _filled(room_for_a_trial, 40_000)

    with pytest.raises(
        StorageError, match=r"epoch-0002/\S+ cannot be written \(No space left on device\)"
    ):
        run_trial(spec, str(root), Stops(fill))
    assert not (root / result_name(spec.run)).exists()
    assert [path.name for path in trial.iterdir() if (path / "progress.json").exists()] == [
        "epoch-0001"
    ]
    ballast = room_for_a_trial / "ballast"
    ballast.unlink()

    def fill_all(epochs: int) -> None:
        if epochs == 3:
            _filled(room_for_a_trial, 0)

    with pytest.raises(StorageError, match="cannot be written"):
        run_trial(spec, str(root), Stops(fill_all))
    assert not (root / result_name(spec.run)).exists()
    before = {path: path.read_bytes() for path in trial.rglob("epoch-0003/*")}
    assert len(before) == 3
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(room_for_a_trial)], check=True)
    with pytest.raises(StorageError, match="Read-only file system"):
        run_trial(spec, str(root), Alone())
    subprocess.run(["mount", "-o", "remount,rw", str(room_for_a_trial)], check=True)
    assert {path: path.read_bytes() for path in before} == before
    result = run_trial(spec, str(root), Alone())
    assert without_times(result) == without_times(whole)
    assert sorted(path.name for path in trial.iterdir()) == ["config.json", "weights.safetensors"]
    assert _hidden(root) == []


@pytest.mark.parametrize("missing", [("link",), ("link", "renameat2")])
def test_a_mount_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    """The system's own calls refuse as such mounts do; the rename that does not replace is the real one."""

    def none(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def neither(*_: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.link", none)
    if "renameat2" in missing:
        monkeypatch.setattr("trainables.storage.folder._rename_new", neither)
    folder = LocalFolder(tmp_path)
    assert folder.write_once("r", b"first")
    assert not folder.write_once("r", b"second")
    assert folder.read("r") == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_the_rename_that_does_not_replace_is_exclusive(tmp_path: Path) -> None:
    from trainables.storage.folder import _rename_new

    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        _rename_new(tmp_path / "a", tmp_path / "b")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"a", b"b")
    _rename_new(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"a"


KILLED = """
import os, signal, sys
from pathlib import Path
from trainables.storage.folder import LocalFolder
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
LocalFolder(Path(sys.argv[1])).write("weights", b"half")
"""


def test_what_a_killed_writer_leaves(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    folder.write("weights", b"whole")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], check=False, cwd=Path(__file__).parents[2]
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(_hidden(tmp_path)) == 1
    assert (folder.names(), folder.read("weights")) == (["weights"], b"whole")
    (tmp_path / ".nfs0001").write_bytes(b"not ours")
    folder.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".nfs0001", "weights"]


def test_other_things_in_the_place_of_a_file(tmp_path: Path) -> None:
    """Nothing hangs, nothing is followed out of the folder, and a huge file costs no memory."""
    folder, outside = LocalFolder(tmp_path / "search"), tmp_path / "outside"
    outside.mkdir()
    folder.write("x", b"1")
    os.mkfifo(tmp_path / "search" / "pipe")
    (tmp_path / "search" / "zero").symlink_to("/dev/zero")
    (tmp_path / "search" / "folder").mkdir()
    (tmp_path / "search" / "loop").symlink_to("loop")
    for name in ("pipe", "zero", "folder", "loop"):
        with pytest.raises(StorageError, match=rf"search/{name} cannot be read"):
            folder.read(name, 1000)
    with open(tmp_path / "search" / "huge", "wb") as file:
        file.truncate(2**42)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLargeError, match=str(2**42)):
        folder.read("huge", 10**6)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    with pytest.raises(StorageError, match="cannot be listed"):
        folder.names("x")
    (tmp_path / "search" / "trials").symlink_to(outside)
    for write in (folder.write, folder.write_once, folder.sub("trials").write):
        with pytest.raises(StorageError, match="a link leads out of"):
            write("trials/a/x" if write != folder.sub("trials").write else "a", b"1")
    (outside / "keep").write_bytes(b"1")
    with pytest.raises(StorageError, match="a link leads out of"):
        folder.remove("trials/keep")
    folder.remove("trials")
    assert [path.name for path in outside.iterdir()] == ["keep"]


def test_a_storage_folder_that_is_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "searches").symlink_to(tmp_path / "scratch")
    LocalFolder(tmp_path / "searches").sub("demo").write("a/x", b"1")
    assert (tmp_path / "scratch" / "demo" / "a" / "x").read_bytes() == b"1"


def test_errors_keep_their_number_and_line_through_ray(tmp_path: Path) -> None:
    """Trials run in other processes: what they raise is pickled."""
    import pickle

    error = StorageError(
        errno.ENOSPC, "cannot be written (No space left on device)", str(tmp_path / "x")
    )
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.errno) == (StorageError, str(error), errno.ENOSPC)


def test_modes_are_the_users(tmp_path: Path) -> None:
    """Staged files get the mode that the user's mask gives."""
    LocalFolder(tmp_path).write("x", b"1")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask


def test_a_file_system_of_another_kind(tmp_path: Path) -> None:
    from pyarrow import fs

    folder = ArrowFolder(
        fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "search", "memory://search"
    )
    folder.write("a/b", b"1")
    assert folder.names("a") == ["b"]
    (tmp_path / "search" / "a" / ".b.0123abcd").write_bytes(b"left")
    folder.sub("a").sweep()
    assert _hidden(tmp_path) == []
