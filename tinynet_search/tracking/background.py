"""Publishes to MLflow from a background thread, without blocking the work that is published.

Base class of ``Publisher`` (searches) and ``JobPublisher`` (training jobs). Storage is the source
of truth, so no publishing state is kept on disk: what was sent is recorded in memory only, and
sending it again changes nothing. A server that does not respond is reported once, and
then retried silently until the end.
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
    MLFLOW_DEFAULTS,
    RejectedRequestError,
    address,
    last_response,
    mlflow_access,
    preload,
)
from tinynet_search.tracking.runs import Runs

# Maximum seconds between two attempts.
MAX_RETRY_INTERVAL = 60.0
# Seconds that ``close`` waits: since MLflow's last response, and in total.
RESPONSE_TIMEOUT, CLOSE_TIMEOUT = 20.0, 600.0
RunsT = TypeVar("RunsT", bound=Runs)


class BackgroundPublisher(ABC, Generic[RunsT]):
    """A thread that publishes a search or a job. There must be only one publisher at a time.

    Args:
        uri: MLflow's tracking URI.
        what: "search" or "training", for messages.
        rest: command that sends what this publisher could not send.
        warn: called with at most one line.

    Attributes:
        abandoned: whether ``close`` no longer waits for the thread.
        busy_seconds: wall time spent publishing.
        last_error: error of the last failed attempt, in one line with MLflow's address.
        link: URL of the page in MLflow, set after the first connection. For a database it is the
            URL on a local server started on it.
    """

    def __init__(self, uri: str, what: str, rest: str, warn: Callable[[str], None]) -> None:
        self._uri, self._what, self._rest, self._warn = uri, what, rest, warn
        self._runs: RunsT | None = None
        self._thread: threading.Thread | None = None
        self._stop, self._attempted = threading.Event(), threading.Event()
        self._may_publish: Callable[[], bool] = lambda: True
        self._status, self._training, self._warned, self._all_sent = "FINISHED", False, False, False
        # ``close`` has returned before the thread ended, so another publisher may have started.
        self.abandoned = False
        self.busy_seconds = 0.0
        self._synced = time.monotonic()
        self.last_error: str | None = None
        self.link: str | None = None
        for key, value in MLFLOW_DEFAULTS.items():
            os.environ.setdefault(key, value)

    @abstractmethod
    def sync_once(self) -> None:
        """Send what is new in storage.

        Raises:
            TrackingError: MLflow does not respond, or rejects a request.
            RequestError: a file in storage is damaged.
            StorageError: storage cannot be read.
        """

    @abstractmethod
    def _connect(self) -> RunsT:
        """Query the runs in MLflow from scratch. Called within ``mlflow_access``."""

    def finish(self, status: str, end: int) -> int:
        """End all runs that are still running.

        Args:
            status: MLflow status of the search or job.
            end: end time in ms since 1970.

        Returns:
            The number of trainings in MLflow.

        Raises:
            TrackingError: MLflow does not respond, or rejects a request.
        """
        with mlflow_access(self._uri):
            runs = self._connected()
            runs.finish(status, end)
            return len(runs.children)

    def _connected(self) -> RunsT:
        if self._runs is None:
            self._runs = self._connect()
        return self._runs

    def start(self, interval: float = 3.0) -> None:
        """Publish every ``interval`` seconds from a daemon thread.

        The search or job has the status RUNNING until ``close``.
        """
        with contextlib.suppress(ImportError):
            preload(self._uri)
        self._training = True
        self._thread = threading.Thread(
            target=self._loop, args=(interval,), name="tinynet-publisher", daemon=True
        )
        self._thread.start()

    def only_while(self, held: Callable[[], bool]) -> None:
        """Publish only while ``held`` returns true; it is called before each pass.

        After a takeover of the directory, the new driver publishes it.
        """
        self._may_publish = held

    @property
    def lag(self) -> float:
        """Seconds since everything in storage was last sent."""
        return time.monotonic() - self._synced

    def wait_for_first_attempt(self, timeout: float) -> None:
        """Wait until the first attempt to publish has ended, at most ``timeout`` seconds.

        Creating a database takes seconds of CPU time, which would slow down a training.
        """
        self._attempted.wait(timeout)

    def close(self, timeout: float | None = None, status: str = "FINISHED") -> bool:
        """Send the rest, and end the runs.

        Trainings without a result are set to KILLED, since nothing is training any more. The
        thread never prevents the process from exiting.

        Args:
            timeout: maximum wait in seconds. None waits while MLflow responds: at most
                ``RESPONSE_TIMEOUT`` since its last response, and ``CLOSE_TIMEOUT`` in total.
            status: MLflow status of the search or job.

        Returns:
            Whether everything was sent.
        """
        self._status = status
        self._stop.set()
        if self._thread is None:
            self.start()
        assert self._thread is not None
        start = time.monotonic()
        while self._thread.is_alive():
            remaining = self._remaining(start, timeout, last_response(self._thread.ident))
            if remaining <= 0:
                break
            self._thread.join(min(remaining, 1.0))
        self.abandoned = True
        return self._all_sent

    def _remaining(self, start: float, timeout: float | None, response: float) -> float:
        """Return the seconds that ``close`` may still wait.

        Args:
            start: when ``close`` was called, on the monotonic clock.
            timeout: as in ``close``.
            response: time of MLflow's last response, on the monotonic clock.
        """
        if timeout is not None:
            deadline = start + timeout
        else:
            deadline = min(max(start, response) + RESPONSE_TIMEOUT, start + CLOSE_TIMEOUT)
        return deadline - time.monotonic()

    def _loop(self, interval: float) -> None:
        wait = interval
        while not self._stop.is_set():
            if not self._may_publish():
                return
            if self._attempt(self.sync_once):
                wait = interval
            else:
                wait = min(2 * max(wait, 1.0), MAX_RETRY_INTERVAL)
            self._attempted.set()
            self._stop.wait(wait)
        if self._may_publish():
            self._all_sent = self._attempt(self._last_attempt)

    def _last_attempt(self) -> None:
        end = int(time.time() * 1000)
        self._training = False
        try:
            self.sync_once()
        except Exception:
            # MLflow responds, so at least end the runs.
            if self._runs is not None and not self.abandoned:
                with contextlib.suppress(TrackingError):
                    self.finish(self._status, end)
            raise
        if not self.abandoned:
            self.finish(self._status, end)

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Call a function and return whether it succeeded.

        A request without a response may still have been executed, so the runs are marked as
        unsettled. After a rejected request all runs are queried from scratch.
        """
        started = time.perf_counter()
        try:
            work()
            self._synced = time.monotonic()
            return True
        except Exception as error:  # no error may stop the work that is published
            if self._runs is not None:
                self._runs.unsettled = True
            if isinstance(error, RejectedRequestError):
                self._runs = None
            expected = isinstance(error, (TrackingError, RequestError))
            message = str(error) if expected else one_line(repr(error))
            if address(self._uri) not in message:
                message = f"publishing to MLflow at {address(self._uri)}: {message}"
            self.last_error = message
            if not self._warned:
                self._warned = True
                with contextlib.suppress(Exception):
                    self._warn(
                        f"{message}; the {self._what} continues; "
                        f"to send the rest later, run {self._rest}"
                    )
            return False
        finally:
            self.busy_seconds += time.perf_counter() - started
