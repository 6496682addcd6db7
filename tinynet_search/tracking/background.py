"""Publishing from a thread, never in the way of what is published: shared by searches and training jobs.

Storage is the truth and MLflow its window, so nothing is remembered on disk: what was sent is known in memory,
and sending again changes nothing. A server that does not answer is named once, then tried quietly until the end.
"""

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from search_spaces.errors import RequestError
from tinynet_search.errors import TrackingError, one_line
from tinynet_search.mlflow_client.connection import (
    MANNERS,
    RefusedError,
    address,
    last_answer,
    preload,
    reaching,
)
from tinynet_search.tracking.runs import Runs

LONGEST_WAIT = 60.0
# Seconds that the end waits: since MLflow's last answer, and in all.
SILENCE, LONGEST_CLOSE = 20.0, 600.0
Kind = TypeVar("Kind", bound=Runs)


class Background(ABC, Generic[Kind]):
    """One thread that publishes. One at a time may publish a search or a job; ``warn`` gets at most one line.

    Attributes:
        busy_seconds: wall time spent publishing.
        fault: what the last failed attempt failed of, in one line that names MLflow's address.
        link: where to look, once MLflow has been reached: a page of the server, or how to start one on the database.
    """

    def __init__(self, uri: str, what: str, warn: Callable[[str], None]) -> None:
        self._uri, self._what, self._warn = uri, what, warn
        self._runs: Kind | None = None
        self._thread: threading.Thread | None = None
        self._stop, self._tried = threading.Event(), threading.Event()
        self._held: Callable[[], bool] = lambda: True
        self._status, self._live, self._warned, self._all_sent = "FINISHED", False, False, False
        # Whoever waited for the end goes on without it: another publisher may follow.
        self.abandoned = False
        self.busy_seconds = 0.0
        self._synced = time.monotonic()
        self.fault: str | None = None
        self.link: str | None = None
        for key, value in MANNERS.items():
            os.environ.setdefault(key, value)

    @abstractmethod
    def sync_once(self) -> None:
        """Send what is new.

        Raises:
            TrackingError: MLflow does not answer, or refuses.
            RequestError: a file in storage is damaged.
            StorageError: storage cannot be read.
        """

    @abstractmethod
    def _connect(self) -> Kind:
        """The runs in MLflow, looked at anew. Called within ``reaching``."""

    def finish(self, status: str, end: int) -> int:
        """Leave nothing running (``end`` in ms); the number of trainings there are.

        Raises:
            TrackingError: MLflow does not answer, or refuses.
        """
        with reaching(self._uri):
            runs = self._connected()
            runs.finish(status, end)
            return len(runs.children)

    def _connected(self) -> Kind:
        if self._runs is None:
            self._runs = self._connect()
        return self._runs

    def start(self, interval: float = 3.0) -> None:
        """Publish every ``interval`` seconds from a daemon thread; what is published counts as RUNNING until ``close``."""
        with contextlib.suppress(ImportError):
            preload(self._uri)
        self._live = True
        self._thread = threading.Thread(
            target=self._loop, args=(interval,), name="tinynet-publisher", daemon=True
        )
        self._thread.start()

    def only_while(self, held: Callable[[], bool]) -> None:
        """Publish only while this is true, which is asked before each pass: whoever has taken the directory over publishes it."""
        self._held = held

    @property
    def lag(self) -> float:
        """Seconds since everything that there was had been sent."""
        return time.monotonic() - self._synced

    def settle(self, timeout: float) -> None:
        """Wait until MLflow was tried once: making a database takes seconds of a CPU, which a training beside it would want."""
        self._tried.wait(timeout)

    def close(self, timeout: float | None = None, status: str = "FINISHED") -> bool:
        """Send the rest and end with an MLflow ``status``; trainings without a result are left as KILLED: nothing trains any more.

        Args:
            timeout: at most so many seconds. None waits as long as MLflow answers, but for no answer longer than
                ``SILENCE`` and in all for ``LONGEST_CLOSE``. The thread never keeps the process from ending.

        Returns:
            Whether everything was sent.
        """
        self._status = status
        self._stop.set()
        if self._thread is None:
            self.start()
        assert self._thread is not None
        begun = time.monotonic()
        while (
            self._thread.is_alive()
            and (left := self._left(begun, timeout, last_answer(self._thread.ident))) > 0
        ):
            self._thread.join(min(left, 1.0))
        self.abandoned = True
        return self._all_sent

    def _left(self, begun: float, timeout: float | None, heard: float) -> float:
        """Seconds that ``close`` may still wait."""
        until = (
            min(max(begun, heard) + SILENCE, begun + LONGEST_CLOSE)
            if timeout is None
            else begun + timeout
        )
        return until - time.monotonic()

    def _loop(self, interval: float) -> None:
        wait = interval
        while not self._stop.is_set():
            if not self._held():
                return
            wait = (
                interval if self._attempt(self.sync_once) else min(2 * max(wait, 1.0), LONGEST_WAIT)
            )
            self._tried.set()
            self._stop.wait(wait)
        if self._held():
            self._all_sent = self._attempt(self._last)

    def _last(self) -> None:
        end = int(time.time() * 1000)
        self._live = False
        try:
            self.sync_once()
        except Exception:
            if (
                self._runs is not None and not self.abandoned
            ):  # it answers, so at least nothing is left running
                with contextlib.suppress(TrackingError):
                    self.finish(self._status, end)
            raise
        if not self.abandoned:
            self.finish(self._status, end)

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Whether it went well. What was not answered may have happened all the same; after a refusal all is looked at anew."""
        started = time.perf_counter()
        try:
            work()
            self._synced = time.monotonic()
            return True
        except Exception as error:  # whatever it is, the work that is published goes on
            if self._runs is not None:
                self._runs.unsettled = True
            if isinstance(error, RefusedError):
                self._runs = None
            said = (
                str(error)
                if isinstance(error, (TrackingError, RequestError))
                else one_line(repr(error))
            )
            self.fault = (
                said
                if address(self._uri) in said
                else f"publishing to MLflow at {address(self._uri)}: {said}"
            )
            if not self._warned:
                self._warned = True
                with contextlib.suppress(Exception):
                    self._warn(
                        f"{self.fault}; the {self._what} goes on, and tinynet sync sends what is missing"
                    )
            return False
        finally:
            self.busy_seconds += time.perf_counter() - started
