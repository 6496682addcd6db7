"""Folders on real storage that is full, read-only, without hard links or with unexpected files."""

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
from trainables.spec import LocalReporter
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
    """A folder of each kind, all with the same contract."""
    if request.param == "local":
        return LocalFolder(tmp_path / "search")
    if request.param == "file":
        return open_folder(f"file://{tmp_path}/search")
    return open_folder(
        request.getfixturevalue("object_storage")(f"contract-{uuid.uuid4().hex[:8]}")
    )


def test_folder_contract(folder: Folder) -> None:
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
    mount = tmp_path / "small"
    _mount_tmpfs(mount, "256k")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def _mount_tmpfs(mount: Path, size: str) -> None:
    """Mount a file system of a given size; skip the test if that is not permitted."""
    mount.mkdir()
    process = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)],
        capture_output=True,
        text=True,
    )
    if process.returncode:
        pytest.skip(f"mounting a file system is not permitted here: {process.stderr.strip()}")


def _hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def test_a_full_disk(small: Path) -> None:
    """The error names the file, existing files are unchanged and no partial file remains.

    Once there is space again, the same write succeeds.
    """
    folder = LocalFolder(small / "search")
    folder.write("plan.json", b"p" * 1000)
    folder.write("weights", b"w" * 120_000)
    for write in (folder.write, folder.write_once):
        with pytest.raises(StorageError) as raised:
            write("trials/a/weights", b"x" * 200_000)
        assert raised.value.errno == errno.ENOSPC
        assert (
            str(raised.value)
            == f"{small}/search/trials/a/weights cannot be written (No space left on device)"
        )
    with pytest.raises(StorageError, match="No space left"):
        folder.write("weights", b"n" * 200_000)
    assert folder.read("weights") == b"w" * 120_000
    assert folder.read("plan.json") == b"p" * 1000
    assert folder.names("trials/a") == _hidden(small) == []
    folder.remove("weights")
    assert folder.write_once("trials/a/weights", b"x" * 200_000)


def test_a_disk_that_becomes_read_only(small: Path) -> None:
    folder = LocalFolder(small / "search")
    folder.write("a/plan.json", b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: folder.write("a/plan.json", b"new"), "written"),
        (lambda: folder.write_once("a/new.json", b"new"), "written"),
        (lambda: folder.remove("a/plan.json"), "removed"),
        (lambda: folder.remove("a"), "removed"),
    ]
    for call, operation in calls:
        with pytest.raises(
            StorageError, match=rf"search/a\S* cannot be {operation} \(Read-only file system\)"
        ) as raised:
            call()
        assert raised.value.errno == errno.EROFS
    assert folder.read("a/plan.json") == b"old"
    assert not folder.write_once("a/plan.json", b"new")
    subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
    folder.write("a/plan.json", b"new")
    assert folder.read("a/plan.json") == b"new"


LIMITED_WRITER = """
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
def test_a_file_size_limit(tmp_path: Path, scheme: str) -> None:
    """A size limit that is reached in the middle of a file acts like a full disk."""
    command = [sys.executable, "-c", LIMITED_WRITER, f"{scheme}{tmp_path}/search"]
    process = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    errors = [
        f"{errno.EFBIG} {scheme}{tmp_path}/search/{name} cannot be written ("
        for name in ("plan.json", "new.json")
    ]
    lines = process.stdout.splitlines()
    assert [
        line.startswith(start)
        for line, start in zip(lines, [errors[0], errors[1], "False", errors[1]], strict=True)
    ] == [True] * 4
    assert open_folder(tmp_path / "search").names() == ["plan.json"]
    assert (tmp_path / "search" / "plan.json").read_bytes() == b"old"
    assert _hidden(tmp_path) == []


class AfterEpoch(LocalReporter):
    """Calls a function with the number of every completed epoch."""

    def __init__(self, callback: Callable[[int], None]) -> None:
        object.__setattr__(self, "_callback", callback)

    def report(self, record: EpochRecord) -> None:
        self._callback(record.epoch)  # type: ignore[attr-defined]


def _fill(mount: Path, free: int) -> None:
    """Write a file that leaves ``free`` bytes of a file system."""
    status = os.statvfs(mount)
    (mount / "ballast").write_bytes(b"b" * max(0, status.f_bavail * status.f_frsize - free))


@pytest.fixture
def trial_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB, which is enough for one trial."""
    mount = tmp_path / "trial"
    _mount_tmpfs(mount, "24m")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_trial_on_a_disk_that_fills_up(trial_disk: Path, tmp_path: Path) -> None:
    """The disk is full in the middle of a checkpoint, and later when the result is written.

    The error names the file and the last checkpoint stays intact. Once there is space again, the
    trial finishes with the same numbers as an uninterrupted one.
    """
    spec = tiny_spec()
    reference = run_trial(spec, str(tmp_path / "reference"), LocalReporter())
    root = trial_disk / "search"
    trial = root / spec.folder

    def fill(epochs: int) -> None:
        if epochs == 1:
            _fill(trial_disk, 40_000)

    with pytest.raises(
        StorageError, match=r"epoch-0002/\S+ cannot be written \(No space left on device\)"
    ):
        run_trial(spec, str(root), AfterEpoch(fill))
    assert not (root / result_name(spec.run)).exists()
    assert [path.name for path in trial.iterdir() if (path / "progress.json").exists()] == [
        "epoch-0001"
    ]
    ballast = trial_disk / "ballast"
    ballast.unlink()

    def fill_all(epochs: int) -> None:
        if epochs == 3:
            _fill(trial_disk, 0)

    with pytest.raises(StorageError, match="cannot be written"):
        run_trial(spec, str(root), AfterEpoch(fill_all))
    assert not (root / result_name(spec.run)).exists()
    before = {path: path.read_bytes() for path in trial.rglob("epoch-0003/*")}
    assert len(before) == 3
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(trial_disk)], check=True)
    with pytest.raises(StorageError, match="Read-only file system"):
        run_trial(spec, str(root), LocalReporter())
    subprocess.run(["mount", "-o", "remount,rw", str(trial_disk)], check=True)
    assert {path: path.read_bytes() for path in before} == before
    result = run_trial(spec, str(root), LocalReporter())
    assert without_times(result) == without_times(reference)
    assert sorted(path.name for path in trial.iterdir()) == ["config.json", "weights.safetensors"]
    assert _hidden(root) == []


