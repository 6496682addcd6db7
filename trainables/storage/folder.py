"""Folders on any storage: a local or shared path, or whatever pyarrow's filesystems reach (``s3://bucket/key``, ...).

The search directory is the truth, so its few rules live here: a file is seen whole or not at all, a file that is
written once is never written again, names and links cannot lead out of the folder, what is too large is not read, and
every error names the file and what was being done.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from search_spaces.errors import RequestError

_NAME = re.compile(r"[A-Za-z0-9_@=+-][A-Za-z0-9._@=+-]*")
# What a killed writer leaves: hidden, and never read.
_LEFT = re.compile(r"\..+\.[0-9a-f]{8}")
_SECRET = re.compile(r"key|secret|token|password|credential|signature", re.IGNORECASE)
# A mount without hard links, and a system or mount that cannot rename without replacing.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
_NO_RENAME = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# Folders that cannot be synced, by their mount or their permissions, keep names as well as they can.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES)


class StorageError(OSError):
    """Storage failed: ``str`` is one line with the file and what could not be done; ``errno`` is the system's, EIO where it gave none.

    The cluster's failure and no trial's: what was being done is worth another try once the storage is mended.
    """

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


class TooLargeError(ValueError):
    """A file is larger than what is asked for can be: it was not read."""


class Folder(Protocol):
    """A place for files; ``name`` may hold ``/`` for files in folders below. Every method raises StorageError where storage fails."""

    url: str

    def read(self, name: str, most: int | None = None) -> bytes:
        """The whole file. Raises FileNotFoundError where there is none, TooLargeError where it has more than ``most`` bytes."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write or replace; readers see the old bytes or the new, never a part, whatever stops the writer."""
        ...

    def write_once(self, name: str, data: bytes) -> bool:
        """Write unless the file exists; False (and nothing changed) where it does."""
        ...

    def exists(self, name: str) -> bool: ...

    def names(self, below: str = "") -> list[str]:
        """Names of the files and folders directly in ``below``, sorted; empty where it does not exist."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all it holds, a folder in one step for whoever looks; nothing where there is none."""
        ...

    def sweep(self) -> None:
        """Remove what killed writers left directly in this folder. Not while somebody may be writing to it."""
        ...

    def sub(self, name: str) -> "Folder": ...


def open_folder(url: str | os.PathLike[str]) -> Folder:
    """The folder at a path or URL; it need not exist yet.

    Raises:
        RequestError: the URL's scheme is none that pyarrow knows, pyarrow is not installed, or the URL holds credentials.
    """
    text = os.fspath(url)
    if "://" not in text:
        return LocalFolder(Path(text).expanduser().absolute())
    refuse_credentials(text)
    try:
        from pyarrow import fs
    except ImportError as error:
        raise RequestError(
            f"storage {text!r} needs pyarrow: pip install 'tinynet-search[search]'"
        ) from error
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except (ValueError, OSError) as error:
        raise RequestError(f"storage {text!r} cannot be opened: {_said(error)}") from error
    return ArrowFolder(filesystem, path, text.rstrip("/"))


def below(url: str, name: str) -> str:
    """The URL of what lies in a folder; a storage URL keeps its options (``s3://bucket/searches?region=...``) behind it."""
    place, query, options = url.partition("?") if "://" in url else (url, "", "")
    return f"{place.rstrip('/')}/{name}{query}{options}"


