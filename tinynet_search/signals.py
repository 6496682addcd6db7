"""Ending a driver before its work is done: Ctrl-C and SIGTERM, gently first, and what else is worth stopping for."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# Seconds that trainings get to commit a checkpoint after a signal, before everything ends at once.
GRACE = 30.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Who or what asked the driver to end. Made by ``stoppable``.

    Attributes:
        why: a few words for the user, None while nothing asked.
        signal: that was sent, None where something else asked; insisted: it was sent again, or its time was over.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.why: str | None = None
        self.signal: signal.Signals | None = None
        self.insisted = False
        self._say, self._gentle = say, False
        self._wanted, self._signal_came = threading.Event(), threading.Event()
        self._before: dict[int, Any] = {}

    def ask(self, why: str) -> None:
        """End once the trainings that run have committed a checkpoint; the first to ask is remembered."""
        if self.why is None:
            self.why = why
            self._wanted.set()

    @contextlib.contextmanager
    def gently(self, ask: Callable[[], None]) -> Iterator[None]:
        """While inside, the first signal calls ``ask`` (from a thread) instead of ending everything; a second one ends it."""
        ended = threading.Event()
        thread = threading.Thread(
            target=self._serve, args=(ask, ended), name="tinynet-stop", daemon=True
        )
        self._gentle = True
        thread.start()
        try:
            yield
        finally:
            self._gentle = False
            ended.set()
            self._wanted.set()
            self._signal_came.set()
            thread.join()

    def _serve(self, ask: Callable[[], None], ended: threading.Event) -> None:
        self._wanted.wait()
        if ended.is_set():
            return
        asked = self._asked(ask)
        if self.signal is None:  # a signal may still follow what else has asked
            self._signal_came.wait()
            if ended.is_set():
                return
            asked = asked or self._asked(ask)
        if asked:
            self._say(
                "stopping once every training has committed a checkpoint; again to stop at once"
            )
        if not asked or not ended.wait(GRACE):
            self._insist()

    def _asked(self, ask: Callable[[], None]) -> bool:
        try:
            ask()
            return True
        except OSError as error:
            self._say(f"trainings could not be asked to commit a checkpoint ({error})")
            return False

    def _insist(self) -> None:
        """The signal once more, to the main thread, whatever that is waiting for."""
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, self.signal or signal.SIGINT)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, self.signal or signal.Signals(number)
        if first and self._gentle:
            self.ask("interrupted")
            self._signal_came.set()
        else:
            self.insisted = not first
            self._passed_on(number, frame)

    def deliver(self) -> None:
        """Pass on the signal that was taken gently, if there was one, as if nobody had stood in between.

        Raises:
            KeyboardInterrupt: there was one.
        """
        if self.signal is not None:
            self._passed_on(self.signal, None)

    def _passed_on(self, number: int, frame: FrameType | None) -> None:
        before = self._before[number]
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt


@contextlib.contextmanager
def stoppable(say: Callable[[str], None]) -> Iterator[Stopping]:
    """Take SIGINT and SIGTERM while inside, if this is the main thread."""
    stopping = Stopping(say)
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    # Who ignores a signal (a background job of a shell) goes on ignoring it.
    stopping._before = {
        number: before
        for number in SIGNALS
        if (before := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in stopping._before:
        signal.signal(number, stopping._signalled)
    try:
        yield stopping
    finally:
        for number, before in stopping._before.items():
            signal.signal(number, before)
