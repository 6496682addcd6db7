"""Tests of the state of a search, without storage and Ray: pending, failed and new trials."""

from dataclasses import replace

import pytest

from search_spaces import get_space
from tinynet_search.search.state import SearchState
from tinynet_search.store.directory import Candidate
from trainables.recipe import get_recipe
from trainables.result import ResultSummary
from trainables.spec import TrialSpec

pytestmark = pytest.mark.quick

SPACE = get_space("efficientnet_mini")


def candidate(step: int, kind: str = "trial", epochs: int = 2) -> Candidate:
    """One of many different networks."""
    network = SPACE.network((0.5 + 0.1 * step, 1.0, 1.0), 10)
    recipe = get_recipe("short", epochs=epochs)
    spec = TrialSpec(SPACE.name, SPACE.version, network.rdw, 10, recipe, {}, "f", 0, kind)
    return Candidate.of(spec)


def summary(of: Candidate, reason: str | None = None) -> ResultSummary:
    return ResultSummary(
        run=of.run,
        status="failed" if reason else "finished",
        reason=reason,
        detail=reason,
        top1=None if reason else 50.0,
        c=of.c,
        macs=of.network.macs,
        params=of.network.params,
        resolution=of.network.resolution,
        started=1.0,
        ended=2.0,
        epochs_done=0 if reason else 2,
        seconds=3.0,
        first_ts=None if reason else 1000,
    )


def state(drawn: int = 4, trials: int = 3, *, adaptive: bool = False) -> SearchState:
    candidates = [candidate(step) for step in range(drawn)]
    return SearchState(
        trials=trials, epochs=2, adaptive=adaptive, stop_at_failed=0.5, candidates=candidates
    )


def test_only_the_first_trials_are_pending() -> None:
    search = state(drawn=4, trials=3)
    first, second, third, _ = search.candidates
    assert search.pending_trials == [first, second, third]
    search.ended(second.run, summary(second))
    search.ended(third.run, None)  # lost: it has no result
    assert search.pending_trials == [first, third]
    assert search.counts == {"planned": 4, "finished": 1, "failed": 0}


def test_duplicate_runs_are_pending_once() -> None:
    search = state(trials=1)
    duplicate = replace(search.candidates[0])
    search.finals = [candidate(9, "final"), candidate(9, "final")]
    assert [
        c.run for c in search.pending([*search.trial_candidates, duplicate, *search.finals])
    ] == [
        duplicate.run,
        search.finals[0].run,
    ]


def test_adaptive_search_has_trials_left_until_all_are_drawn() -> None:
    search = state(drawn=1, trials=3, adaptive=True)
    search.read({c.run: summary(c) for c in search.candidates})
    assert search.pending_trials == []
    assert search.trials_left
    search.draw([candidate(1), candidate(2), candidate(3)])
    assert len(search.trial_candidates) == 3
    search.read({c.run: summary(c) for c in search.candidates})
    assert not search.trials_left


@pytest.mark.parametrize("adaptive", [False, True])
def test_failures_among_the_first_trials_stop_a_search(adaptive: bool) -> None:
    search = state(drawn=0, trials=20, adaptive=adaptive)
    search.draw([candidate(step) for step in range(21)])
    beyond = search.candidates[20]
    search.ended(beyond.run, summary(beyond, "diverged"))
    for each in search.candidates[:8]:
        assert search.stop_reason is None
        search.ended(each.run, summary(each, "diverged"))
    assert search.stop_reason == "8 of 8 trials failed (8 diverged)"
    search.forget([c.run for c in search.candidates[:8]])
    assert search.stop_reason is None
    assert len(search.pending_trials) == 20


def test_results_of_this_driver_are_new() -> None:
    search = state()
    first, second, *_ = search.candidates
    search.finished_before = frozenset({first.run})
    search.read({first.run: summary(first), second.run: summary(second)})
    assert [result.run for result in search.new] == [second.run]
    search.forget([first.run])
    search.ended(first.run, summary(first))
    assert [result.run for result in search.new] == [first.run, second.run]


def test_trainable_runs_and_results_for_different_epochs() -> None:
    search = state(drawn=3, trials=2)
    first, second, third = (c.run for c in search.candidates)
    final = candidate(9, "final").run
    assert search.trainable([final], None) == {first, second, final}
    assert search.trainable([], 5) == {first, second, first.with_epochs(5), second.with_epochs(5)}
    assert search.trained_elsewhere({first.with_epochs(9), third.with_epochs(9)}) == 1


def test_unread_runs_have_no_known_result() -> None:
    search = state(drawn=2, trials=1)
    search.continued = [candidate(0, epochs=7)]
    search.read({search.candidates[0].run: summary(search.candidates[0])})
    assert search.unread == [search.candidates[1].run, search.continued[0].run]