def refuse_credentials(url: str) -> None:
    """Make sure that a storage URL can be printed, planned and recorded.

    Raises:
        RequestError: it holds a password, an access key or a token; the line does not repeat it.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise RequestError(
            "the storage URL cannot be read: write scheme://bucket/folder"
        ) from error
    user, at, _ = parts.netloc.rpartition("@")
    options = [
        key for key, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(key)
    ]
    if ":" in user or (at and parts.scheme == "s3") or options:
        mend = "take them out and give them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...), a profile or a role"
        raise RequestError(
            f"the {parts.scheme}:// storage URL holds credentials, which plans and messages would repeat: {mend}"
        )


def checked(name: str) -> str:
    """The name itself, if every part of it is plain.

    Raises:
        RequestError: it is absolute, climbs out of the folder, or holds odd characters.
    """
    if not all(_NAME.fullmatch(part) for part in name.split("/")):
        raise RequestError(
            f"{name[:200]!r} is no file name here: letters, digits and . _ @ = + - only"
        )
    return name


@contextlib.contextmanager
def _storage(doing: str, place: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in every error of storage; what is missing stays FileNotFoundError where something is read."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        if doing == "read":
            raise FileNotFoundError(errno.ENOENT, "does not exist", str(place)) from error
        raise StorageError(
            errno.ENOENT, f"cannot be {doing} ({_said(error)})", str(place)
        ) from error
    except OSError as error:
        raise StorageError(
            error.errno or errno.EIO, f"cannot be {doing} ({_said(error)})", str(place)
        ) from error


def _said(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:300]


def read_file(path: Path, most: int | None = None) -> bytes:
    """A file of this machine or of a mount, as ``Folder.read``."""
    with _storage("read", path):
        # A pipe in the place of a file would be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EISDIR, "it is no file")
            if most is not None and found.st_size > most:
                raise TooLargeError(f"it has {found.st_size} bytes, more than {most}")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read() if most is None else file.read(most)
        finally:
            os.close(descriptor)


class LocalFolder:
    """A folder of this machine or of a shared mount (NFS, a cluster volume).

    What is written has reached the disk, its name included. ``write_once`` is exclusive through a hard link, else through a
    rename that does not replace; on a mount that has neither it looks and then renames, as on object stores.

    Args:
        root: the folder that no link may lead a write out of; without one the folder itself.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path, self._root = path, root or path
        self.url = str(path)

    def read(self, name: str, most: int | None = None) -> bytes:
        return read_file(self.path / checked(name), most)

    def write(self, name: str, data: bytes) -> None:
        target = self._target(name)
        with _storage("written", target), _staged(target, data) as staged:
            staged.replace(target)
            _sync(target.parent)

    def write_once(self, name: str, data: bytes) -> bool:
        target = self._target(name)
        with _storage("written", target):
            if os.path.lexists(target):
                return False
            with _staged(target, data) as staged:
                won = _put_once(staged, target)
                _sync(target.parent)
            return won

    def exists(self, name: str) -> bool:
        path = self.path / checked(name)
        with _storage("looked at", path):
            return path.exists()

    def names(self, below: str = "") -> list[str]:
        place = self.path / checked(below) if below else self.path
        with _storage("listed", place):
            try:
                found = os.listdir(place)
            except FileNotFoundError:
                return []
        return sorted(name for name in found if not name.startswith("."))

    def remove(self, name: str) -> None:
        target = self._target(name)
        with _storage("removed", target):
            try:
                if target.is_symlink() or not target.is_dir():
                    target.unlink()
                else:
                    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
                    target.rename(aside)
                    shutil.rmtree(aside)
            except FileNotFoundError:
                return  # by somebody else, in the meantime

    def sweep(self) -> None:
        with _storage("swept", self.path):
            for each in os.scandir(self.path) if self.path.is_dir() else ():
                if not _LEFT.fullmatch(each.name):
                    continue
                if each.is_dir(follow_symlinks=False):
                    shutil.rmtree(each.path)
                else:
                    Path(each.path).unlink(missing_ok=True)

    def sub(self, name: str) -> "LocalFolder":
        return LocalFolder(self.path / checked(name), self._root)

    def _target(self, name: str) -> Path:
        """Where a name is written; whoever may write here may have put a link to anywhere."""
        target = self.path / checked(name)
        with _storage("written", target):
            root, parent = os.path.realpath(self._root), os.path.realpath(target.parent)
            if os.path.commonpath([root, parent]) != root:
                raise OSError(errno.ELOOP, f"a link leads out of {self._root}")
        return target


@contextlib.contextmanager
def _staged(target: Path, data: bytes) -> Iterator[Path]:
    """The bytes on disk under a hidden name beside the target: a rename or link then makes them appear at once."""
    _make(target.parent)
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with staged.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield staged
    finally:
        # Not there any more where it was renamed; a disk that fails here has said so before.
        with contextlib.suppress(OSError):
            staged.unlink()


def _make(folder: Path) -> None:
    """The folder and those above it, each with its name on disk."""
    missing = [folder]
    while not missing[-1].is_dir():
        missing.append(missing[-1].parent)
    for each in reversed(missing[:-1]):
        each.mkdir(exist_ok=True)
        _sync(each.parent)


