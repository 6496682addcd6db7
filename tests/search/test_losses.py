"""Processes that die: by themselves, which is a trial's failure, or with their nodes, which is not."""

from pathlib import Path
from typing import Any

import pytest

from tests.search.helpers import results, tiny_config
from tinynet_search.failures import Tally
from tinynet_search.losses import Losses, described, died_alone
from tinynet_search.plan import agreed_plan, grow
from tinynet_search.search import run_search
from tinynet_search.store import Candidate, SearchStore

# As Ray 2.58 words them.
KILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: ImplicitFunc\nThe actor is dead because its worker process has "
    "died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some "
    "common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called\n"
)
FULL = "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.7) was 30.1GB / 31.0GB (0.97)\n"
GONE = (
    "The actor died because its node has died. Node Id: 5a\n\tthe actor's node was terminated unexpectedly: health check failed\n",
    "The actor 0daad0 is unavailable: The actor is temporarily unavailable: RpcError: RPC error: Socket closed rpc_code: 14.\n",
    "The actor is dead because it was killed by `ray.kill`.\n",
    "Rank 0: its worker process has died. Rank 1: The actor died because its node has died.\n",
    "",
)


@pytest.fixture
def searched(tmp_path: Path) -> tuple[SearchStore, Candidate]:
    config = tiny_config(tmp_path, trials=2)
    store = SearchStore(config.url)
    return store, grow(agreed_plan(store, config), store, config)[0]


def test_what_ray_says_of_a_death() -> None:
    assert died_alone(KILLED)
    assert died_alone(FULL)
    assert not any(map(died_alone, GONE))
    assert described(KILLED) == "Worker unexpectedly exits with a connection error code 2"
    assert described(FULL) == "Memory on the node (IP: 10.0.0.7) was 30.1GB / 31.0GB (0.97)"


@pytest.mark.parametrize(
    ("deaths", "reason"),
    [
        ([(KILLED, 0)] * 3, "died"),
        ([(KILLED, 4)] * 2 + [(FULL, 4)], "out of memory"),
        ([(KILLED, 0)] * 2, None),  # Tune would start it once more
        ([(KILLED, 0), (KILLED, 1), (KILLED, 1)], None),  # it came further
        ([(KILLED, 0), (GONE[0], 0), (KILLED, 0)], None),  # a node in between
    ],
)
def test_deaths_in_a_row_are_a_failure(searched: tuple[SearchStore, Candidate], deaths: list[tuple[str, int]], reason: str | None) -> None:
    store, candidate = searched
    losses = Losses(store, 3)
    for said, epochs in deaths:
        losses.lost(candidate.run, said, epochs)
    assert losses.judge(candidate) == reason
    result = store.result(candidate.run)
    assert (result and result["reason"]) == reason
    assert losses.judge(candidate) is None  # it has a result, or none of its own
    if result:
        assert result["detail"].startswith("its process died 4 times without a new epoch, and its node lives: ")
        tally = Tally(100, 0.5)
        tally.add(candidate.run, store.summary(candidate.run))
        assert tally._reasons == {reason: 1}


def test_a_trial_that_is_given_up_early_is_given_again(searched: tuple[SearchStore, Candidate]) -> None:
    """As often as it would have been started again, and not where it has its result."""
    store, candidate = searched
    losses = Losses(store, 2)
    losses.lost(candidate.run, GONE[0], 0)
    assert [losses.given_up_early(candidate) for _ in range(3)] == [True, False, False]
    fresh = Losses(store, 2)
    for _ in range(2):
        fresh.lost(candidate.run, KILLED, 0)
    assert fresh.judge(candidate) == "died"
    assert not Losses(store, 2).given_up_early(candidate)


@pytest.mark.ray
def test_a_space_that_kills_its_process(ray_cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a word, again and again: recorded, not tried for ever, and the search completes."""
    own = ("space.name=tests.search.unruly:Deadly", "search.seed=8", "run.max_failures=1", "run.stop_at_failed=1", "search.minimum=1")
    config = tiny_config(tmp_path, *own, trials=4)
    outcome = run_search(config)
    found = results(tmp_path)
    assert len(found) == 4
    assert "  failed (died)  0 s" in capfd.readouterr().err
    reasons = {r["reason"] for r in found.values() if r["network"]["resolution"] % 3 == 0}
    assert reasons == {"died"}
    assert {r["reason"] for r in found.values() if r["network"]["resolution"] % 3} == {None}
    assert (outcome.lost, outcome.stopped) == ([], None)
    assert run_search(config).new == 0
