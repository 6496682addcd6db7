"""One driver at a time: a lease in the search directory, ``lease/<n>.json``; whoever wrote the highest n drives.

The file is written once (on a folder of this machine or a mount by an exclusive create), then rewritten by its holder
every few seconds with a new time. A dead holder is told at once on its own machine, by its process; elsewhere its time
must be a minute old and stay as it is. Object stores give pyarrow no exclusive create: there two drivers that start in
the same moment may both go on, which costs work and harms nothing, since results are written once and are the same.

``lease/<n>.stop`` beside it asks the trials of that driver to commit a checkpoint and end.
"""

import contextlib
import getpass
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
from trainables.storage.documents import LAST_DATE, parsed, reason
from trainables.storage.folder import Folder, below

PLACE = "lease"
# Seconds between signs of life, and after which a silent holder on another machine is taken to be gone.
BEAT, STALE = 5.0, 60.0
LARGEST = 4096
# Takeovers of one directory; what is numbered higher was not written by a driver.
MOST = 10**9
_OURS = re.compile(r"([0-9]{6,18})\.(json|stop)")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has characters that cannot be printed")
    return text


# Of a lease's file, which any driver and any editor may have written.
_Number = Annotated[int, Field(strict=True, ge=0, lt=MOST)]
_Whole = Annotated[int, Field(strict=True)]
_Time = Annotated[float, Field(strict=True, ge=0, lt=LAST_DATE)]
_Text = Annotated[str, Field(strict=True)]
_Name = Annotated[str, Field(strict=True, max_length=299), AfterValidator(_printable)]
_Flag = Annotated[bool, Field(strict=True)]


