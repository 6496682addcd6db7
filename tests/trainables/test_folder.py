"""Contract of every kind of folder."""

import threading
from pathlib import Path

import pytest
from pyarrow import fs

from search_spaces import RequestError
from trainables.storage.folder import ArrowFolder, Folder, LocalFolder, open_folder

pytestmark = pytest.mark.quick


@pytest.fixture(params=["local", "arrow", "object"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return LocalFolder(tmp_path / "search")
    if request.param == "arrow":
        return ArrowFolder(
            fs.LocalFileSystem(), str(tmp_path / "search"), f"file://{tmp_path}/search"
        )
    # Stands for object stores, which have no atomic rename.
    return ArrowFolder(
        fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "search", "memory://search"
    )


def test_write_read_replace(folder: Folder) -> None:
    folder.write("a/b.json", b"one")
    folder.write("a/b.json", b"two")
    assert folder.read("a/b.json") == b"two"
    assert folder.exists("a/b.json")
    assert folder.names("a") == ["b.json"]
    assert folder.names() == ["a"]
    assert folder.sub("a").read("b.json") == b"two"


def test_missing_files(folder: Folder) -> None:
    assert folder.names() == []
    assert folder.names("x/y") == []
    assert not folder.exists("x")
    folder.remove("x")
    with pytest.raises(FileNotFoundError):
        folder.read("x")


def test_write_once(folder: Folder) -> None:
    assert folder.write_once("r.json", b"first")
    assert not folder.write_once("r.json", b"second")
    assert folder.read("r.json") == b"first"
    assert folder.names() == ["r.json"]


def test_remove(folder: Folder) -> None:
    folder.write("t/one/x", b"1")
    folder.write("t/two", b"2")
    folder.remove("t/one")
    assert folder.names("t") == ["two"]
    folder.remove("t")
    assert folder.names() == []


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "a//b", "", ".hidden", "a\x00b", "a b"]
)
def test_invalid_names_are_rejected(folder: Folder, name: str) -> None:
    with pytest.raises(RequestError, match="is not a valid file name"):
        folder.write(name, b"")


def test_write_once_succeeds_for_one_of_many_writers(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    written: list[bytes] = []
    barrier = threading.Barrier(8)

    def write(data: bytes) -> None:
        barrier.wait()
        if folder.write_once("r", data):
            written.append(data)

    threads = [threading.Thread(target=write, args=(bytes([65 + i]) * 100_000,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert folder.read("r") == written[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "r"]


def test_a_failed_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LocalFolder(tmp_path)
    folder.write("r", b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        folder.write("r", b"new")
    assert folder.read("r") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_open_folder(tmp_path: Path) -> None:
    assert open_folder(tmp_path).url == str(tmp_path)
    open_folder(f"file://{tmp_path}/deep").write("x", b"1")
    assert (tmp_path / "deep" / "x").read_bytes() == b"1"
    with pytest.raises(RequestError, match="cannot be opened"):
        open_folder("nope://bucket/x")
