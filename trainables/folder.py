"""Folders on any storage: a local or shared path, or whatever pyarrow's filesystems reach (``s3://bucket/key``, ...).

The search directory is the truth, so its few rules live here: a file is seen whole or not at all, a file that is
written once is never written again, and names cannot leave the folder.
"""

import os
import re
import uuid
from pathlib import Path
from typing import Any, Protocol

from search_spaces.errors import RequestError

_NAME = re.compile(r"[A-Za-z0-9_@=+-][A-Za-z0-9._@=+-]*")


class Folder(Protocol):
    """A place for files; ``name`` may hold ``/`` for files in folders below."""

    url: str

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write or replace; readers see the old bytes or the new, never a part."""
        ...

    def write_once(self, name: str, data: bytes) -> bool:
        """Write unless the file exists; False (and nothing changed) where it does."""
        ...

    def exists(self, name: str) -> bool: ...

    def names(self, below: str = "") -> list[str]:
        """Names of the files and folders directly in ``below``, sorted; empty where it does not exist."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing where there is none."""
        ...

    def sub(self, name: str) -> "Folder": ...


def open_folder(url: str | os.PathLike[str]) -> Folder:
    """The folder at a path or URL; it need not exist yet.

    Raises:
        RequestError: the URL's scheme is none that pyarrow knows, or pyarrow is not installed.
    """
    text = os.fspath(url)
    if "://" not in text:
        return LocalFolder(Path(text).expanduser().absolute())
    try:
        from pyarrow import fs
    except ImportError as error:
        raise RequestError(f"storage {text!r} needs pyarrow: pip install 'tinynet-search[search]'") from error
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except (ValueError, OSError) as error:
        raise RequestError(f"storage {text!r} cannot be opened: {error}") from error
    return ArrowFolder(filesystem, path, text.rstrip("/"))


def checked(name: str) -> str:
    """The name itself, if every part of it is plain.

    Raises:
        RequestError: it is absolute, climbs out of the folder, or holds odd characters.
    """
    if not all(_NAME.fullmatch(part) for part in name.split("/")):
        raise RequestError(f"{name!r} is no file name here: letters, digits and . _ @ = + - only")
    return name


class LocalFolder:
    """A folder of this machine or of a shared mount (NFS, a cluster volume)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)

    def read(self, name: str) -> bytes:
        return (self.path / checked(name)).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        self._staged(name, data).replace(self.path / name)

    def write_once(self, name: str, data: bytes) -> bool:
        staged = self._staged(name, data)
        try:
            os.link(staged, self.path / name)
        except FileExistsError:
            return False
        finally:
            staged.unlink()
        return True

    def exists(self, name: str) -> bool:
        return (self.path / checked(name)).exists()

    def names(self, below: str = "") -> list[str]:
        try:
            found = os.listdir(self.path / checked(below) if below else self.path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if not name.startswith("."))

    def remove(self, name: str) -> None:
        import shutil

        target = self.path / checked(name)
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    def sub(self, name: str) -> "LocalFolder":
        return LocalFolder(self.path / checked(name))

    def _staged(self, name: str, data: bytes) -> Path:
        """The bytes on disk under a hidden name beside the target: a rename or link then makes them appear at once."""
        target = self.path / checked(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
        try:
            with staged.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        return staged


class ArrowFolder:
    """A folder on a pyarrow filesystem. Object stores put a file whole; they have no exclusive create, so two writers
    of a write-once file can both believe they were first: harmless here, since both write the same trial's result."""

    def __init__(self, filesystem: Any, path: str, url: str) -> None:
        self._fs, self._path, self.url = filesystem, path.rstrip("/"), url

    def _full(self, name: str) -> str:
        return f"{self._path}/{checked(name)}"

    def read(self, name: str) -> bytes:
        with self._fs.open_input_file(self._full(name)) as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        target = self._full(name)
        self._fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
        # Local filesystems show a file while it grows, so it is staged; object stores show it when it is closed.
        staged = f"{target.rsplit('/', 1)[0]}/.{uuid.uuid4().hex[:8]}" if self._fs.type_name == "local" else target
        with self._fs.open_output_stream(staged) as file:
            file.write(data)
        if staged != target:
            self._fs.move(staged, target)

    def write_once(self, name: str, data: bytes) -> bool:
        if self.exists(name):
            return False
        self.write(name, data)
        return True

    def exists(self, name: str) -> bool:
        from pyarrow import fs

        return self._fs.get_file_info(self._full(name)).type != fs.FileType.NotFound

    def names(self, below: str = "") -> list[str]:
        from pyarrow import fs

        selector = fs.FileSelector(self._full(below) if below else self._path, allow_not_found=True)
        found = (info.path.rstrip("/").rsplit("/", 1)[-1] for info in self._fs.get_file_info(selector))
        return sorted(name for name in found if not name.startswith("."))

    def remove(self, name: str) -> None:
        from pyarrow import fs

        kind = self._fs.get_file_info(self._full(name)).type
        if kind == fs.FileType.Directory:
            self._fs.delete_dir(self._full(name))
        elif kind == fs.FileType.File:
            self._fs.delete_file(self._full(name))

    def sub(self, name: str) -> "ArrowFolder":
        place, query, options = self.url.partition("?")
        return ArrowFolder(self._fs, self._full(name), f"{place}/{name}{query}{options}")