def _sync(folder: Path) -> None:
    """Names in a folder survive a power cut once the folder itself is on disk."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _NO_SYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _put_once(staged: Path, target: Path) -> bool:
    """Give staged bytes their name unless somebody else has it."""
    try:
        os.link(staged, target)
        return True
    except FileExistsError:
        # NFS answers so, too, where its first answer was lost: ours then has both names.
        return staged.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    try:
        _rename_new(staged, target)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
    if os.path.lexists(target):
        return False
    staged.replace(target)
    return True


def _rename_new(source: Path, target: Path) -> None:
    """Rename, failing where the target exists: Linux's renameat2. Raises OSError with ENOSYS where the system has none."""
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, "no renameat2")
    here, no_replace = -100, 1
    if call(here, os.fsencode(source), here, os.fsencode(target), no_replace):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class ArrowFolder:
    """A folder on a pyarrow filesystem.

    A file is written under a hidden name and then moved: pyarrow ends an upload that is broken off as if it were whole,
    and local filesystems and HDFS show a file while it grows. Object stores give pyarrow no exclusive create, so
    ``write_once`` looks and then writes: of two writers at once both may believe they were first, and the last one's bytes
    stay, whole. For results that is harmless: both trained the same trial to the same numbers, and only times differ.
    """

    def __init__(self, filesystem: Any, path: str, url: str) -> None:
        self._fs, self._path, self.url = filesystem, path.rstrip("/"), url

    def read(self, name: str, most: int | None = None) -> bytes:
        full = self._full(name)
        with self._storage("read", name), self._fs.open_input_file(full) as file:
            if most is not None and (size := file.size()) > most:
                raise TooLargeError(f"it has {size} bytes, more than {most}")
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        parent, _, last = self._full(name).rpartition("/")
        staged = f"{parent}/.{last}.{uuid.uuid4().hex[:8]}"
        with self._storage("written", name):
            self._fs.create_dir(parent, recursive=True)
            try:
                with self._fs.open_output_stream(staged) as file:
                    file.write(data)
                self._fs.move(staged, f"{parent}/{last}")
            except BaseException:
                with contextlib.suppress(OSError):
                    self._fs.delete_file(staged)
                raise

    def write_once(self, name: str, data: bytes) -> bool:
        if self.exists(name):
            return False
        self.write(name, data)
        return True

    def exists(self, name: str) -> bool:
        from pyarrow import fs

        with self._storage("looked at", name):
            return self._fs.get_file_info(self._full(name)).type != fs.FileType.NotFound

    def names(self, below: str = "") -> list[str]:
        return sorted(name for name, _ in self._listed(below) if not name.startswith("."))

    def remove(self, name: str) -> None:
        from pyarrow import fs

        full = self._full(name)
        with self._storage("removed", name):
            kind = self._fs.get_file_info(full).type
            if kind != fs.FileType.NotFound:
                with contextlib.suppress(FileNotFoundError):
                    (
                        self._fs.delete_dir
                        if kind == fs.FileType.Directory
                        else self._fs.delete_file
                    )(full)

    def sweep(self) -> None:
        left = [full for name, full in self._listed("") if _LEFT.fullmatch(name)]
        with self._storage("swept", ""):
            for full in left:
                self._fs.delete_file(full)

    def sub(self, name: str) -> "ArrowFolder":
        return ArrowFolder(self._fs, self._full(name), self._shown(name))

    def _listed(self, below: str) -> list[tuple[str, str]]:
        """(name, whole path) of what lies directly in a folder."""
        from pyarrow import fs

        place = self._full(below) if below else self._path
        with self._storage("listed", below):
            found = self._fs.get_file_info(fs.FileSelector(place, allow_not_found=True))
        return [(info.path.rstrip("/").rsplit("/", 1)[-1], info.path) for info in found]

    def _full(self, name: str) -> str:
        return f"{self._path}/{checked(name)}"

    def _shown(self, name: str) -> str:
        return below(self.url, name) if name else self.url

    def _storage(self, doing: str, name: str) -> contextlib.AbstractContextManager[None]:
        return _storage(doing, self._shown(name))