@dataclass(frozen=True)
class Holder:
    """Who drives a directory; the types are checked where a file is read.

    Attributes:
        number: of the lease; owner: a random name of this holding; work: the verb that holds it.
        machine, process: tell whether ``pid`` is still the process that took it; empty where a machine cannot say.
        since, seen: seconds since 1970, by the holder's clock.
        released: it has ended in order.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    number: _Number
    owner: _Text
    work: _Name
    user: _Name
    host: _Name
    machine: _Text
    pid: _Whole
    process: _Text
    since: _Time
    seen: _Time
    released: _Flag = False

    @property
    def name(self) -> str:
        return f"{PLACE}/{self.number:06d}"

    @property
    def described(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(self.since))
        return f"{self.user}@{self.host} (tinynet {self.work}, process {self.pid}) since {since}"

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


_HOLDER = TypeAdapter(Holder)


def read_lease(folder: Folder) -> Holder | None:
    """The last holder of a directory, None where there was none.

    Raises:
        RequestError: its file is damaged.
    """
    numbers = [int(name.removesuffix(".json")) for name in folder.names(PLACE) if _is_lease(name)]
    for number in sorted(numbers, reverse=True):
        name = f"{PLACE}/{number:06d}.json"
        try:
            return _holder(folder.read(name, LARGEST), number)
        except FileNotFoundError:
            continue  # swept by its successor
        except ValueError as error:
            place = below(folder.url, name)
            raise RequestError(
                f"lease {place} is damaged ({one_line(error, 200)}): remove it if nothing drives this directory"
            ) from error
    return None


def live_holder(folder: Folder, wait: Callable[[float], Any] = time.sleep) -> Holder | None:
    """Whoever drives a directory now.

    Args:
        wait: a silent holder on another machine is watched for some seconds, since clocks differ.
    """
    holder = read_lease(folder)
    return holder if holder is not None and _holds(holder, folder, wait) else None


def _holds(holder: Holder, folder: Folder, wait: Callable[[float], Any] = time.sleep) -> bool:
    if holder.released:
        return False
    if holder.machine and holder.machine == _machine():
        now = _process(holder.pid)
        if now or not _hidden(holder.pid):
            return now == holder.process
    # A sign out of the future is no better than an old one: clocks differ.
    if abs(time.time() - holder.seen) < STALE:
        return True
    wait(2.5 * BEAT)
    return read_lease(folder) != holder


class Lease:
    """Held while inside; ``lost`` becomes true where another driver has taken over.

    Args:
        what: the directory's kind and name, for the refusal.
        work: the verb that drives it.

    Raises:
        RequestError: somebody else drives, or the storage cannot be written.
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
        """Below the directory; once it is there, trials of this driver end at their next step."""
        assert self._holder is not None
        return f"{self._holder.name}.stop"

    def __enter__(self) -> "Lease":
        try:
            self._take()
        except OSError as error:
            reason = " ".join(str(error).split())
            raise RequestError(
                f"storage {self._folder.url} cannot be used ({reason}): give another by --storage, or mend it"
            ) from error
        self._thread = threading.Thread(target=self._beat, name="tinynet-lease", daemon=True)
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
                self._say(released=True)
            self._folder.remove(self.stop_file)

    def when_lost(self, call: Callable[[], None]) -> None:
        """Have it called, from a thread, once another driver has taken over; at once where one has."""
        self._on_lost = call
        if self.lost:
            call()

    def held(self) -> bool:
        """Whether no other driver has taken over, looked at now; a storage that cannot be read says nothing against it."""
        assert self._holder is not None
        with contextlib.suppress(OSError, RequestError):
            last = read_lease(self._folder)
            if last is not None and last.owner != self._holder.owner and not self.lost:
                self.lost = True
                self._on_lost()
        return not self.lost

    def ask_to_stop(self) -> None:
        """Have the trials end. Raises OSError where the storage cannot be written."""
        self._folder.write(self.stop_file, b"")

    def _take(self) -> None:
        # What is judged is what is followed: whoever takes the next number in the meantime has it.
        before = read_lease(self._folder)
        if before is not None and _holds(before, self._folder):
            raise self._refusal(read_lease(self._folder) or before)
        now = time.time()
        pid, owner = os.getpid(), uuid.uuid4().hex
        number = before.number + 1 if before else 1
        mine = Holder(
            number,
            owner,
            self._work,
            _user(),
            socket.gethostname(),
            _machine(),
            pid,
            _process(pid),
            now,
            now,
        )
        taken = self._folder.write_once(f"{mine.name}.json", mine.to_json())
        holder = read_lease(self._folder)
        if not taken or holder is None or holder.owner != owner:
            raise self._refusal(holder or mine)
        self._holder = mine
        for name in self._folder.names(PLACE):
            if (found := _OURS.fullmatch(name)) and int(found[1]) < number:
                self._folder.remove(f"{PLACE}/{name}")

    def _refusal(self, holder: Holder) -> RequestError:
        ago = max(0.0, time.time() - holder.seen)
        end = (
            "wait for it, or stop it"
            if holder.machine == _machine()
            else f"wait for it, or stop it; {STALE:.0f} s after a last sign it counts as gone"
        )
        return RequestError(
            f"{self._what} is held by {holder.described} (last sign of life {ago:.0f} s ago): {end}"
        )

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            if not self.held():
                return
            with contextlib.suppress(OSError):
                self._say()

    def _say(self, *, released: bool = False) -> None:
        assert self._holder is not None
        said = Holder(**{**asdict(self._holder), "seen": time.time(), "released": released})
        self._folder.write(f"{said.name}.json", said.to_json())


def _is_lease(name: str) -> bool:
    found = _OURS.fullmatch(name)
    return found is not None and found[2] == "json"


def _holder(data: bytes, number: int) -> Holder:
    """Raises ValueError, in one line, where it is not the lease of this number."""
    try:
        holder = _HOLDER.validate_python(parsed(data))
    except ValidationError as error:
        raise ValueError(reason(error)) from error
    if holder.number != number:
        raise ValueError(f"number: it is {holder.number} in the lease of number {number}")
    return holder


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _machine() -> str:
    """Names this boot of this machine, and the container where process numbers are counted; empty where nothing tells."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty where there is none. A number is given again, a number and a time are not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _hidden(pid: int) -> bool:
    """Whether a process is there of which this user may know nothing, as where /proc is mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        pass
    return False
