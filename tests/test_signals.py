"""A driver that is asked to end: gently, at once, and by what."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tinynet_search import signals as module
from tinynet_search.cluster.tune import END, Fixed, Guarded
from tinynet_search.signals import stoppable

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """Python's own handlers, whatever Ray has set in this process; those of before come back."""
    before = {number: signal.getsignal(number) for number in module.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python's handler runs between two of its steps


@pytest.mark.parametrize("number", module.SIGNALS)
def test_the_first_signal_asks(number: signal.Signals) -> None:
    asked, said = threading.Event(), []
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: received.append(signal.SIGTERM))
    with stoppable(said.append) as stopping, stopping.gently(asked.set):
        send(number)
        assert asked.wait(20)
        assert (stopping.why, stopping.signal) == ("interrupted", number)
    assert "again to stop at once" in said[0]
    with pytest.raises(KeyboardInterrupt):
        stopping.deliver()
    assert received == ([signal.SIGTERM] if number == signal.SIGTERM else [])


def test_the_second_ends_at_once() -> None:
    asked = threading.Event()
    with (
        pytest.raises(KeyboardInterrupt),
        stoppable(lambda line: None) as stopping,
        stopping.gently(asked.set),
    ):
        send(signal.SIGINT)
        assert asked.wait(20)
        send(signal.SIGINT)
        pytest.fail("it went on")


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that do not end by themselves are ended."""
    monkeypatch.setattr(module, "GRACE", 0.05)
    with (
        pytest.raises(KeyboardInterrupt),
        stoppable(lambda line: None) as stopping,
        stopping.gently(lambda: None),
    ):
        send(signal.SIGINT)
        time.sleep(20)
        pytest.fail("it went on")


def test_storage_that_cannot_be_written_ends_at_once() -> None:
    said: list[str] = []

    def full() -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(KeyboardInterrupt),
        stoppable(said.append) as stopping,
        stopping.gently(full),
    ):
        send(signal.SIGINT)
        time.sleep(20)
        pytest.fail("it went on")
    assert "No space left on device" in said[-1]


def test_a_signal_after_another_reason_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many have failed, and one of the last hangs: a signal still ends it in time."""
    monkeypatch.setattr(module, "GRACE", 0.05)
    asked: list[bool] = []
    with (
        pytest.raises(KeyboardInterrupt),
        stoppable(lambda line: None) as stopping,
        stopping.gently(lambda: asked.append(True)),
    ):
        stopping.ask("too many failed")
        wait_for(lambda: bool(asked))
        send(signal.SIGTERM)
        time.sleep(20)
        pytest.fail("it went on")
    assert (stopping.why, stopping.signal, stopping.insisted) == (
        "too many failed",
        signal.SIGTERM,
        True,
    )


def test_outside_of_trainings_a_signal_is_at_once() -> None:
    """The first is no insisting: MLflow still gets its seconds."""
    with stoppable(lambda line: None) as stopping:
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert (stopping.signal, stopping.insisted) == (signal.SIGINT, False)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stopping.insisted


def test_handlers_come_back_and_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    term = signal.getsignal(signal.SIGTERM)
    with stoppable(lambda line: None) as stopping, stopping.gently(lambda: None):
        send(signal.SIGINT)
        assert stopping.signal is None
        assert signal.getsignal(signal.SIGTERM) != term
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (
        signal.SIG_IGN,
        term,
    )


def test_in_another_thread_signals_are_left_alone() -> None:
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        asked = threading.Event()
        with stoppable(lambda line: None) as stopping, stopping.gently(asked.set):
            stopping.ask("reasons")
            assert asked.wait(20)
            found.append(stopping.why)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["reasons"]
    assert signal.getsignal(signal.SIGINT) == before


def test_a_guarded_source_ends() -> None:
    ended: list[Any] = []
    one, two = object(), object()
    with stoppable(lambda line: None) as stopping:
        source = Guarded(Fixed([one, two]), stopping, ended.append)  # type: ignore[list-item]
        assert source.next() is one
        source.done(one)  # type: ignore[arg-type]
        stopping.ask("first")
        stopping.ask("second")
        assert source.next() == END
        stopping.deliver()  # nothing was sent
    assert (ended, stopping.why) == ([one], "first")
