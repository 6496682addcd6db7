"""Tests that the watchdog ends trials that hang, but not trials that wait for a node.

The clock is simulated.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from tinynet_search.callbacks import watchdog
from tinynet_search.callbacks.watchdog import Watchdog

pytestmark = pytest.mark.quick


def test_time_without_a_node_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout of half an hour starts again after the workers of a trial waited for a node.

    They wait at the start, almost as long as the timeout, and again after the node was lost.
    """
    clock, waits, ended = [0.0], [True], list[float]()
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(
        watchdog, "waiting_trials", lambda trials: set(trials) if waits[0] else set()
    )
    monkeypatch.setattr(Watchdog, "_end", lambda self, trial: ended.append(clock[0]))
    trial: Any = SimpleNamespace(
        trial_id="a", status="RUNNING", temporary_state=SimpleNamespace(ray_actor=object())
    )
    callback = Watchdog("", 1800.0)

    def advance(seconds: int) -> None:
        for _ in range(seconds // 5):
            clock[0] += 5
            callback.on_step_end(0, [trial])

    callback.on_trial_start(0, [trial], trial)
    advance(1790)
    waits[0] = False
    advance(1700)
    callback.on_trial_result(0, [trial], trial, {})
    advance(1000)
    waits[0] = True
    advance(3600)
    waits[0] = False
    advance(1700)
    assert ended == []
    advance(200)
    assert ended
