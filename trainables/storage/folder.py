"""Folders on any storage: a local or shared path, or a pyarrow filesystem (``s3://bucket/key``).

Called by every module that reads or writes a search directory, the single source of truth of a
search. Its guarantees are implemented here: a file is visible completely or not at all, a
write-once file is never overwritten, names and links cannot lead out of the folder, files over a
size limit are not read, and every error contains the file name and the operation.
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
# Hidden temporary files, which remain if a writer is killed and are never read.
_STAGED = re.compile(r"\..+\.[0-9a-f]{8}")
_SECRET = re.compile(r"key|secret|token|password|credential|signature", re.IGNORECASE)
# Errors of a mount without hard links, and of a system or mount without exclusive renames.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
_NO_RENAME = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# Errors of folders that cannot be synced because of their mount or permissions. They are ignored:
# there, the durability of names depends on the mount.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES)


class StorageError(OSError):
    """A storage operation failed.

    ``str`` is one line with the file and the operation; ``errno`` is the system's, or EIO if the
    system reported no number. It is a failure of the cluster, not of a trial: the operation can be
    retried once the storage works again.
    """

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


class TooLargeError(ValueError):
    """A file is larger than the given limit and was not read."""


class Folder(Protocol):
    """A folder on any storage.

    ``name`` may contain ``/`` for files in subfolders. Every method raises StorageError if the
    storage fails.
    """

    url: str

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """Read a complete file.

        Raises:
            FileNotFoundError: the file does not exist.
            TooLargeError: the file has more than ``max_bytes`` bytes.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file.

        Readers see the complete old or new content, even if the writer is killed.
        """
        ...

    def write_once(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists; returns False, without changes, if it does."""
        ...

    def exists(self, name: str) -> bool: ...

    def names(self, below: str = "") -> list[str]:
        """Sorted names of the entries directly in ``below``; empty if it does not exist."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content, if it exists.

        For readers a folder disappears in one step.
        """
        ...

    def sweep(self) -> None:
        """Remove temporary files of killed writers directly in this folder.

        Must not be called while another process may write to the folder.
        """
        ...

    def sub(self, name: str) -> "Folder": ...


def open_folder(url: str | os.PathLike[str]) -> Folder:
    """Open the folder at a path or URL; it does not have to exist yet.

    Raises:
        RequestError: pyarrow does not support the URL's scheme or is not installed, or the URL
            contains credentials.
    """
    text = os.fspath(url)
    if "://" not in text:
        return LocalFolder(Path(text).expanduser().absolute())
    check_no_credentials(text)
    try:
        from pyarrow import fs
    except ImportError as error:
        raise RequestError(
            f"storage {text!r} needs pyarrow: "
            "install the extra 'search' (in a checkout: pip install '.[search]')"
        ) from error
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except (ValueError, OSError) as error:
        raise RequestError(f"storage {text!r} cannot be opened: {_describe(error)}") from error
    return ArrowFolder(filesystem, path, text.rstrip("/"))


def child_url(url: str, name: str) -> str:
    """The URL of a file or folder in a folder.

    The options of a storage URL (``s3://bucket/searches?region=...``) stay at its end.
    """
    base, query, options = url.partition("?") if "://" in url else (url, "", "")
    return f"{base.rstrip('/')}/{name}{query}{options}"


def parent_and_name(url: str) -> tuple[str, str]:
    """Split the URL or path of a folder; the options of a URL stay with the parent."""
    base, query, options = url.partition("?") if "://" in url else (url, "", "")
    parent, _, name = base.rstrip("/").rpartition("/")
    return f"{parent or '/'}{query}{options}", name


def check_no_credentials(url: str) -> None:
    """Check that a storage URL can be printed and recorded in plans.

    Raises:
        RequestError: the URL contains a password, an access key or a token, or cannot be parsed.
            The message does not repeat the credentials.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise RequestError(
            "the storage URL is not valid: expected scheme://bucket/folder"
        ) from error
    user, at, _ = parts.netloc.rpartition("@")
    options = [
        key for key, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(key)
    ]
    if ":" in user or (at and parts.scheme == "s3") or options:
        raise RequestError(
            f"the {parts.scheme}:// storage URL contains credentials, which would appear in plans "
            "and messages: pass them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "...), a profile or a role"
        )


def checked_name(name: str) -> str:
    """Check a file name and return it unchanged.

    Raises:
        RequestError: the name is absolute, leads out of the folder or contains characters that are
            not allowed.
    """
    if not all(_NAME.fullmatch(part) for part in name.split("/")):
        raise RequestError(
            f"{name[:200]!r} is not a valid file name: use only letters, digits and . _ @ = + -"
        )
    return name


@contextlib.contextmanager
def _storage(operation: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert storage errors to StorageError, with the file name and the operation.

    A missing file raises FileNotFoundError if the operation is ``read``.
    """
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        if operation == "read":
            raise FileNotFoundError(errno.ENOENT, "does not exist", str(path)) from error
        raise StorageError(
            errno.ENOENT, f"cannot be {operation} ({_describe(error)})", str(path)
        ) from error
    except OSError as error:
        raise StorageError(
            error.errno or errno.EIO, f"cannot be {operation} ({_describe(error)})", str(path)
        ) from error


