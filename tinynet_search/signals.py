"""Stops a driver early: on Ctrl-C, on SIGTERM, or when the code requests it.

Used by the search driver and by ``tinynet train``.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# Seconds in which trainings may commit a checkpoint after a signal; then the driver is interrupted.
GRACE = 30.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """State of the request to stop a driver. Created by ``stoppable``.

    Attributes:
        reason: a short text for the user; None until a stop is requested.
        signal: the first signal received; None if the stop was not requested by a signal.
        forced: whether a second signal was received or the grace period has expired.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.reason: str | None = None
        self.signal: signal.Signals | None = None
        self.forced = False
        self._say, self._is_graceful = say, False
        self._stop_requested, self._signal_received = threading.Event(), threading.Event()
        self._previous_handlers: dict[int, Any] = {}

    def request_stop(self, reason: str) -> None:
        """Stop once all running trainings have committed a checkpoint; the first reason is kept."""
        if self.reason is None:
            self.reason = reason
            self._stop_requested.set()

    @contextlib.contextmanager
    def graceful(self, request_checkpoints: Callable[[], None]) -> Iterator[None]:
        """Handle the first signal gracefully; a second one interrupts.

        The first signal calls ``request_checkpoints`` from a thread.

        Args:
            request_checkpoints: requests that the running trainings commit a checkpoint and end.
        """
        ended = threading.Event()
        thread = threading.Thread(
            target=self._serve, args=(request_checkpoints, ended), name="tinynet-stop", daemon=True
        )
        self._is_graceful = True
        thread.start()
        try:
            yield
        finally:
            self._is_graceful = False
            ended.set()
            self._stop_requested.set()
            self._signal_received.set()
            thread.join()

    def _serve(self, request_checkpoints: Callable[[], None], ended: threading.Event) -> None:
        self._stop_requested.wait()
        if ended.is_set():
            return
        requested = self._try_request(request_checkpoints)
        if self.signal is None:  # a signal may still follow a stop that the code requested
            self._signal_received.wait()
            if ended.is_set():
                return
            requested = requested or self._try_request(request_checkpoints)
        if requested:
            self._say(
                "stopping once every training has committed a checkpoint; "
                "interrupt again to stop at once"
            )
        if not requested or not ended.wait(GRACE):
            self._force()

    def _try_request(self, request_checkpoints: Callable[[], None]) -> bool:
        try:
            request_checkpoints()
            return True
        except OSError as error:
            self._say(f"checkpoints of the running trainings could not be requested ({error})")
            return False

    def _force(self) -> None:
        """Send the signal again to the main thread, which may be blocked in any call."""
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, self.signal or signal.SIGINT)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, self.signal or signal.Signals(number)
        if first and self._is_graceful:
            self.request_stop("interrupted")
            self._signal_received.set()
        else:
            self.forced = not first
            self._call_previous_handler(number, frame)

    def reraise(self) -> None:
        """Pass a signal that was handled gracefully to the handler that was installed before.

        Raises:
            KeyboardInterrupt: a signal was received.
        """
        if self.signal is not None:
            self._call_previous_handler(self.signal, None)

    def _call_previous_handler(self, number: int, frame: FrameType | None) -> None:
        handler = self._previous_handlers[number]
        if callable(handler):
            handler(number, frame)
        raise KeyboardInterrupt


@contextlib.contextmanager
def stoppable(say: Callable[[str], None]) -> Iterator[Stopping]:
    """Handle SIGINT and SIGTERM while inside, if this is the main thread.

    Args:
        say: prints one line for the user.
    """
    stopping = Stopping(say)
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    # A signal that the process ignores (in a background job of a shell) stays ignored.
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_IGN, None):
            stopping._previous_handlers[number] = handler
    for number in stopping._previous_handlers:
        signal.signal(number, stopping._handle_signal)
    try:
        yield stopping
    finally:
        for number, handler in stopping._previous_handlers.items():
            signal.signal(number, handler)
