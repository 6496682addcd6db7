"""Tests how a driver stops on signals and requests: gracefully or at once."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tinynet_search import signals as module
from tinynet_search.cluster.tune import END, FixedSource, StoppableSource
from tinynet_search.signals import stoppable

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """Set Python's default handlers in place of Ray's, and restore the previous ones on exit."""
    previous = {number: signal.getsignal(number) for number in module.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs the handler between two bytecode instructions


@pytest.mark.parametrize("number", module.SIGNALS)
def test_first_signal_stops_gracefully(number: signal.Signals) -> None:
    delivered, messages = threading.Event(), []
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: received.append(signal.SIGTERM))
    with stoppable(messages.append) as stopping, stopping.graceful(delivered.set):
        send(number)
        assert delivered.wait(20)
        assert (stopping.reason, stopping.signal) == ("interrupted", number)
    assert "again to stop at once" in messages[0]
    with pytest.raises(KeyboardInterrupt):
        stopping.reraise()
    assert received == ([signal.SIGTERM] if number == signal.SIGTERM else [])


def test_second_signal_interrupts_at_once() -> None:
    delivered = threading.Event()
    with (
        pytest.raises(KeyboardInterrupt),
        stoppable(lambda line: None) as stopping,
        stopping.graceful(delivered.set),
    ):
        send(signal.SIGINT)
        assert delivered.wait(20)
        send(signal.SIGINT)
        pytest.fail("the second signal was ignored")


def test_grace_period_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that do not end by themselves are interrupted."""
    monkeypatch.setattr(module, "GRACE", 0.05)
    with (
        pytest.raises(KeyboardInterrupt),
        stoppable(lambda line: None) as stopping,
        stopping.graceful(lambda: None),
    ):
        send(signal.SIGINT)
        time.sleep(20)
        pytest.fail("the grace period did not expire")


def test_unwritable_storage_interrupts_at_once() -> None:
    messages: list[str] = []

    def full() -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(KeyboardInterrupt),
        stoppable(messages.append) as stopping,
        stopping.graceful(full),
    ):
        send(signal.SIGINT)
        time.sleep(20)
        pytest.fail("the driver was not interrupted")
    assert "No space left on device" in messages[-1]


def test_signal_after_a_requested_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many trials failed and one of the last hangs: a signal still starts the grace period."""
    monkeypatch.setattr(module, "GRACE", 0.05)
    calls: list[bool] = []
    with (
        pytest.raises(KeyboardInterrupt),
        stoppable(lambda line: None) as stopping,
        stopping.graceful(lambda: calls.append(True)),
    ):
        stopping.request_stop("too many failed")
        wait_for(lambda: bool(calls))
        send(signal.SIGTERM)
        time.sleep(20)
        pytest.fail("the driver was not interrupted")
    assert (stopping.reason, stopping.signal, stopping.forced) == (
        "too many failed",
        signal.SIGTERM,
        True,
    )


def test_signal_outside_of_trainings_interrupts_at_once() -> None:
    """The first signal does not set ``forced``, so the driver still waits for MLflow."""
    with stoppable(lambda line: None) as stopping:
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert (stopping.signal, stopping.forced) == (signal.SIGINT, False)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stopping.forced


def test_handlers_are_restored_and_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    term = signal.getsignal(signal.SIGTERM)
    with stoppable(lambda line: None) as stopping, stopping.graceful(lambda: None):
        send(signal.SIGINT)
        assert stopping.signal is None
        assert signal.getsignal(signal.SIGTERM) != term
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (
        signal.SIG_IGN,
        term,
    )


def test_signals_are_not_handled_in_another_thread() -> None:
    handler, reasons = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        delivered = threading.Event()
        with stoppable(lambda line: None) as stopping, stopping.graceful(delivered.set):
            stopping.request_stop("reasons")
            assert delivered.wait(20)
            reasons.append(stopping.reason)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reasons == ["reasons"]
    assert signal.getsignal(signal.SIGINT) == handler


def test_stoppable_source_ends_after_a_stop_request() -> None:
    ended: list[Any] = []
    one, two = object(), object()
    with stoppable(lambda line: None) as stopping:
        source = StoppableSource(FixedSource([one, two]), stopping, ended.append)  # type: ignore[list-item]
        assert source.next() is one
        source.done(one)  # type: ignore[arg-type]
        stopping.request_stop("first")
        stopping.request_stop("second")
        assert source.next() == END
        stopping.reraise()  # no signal was received
    assert (ended, stopping.reason) == ([one], "first")