@pytest.mark.parametrize("missing", [("link",), ("link", "renameat2")])
def test_a_mount_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    """System calls fail as on such mounts; renameat2, where it is available, is the real one."""

    def no_link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def no_rename(*_: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.link", no_link)
    if "renameat2" in missing:
        monkeypatch.setattr("trainables.storage.folder._rename_new", no_rename)
    folder = LocalFolder(tmp_path)
    assert folder.write_once("r", b"first")
    assert not folder.write_once("r", b"second")
    assert folder.read("r") == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_rename_new_does_not_replace(tmp_path: Path) -> None:
    from trainables.storage.folder import _rename_new

    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        _rename_new(tmp_path / "a", tmp_path / "b")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"a", b"b")
    _rename_new(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"a"


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from trainables.storage.folder import LocalFolder
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
LocalFolder(Path(sys.argv[1])).write("weights", b"half")
"""


def test_temporary_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    folder.write("weights", b"complete")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path)],
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(_hidden(tmp_path)) == 1
    assert (folder.names(), folder.read("weights")) == (["weights"], b"complete")
    (tmp_path / ".nfs0001").write_bytes(b"from NFS")
    folder.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".nfs0001", "weights"]


def test_pipes_links_and_huge_files(tmp_path: Path) -> None:
    """Reads do not block, links out of the folder are rejected, and huge files are not loaded."""
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
        with pytest.raises(StorageError, match="a symbolic link leads out of"):
            write("trials/a/x" if write != folder.sub("trials").write else "a", b"1")
    (outside / "keep").write_bytes(b"1")
    with pytest.raises(StorageError, match="a symbolic link leads out of"):
        folder.remove("trials/keep")
    folder.remove("trials")
    assert [path.name for path in outside.iterdir()] == ["keep"]


def test_a_storage_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "searches").symlink_to(tmp_path / "scratch")
    LocalFolder(tmp_path / "searches").sub("demo").write("a/x", b"1")
    assert (tmp_path / "scratch" / "demo" / "a" / "x").read_bytes() == b"1"


def test_pickled_errors_keep_their_number_and_message(tmp_path: Path) -> None:
    """Trials run in other processes, so their exceptions are pickled."""
    import pickle

    error = StorageError(
        errno.ENOSPC, "cannot be written (No space left on device)", str(tmp_path / "x")
    )
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.errno) == (StorageError, str(error), errno.ENOSPC)


def test_file_modes_follow_the_umask(tmp_path: Path) -> None:
    """Staged files get the same mode as other new files of the user."""
    LocalFolder(tmp_path).write("x", b"1")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask


def test_any_pyarrow_filesystem(tmp_path: Path) -> None:
    from pyarrow import fs

    folder = ArrowFolder(
        fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "search", "memory://search"
    )
    folder.write("a/b", b"1")
    assert folder.names("a") == ["b"]
    (tmp_path / "search" / "a" / ".b.0123abcd").write_bytes(b"temporary")
    folder.sub("a").sweep()
    assert _hidden(tmp_path) == []
