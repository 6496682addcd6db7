"""Lease of a search or job directory: allows one driver at a time.

Held by the drivers of searches and jobs and by ``tinynet sync``; read by the preflight check. The
lease is the file ``lease/<n>.json``, and the writer of the highest n is the holder.

The file is created once (by an exclusive create on a local folder or a mount), and then rewritten
by its holder every few seconds with the current time. On the holder's own machine a dead holder is
detected at once, by its process. On other machines its time must be one minute old and unchanged.
pyarrow has no exclusive create for object stores: two drivers that start at the same moment may
both continue there. This wastes work but is otherwise harmless, since results are written once and
are identical.

While the file ``lease/<n>.stop`` exists, trials of that driver write a checkpoint and end.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from search_spaces import RequestError
from tinynet_search.errors import one_line
from tinynet_search.owner import login_name
from trainables.storage.documents import MAX_TIMESTAMP, parsed, reason
from trainables.storage.folder import Folder, child_url

LEASE_FOLDER = "lease"
# Seconds between two heartbeats, and seconds without a heartbeat after which a holder on another
# machine is considered dead.
HEARTBEAT_SECONDS, STALE_SECONDS = 5.0, 60.0
MAX_LEASE_BYTES = 4096
# Maximum number of takeovers of one directory; no driver writes a higher number.
MAX_NUMBER = 10**9
_LEASE_FILE = re.compile(r"([0-9]{6,18})\.(json|stop)")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("contains characters that cannot be printed")
    return text


# Types of the fields of a lease file, which any program may have written.
_Number = Annotated[int, Field(strict=True, ge=0, lt=MAX_NUMBER)]
_Integer = Annotated[int, Field(strict=True)]
_Time = Annotated[float, Field(strict=True, ge=0, lt=MAX_TIMESTAMP)]
_Text = Annotated[str, Field(strict=True)]
_Name = Annotated[str, Field(strict=True, max_length=299), AfterValidator(_printable)]
_Flag = Annotated[bool, Field(strict=True)]


@dataclass(frozen=True)
class Holder:
    """The holder of a lease; the types are validated when the file is read.

    Attributes:
        number: number of the lease, n in its file name.
        owner: random name of this holder.
        work: the command that holds the lease.
        user: user name of the holder.
        host: host name of the holder.
        machine: id of the machine and its boot; empty if it is not known.
        pid: process id.
        process: start time of the process, which shows whether ``pid`` still is the process that
            took the lease; empty if it is not known.
        since: when the lease was taken, in seconds since 1970 by the holder's clock.
        seen: time of the last heartbeat, in seconds since 1970 by the holder's clock.
        released: whether the holder has released the lease.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    number: _Number
    owner: _Text
    work: _Name
    user: _Name
    host: _Name
    machine: _Text
    pid: _Integer
    process: _Text
    since: _Time
    seen: _Time
    released: _Flag = False

    @property
    def name(self) -> str:
        return f"{LEASE_FOLDER}/{self.number:06d}"

    @property
    def described(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(self.since))
        return f"{self.user}@{self.host} (tinynet {self.work}, process {self.pid}) since {since}"

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


_HOLDER = TypeAdapter(Holder)


def read_lease(folder: Folder) -> Holder | None:
    """Return the last holder of a directory, None if there was none.

    Raises:
        RequestError: the lease file is damaged.
    """
    numbers = [
        int(name.removesuffix(".json")) for name in folder.names(LEASE_FOLDER) if _is_lease(name)
    ]
    for number in sorted(numbers, reverse=True):
        name = f"{LEASE_FOLDER}/{number:06d}.json"
        try:
            return _holder(folder.read(name, MAX_LEASE_BYTES), number)
        except FileNotFoundError:
            continue  # removed by the next holder
        except ValueError as error:
            path = child_url(folder.url, name)
            raise RequestError(
                f"lease {path} is damaged ({one_line(error, 200)}): "
                "remove it if no process uses this directory"
            ) from error
    return None


def live_holder(folder: Folder, wait: Callable[[float], Any] = time.sleep) -> Holder | None:
    """Return the current driver of a directory, None if there is none.

    Args:
        folder: the directory.
        wait: sleeps for a number of seconds. Called for a holder on another machine whose last
            heartbeat is old, to see whether its time still changes, since clocks differ.

    Raises:
        RequestError: the lease file is damaged.
    """
    holder = read_lease(folder)
    return holder if holder is not None and _is_live(holder, folder, wait) else None


def _is_live(holder: Holder, folder: Folder, wait: Callable[[float], Any] = time.sleep) -> bool:
    if holder.released:
        return False
    if holder.machine and holder.machine == _machine_id():
        start = _process_start(holder.pid)
        if start or not _is_hidden_process(holder.pid):
            return start == holder.process
    # A heartbeat in the future counts as an old one: clocks differ.
    if abs(time.time() - holder.seen) < STALE_SECONDS:
        return True
    wait(2.5 * HEARTBEAT_SECONDS)
    return read_lease(folder) != holder