def _describe(error: Exception) -> str:
    """The message of an error in one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:300]


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """Read a file of this machine or of a mount; see ``Folder.read`` for errors."""
    with _storage("read", path):
        # Without O_NONBLOCK, opening a named pipe would block.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EISDIR, "not a regular file")
            if max_bytes is not None and status.st_size > max_bytes:
                raise TooLargeError(f"it has {status.st_size} bytes, the limit is {max_bytes}")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read() if max_bytes is None else file.read(max_bytes)
        finally:
            os.close(descriptor)


class LocalFolder:
    """A folder of this machine or of a shared mount (NFS, a cluster volume).

    When a write returns, the file and its name are on disk. ``write_once`` is exclusive through a
    hard link or, without hard links, through a rename that does not replace. On a mount that
    supports neither it checks for the file and then renames, which is not exclusive.

    Args:
        path: the folder.
        root: writes through links that lead out of this folder are rejected; by default ``path``.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path, self._root = path, root or path
        self.url = str(path)

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        return read_file(self.path / checked_name(name), max_bytes)

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
                created = _put_once(staged, target)
                _sync(target.parent)
            return created

    def exists(self, name: str) -> bool:
        path = self.path / checked_name(name)
        with _storage("checked", path):
            return path.exists()

    def names(self, below: str = "") -> list[str]:
        folder = self.path / checked_name(below) if below else self.path
        with _storage("listed", folder):
            try:
                names = os.listdir(folder)
            except FileNotFoundError:
                return []
        return sorted(name for name in names if not name.startswith("."))

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
                return  # removed by another process in the meantime

    def sweep(self) -> None:
        with _storage("cleaned", self.path):
            for entry in os.scandir(self.path) if self.path.is_dir() else ():
                if not _STAGED.fullmatch(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    Path(entry.path).unlink(missing_ok=True)

    def sub(self, name: str) -> "LocalFolder":
        return LocalFolder(self.path / checked_name(name), self._root)

    def _target(self, name: str) -> Path:
        """The path to write a name to.

        Links are resolved first, because other users of the folder may have created links to
        anywhere.

        Raises:
            StorageError: a link leads out of the root folder.
        """
        target = self.path / checked_name(name)
        with _storage("written", target):
            root, parent = os.path.realpath(self._root), os.path.realpath(target.parent)
            if os.path.commonpath([root, parent]) != root:
                raise OSError(errno.ELOOP, f"a symbolic link leads out of {self._root}")
        return target


@contextlib.contextmanager
def _staged(target: Path, data: bytes) -> Iterator[Path]:
    """Write data to a hidden file in the target's folder.

    A rename or link then makes the complete content visible in one step.
    """
    _make_folder(target.parent)
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with staged.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield staged
    finally:
        # The file is already gone if it was renamed. A disk that fails here has already raised.
        with contextlib.suppress(OSError):
            staged.unlink()


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, and sync the name of each to disk."""
    missing = [folder]
    while not missing[-1].is_dir():
        missing.append(missing[-1].parent)
    for path in reversed(missing[:-1]):
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Sync a folder, so that the names in it survive a power failure."""
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
    """Give a staged file its final name unless that name exists; returns whether it did.

    It tries a hard link first, then an exclusive rename, and last a check followed by a rename.
    """
    try:
        os.link(staged, target)
        return True
    except FileExistsError:
        # If the reply to the first request is lost, NFS repeats it and reports this error too. The
        # staged file then has both names.
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
    """Rename a file with Linux's renameat2, failing if the target exists.

    Raises:
        OSError: the rename failed; with ENOSYS if the system has no renameat2.
    """
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, "renameat2 is not available")
    at_fdcwd, rename_noreplace = -100, 1
    if call(at_fdcwd, os.fsencode(source), at_fdcwd, os.fsencode(target), rename_noreplace):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class ArrowFolder:
    """A folder on a pyarrow filesystem.

    A file is written under a hidden name and then moved: pyarrow finishes an aborted upload as if
    it were complete, and local filesystems and HDFS show a file while it is being written.

    pyarrow has no exclusive create on object stores, so ``write_once`` checks for the file and then
    writes it. Of two concurrent writers both may get True, and the complete file of the last one
    remains. For results this is harmless: both writers trained the same trial to the same numbers,
    and only times differ.
    """

    def __init__(self, filesystem: Any, path: str, url: str) -> None:
        self._fs, self._path, self.url = filesystem, path.rstrip("/"), url

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        full = self._full(name)
        with self._storage("read", name), self._fs.open_input_file(full) as file:
            if max_bytes is not None and (size := file.size()) > max_bytes:
                raise TooLargeError(f"it has {size} bytes, the limit is {max_bytes}")
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

        with self._storage("checked", name):
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
                    if kind == fs.FileType.Directory:
                        self._fs.delete_dir(full)
                    else:
                        self._fs.delete_file(full)

    def sweep(self) -> None:
        staged = [full for name, full in self._listed("") if _STAGED.fullmatch(name)]
        with self._storage("cleaned", ""):
            for full in staged:
                self._fs.delete_file(full)

    def sub(self, name: str) -> "ArrowFolder":
        return ArrowFolder(self._fs, self._full(name), self._url(name))

    def _listed(self, below: str) -> list[tuple[str, str]]:
        """(name, full path) of the files and folders directly in a folder."""
        from pyarrow import fs

        folder = self._full(below) if below else self._path
        with self._storage("listed", below):
            infos = self._fs.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        return [(info.path.rstrip("/").rsplit("/", 1)[-1], info.path) for info in infos]

    def _full(self, name: str) -> str:
        return f"{self._path}/{checked_name(name)}"

    def _url(self, name: str) -> str:
        return child_url(self.url, name) if name else self.url

    def _storage(self, operation: str, name: str) -> contextlib.AbstractContextManager[None]:
        return _storage(operation, self._url(name))
