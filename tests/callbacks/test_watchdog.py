"""Trials that hang, and those that only wait: by a clock of the test's own."""

from types import SimpleNamespace
from typing import Any

import pytest

from tinynet_search.callbacks import watchdog
from tinynet_search.callbacks.watchdog import Watchdog

pytestmark = pytest.mark.quick


def test_time_without_a_node_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an hour is given to a trial whose workers waited almost as long for their node, and once more after it was lost."""
    clock, waits, ended = [0.0], [True], list[float]()
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(watchdog, "waiting", lambda trials: set(trials) if waits[0] else set())
    monkeypatch.setattr(Watchdog, "_end", lambda self, trial: ended.append(clock[0]))
    trial: Any = SimpleNamespace(
        trial_id="a", status="RUNNING", temporary_state=SimpleNamespace(ray_actor=object())
    )
    dog = Watchdog("", 1800.0)

    def goes_by(seconds: int) -> None:
        for _ in range(seconds // 5):
            clock[0] += 5
            dog.on_step_end(0, [trial])

    dog.on_trial_start(0, [trial], trial)
    goes_by(1790)
    waits[0] = False
    goes_by(1700)
    dog.on_trial_result(0, [trial], trial, {})
    goes_by(1000)
    waits[0] = True
    goes_by(3600)
    waits[0] = False
    goes_by(1700)
    assert ended == []
    goes_by(200)
    assert ended