class Lease:
    """A lease that is held within its context.

    Args:
        folder: the directory.
        what: kind and name of the directory, for error messages.
        work: the command that takes the lease.

    Attributes:
        lost: whether another driver has taken over.

    Raises:
        RequestError: on entry, if another driver holds the lease, or the storage cannot be written.
    """

    def __init__(self, folder: Folder, what: str, work: str) -> None:
        self._folder, self._what, self._work = folder, what, work
        self._holder: Holder | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._on_lost: Callable[[], None] = lambda: None
        self.lost = False

    @property
    def stop_file(self) -> str:
        """Path below the directory; trials of this driver end at their next step if it exists."""
        assert self._holder is not None
        return f"{self._holder.name}.stop"

    def __enter__(self) -> "Lease":
        try:
            self._take()
        except OSError as error:
            reason = " ".join(str(error).split())
            raise RequestError(
                f"storage {self._folder.url} cannot be used ({reason}): "
                "fix it, or pass a different --storage"
            ) from error
        self._thread = threading.Thread(target=self._heartbeat, name="tinynet-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._thread is not None
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if not self.lost:
                self._write(released=True)
            self._folder.remove(self.stop_file)

    def when_lost(self, call: Callable[[], None]) -> None:
        """Set a function that is called, from a thread, when another driver takes over.

        It is called immediately if another driver has already taken over.
        """
        self._on_lost = call
        if self.lost:
            call()

    def held(self) -> bool:
        """Read the lease again and return whether it is still held.

        A storage that cannot be read counts as held.
        """
        assert self._holder is not None
        with contextlib.suppress(OSError, RequestError):
            last = read_lease(self._folder)
            if last is not None and last.owner != self._holder.owner and not self.lost:
                self.lost = True
                self._on_lost()
        return not self.lost

    def request_stop(self) -> None:
        """Write the stop file, which ends the trials.

        Raises:
            OSError: the storage cannot be written.
        """
        self._folder.write(self.stop_file, b"")

    def _take(self) -> None:
        # The next number is that of the lease that was checked plus one: a driver that takes this
        # number in the meantime holds the lease.
        previous = read_lease(self._folder)
        if previous is not None and _is_live(previous, self._folder):
            raise self._refusal(read_lease(self._folder) or previous)
        now = time.time()
        pid, owner = os.getpid(), uuid.uuid4().hex
        number = previous.number + 1 if previous else 1
        own = Holder(
            number,
            owner,
            self._work,
            login_name(),
            socket.gethostname(),
            _machine_id(),
            pid,
            _process_start(pid),
            now,
            now,
        )
        created = self._folder.write_once(f"{own.name}.json", own.to_json())
        holder = read_lease(self._folder)
        if not created or holder is None or holder.owner != owner:
            raise self._refusal(holder or own)
        self._holder = own
        for name in self._folder.names(LEASE_FOLDER):
            match = _LEASE_FILE.fullmatch(name)
            if match and int(match[1]) < number:
                self._folder.remove(f"{LEASE_FOLDER}/{name}")

    def _refusal(self, holder: Holder) -> RequestError:
        ago = max(0.0, time.time() - holder.seen)
        advice = "wait for it, or stop it"
        if holder.machine != _machine_id():
            advice += f"; it expires {STALE_SECONDS:.0f} s after its last heartbeat"
        return RequestError(
            f"{self._what} is held by {holder.described} (last heartbeat {ago:.0f} s ago): {advice}"
        )

    def _heartbeat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            if not self.held():
                return
            with contextlib.suppress(OSError):
                self._write()

    def _write(self, *, released: bool = False) -> None:
        assert self._holder is not None
        holder = Holder(**{**asdict(self._holder), "seen": time.time(), "released": released})
        self._folder.write(f"{holder.name}.json", holder.to_json())


def _is_lease(name: str) -> bool:
    match = _LEASE_FILE.fullmatch(name)
    return match is not None and match[2] == "json"


def _holder(data: bytes, number: int) -> Holder:
    """Parse a lease file.

    Raises:
        ValueError: in one line, if the data is not the lease with this number.
    """
    try:
        holder = _HOLDER.validate_python(parsed(data))
    except ValidationError as error:
        raise ValueError(reason(error)) from error
    if holder.number != number:
        raise ValueError(f"number: expected {number}, got {holder.number}")
    return holder


def _machine_id() -> str:
    """Return an id of this boot of the machine and of its PID namespace; empty if not available."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Return the start time of a process in kernel ticks; empty if there is no such process.

    Process ids are reused; the pair of process id and start time is unique.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_hidden_process(pid: int) -> bool:
    """Whether a process exists but is hidden from this user, as by /proc mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        pass
    return False
