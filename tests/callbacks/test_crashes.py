"""Processes that die: by themselves, which is a trial's failure, or with their nodes, which is not."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.search.helpers import results, tiny_config, tiny_search
from tinynet_search.callbacks.crashes import RETURNS, CrashTally, OwnFailure
from tinynet_search.cluster.placement import ClusterRequest
from tinynet_search.cluster.ray_internals import death_detail, process_died_on_live_node
from tinynet_search.search.driver import opened_state, run_search
from tinynet_search.search.tune_run import TuneRun
from tinynet_search.signals import stoppable
from tinynet_search.store.directory import Candidate
from tinynet_search.store.lease import Lease, read_lease

pytestmark = pytest.mark.quick

# As Ray 2.58 words them.
KILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: ImplicitFunc\nThe actor is dead because its worker process has "
    "died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some "
    "common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called\n"
)
FULL = "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.7) was 30.1GB / 31.0GB (0.97)\n"
OTHERS = (
    "The actor died because its node has died. Node Id: 5a\n\tthe actor's node was terminated unexpectedly: health check failed\n",
    "The actor 0daad0 is unavailable: The actor is temporarily unavailable: RpcError: RPC error: Socket closed rpc_code: 14.\n",
    "The actor is dead because it was killed by `ray.kill`.\n",
    "The actor is dead because its worker process has died. Worker exit type: INTENDED_SYSTEM_EXIT Worker exit detail: Worker exits "
    "because it uses placement group bundles that are not registered to GCS. It can happen upon GCS restart.\n",
    f"Rank 0: {KILLED} Rank 1: The actor died because its node has died.\n",
    "OSError: No space left on device\n",
)


class Tune:
    """What Tune tells of one trial: its starts, and its failures as it writes them down."""

    def __init__(self, tally: CrashTally, run: str, place: Path) -> None:
        self._tally, self._place, self._said = tally, place, list[str]()
        self.config, self.error_file = {"run": run}, str(place / "error.txt")
        self.last_result: dict[str, Any] | None = None

    def begins(self, epochs: int = 0) -> None:
        self._tally.on_trial_start(0, [], self)
        self.last_result = {"epochs_done": epochs} if epochs else self.last_result

    def fails(self, said: str, *, last: bool = False) -> None:
        self._said.append(said)
        rows = [
            f"Failure # {n} (occurred at 2026-11-23_03-44-0{n})\n{said}"
            for n, said in enumerate(self._said, 1)
        ]
        Path(self.error_file).write_text("".join(rows))
        if not last:
            self._tally.on_trial_recover(0, [], self)


@pytest.fixture
def searched(tmp_path: Path) -> tuple[CrashTally, Candidate, Tune]:
    """Of a search whose trials are started again twice."""
    store, _, (candidate, _) = tiny_search(tiny_config(tmp_path, trials=2))
    tally = CrashTally(store, 2)
    return tally, candidate, Tune(tally, candidate.run, tmp_path)


def test_what_ray_says_of_a_death() -> None:
    assert process_died_on_live_node(KILLED)
    assert process_died_on_live_node(FULL)
    assert not any(map(process_died_on_live_node, OTHERS))
    assert death_detail(KILLED) == "Worker unexpectedly exits with a connection error code 2"
    assert death_detail(FULL) == "Memory on the node (IP: 10.0.0.7) was 30.1GB / 31.0GB (0.97)"


@pytest.mark.parametrize(
    ("deaths", "reason"),
    [
        ([(KILLED, 0), (KILLED, 0), (KILLED, 0)], "died"),
        ([(KILLED, 4), (KILLED, 4), (FULL, 4)], "out of memory"),
        ([(KILLED, 0), (KILLED, 1), (KILLED, 1)], None),  # it came further
        ([(KILLED, 0), (OTHERS[0], 0), (KILLED, 0)], None),  # a node in between
        *(([(KILLED, 0), (KILLED, 0), (other, 0)], None) for other in OTHERS),  # or at last
        ([(KILLED, 0), (KILLED, 0), (KILLED, 80)], None),
    ],
)
def test_deaths_of_its_own_are_a_failure(
    searched: tuple[CrashTally, Candidate, Tune], deaths: list[tuple[str, int]], reason: str | None
) -> None:
    tally, candidate, tune = searched
    for number, (said, epochs) in enumerate(deaths):
        assert tally.own_failure(candidate) is None  # Tune would start it once more
        tune.begins(epochs)
        tune.fails(said, last=number == 2)
    failure = tally.own_failure(candidate)
    assert (failure and failure.reason) == reason
    if failure:
        assert failure.detail.startswith(
            "its process died 3 times without a new epoch in between, and its node lives: "
        )
    assert not tally.given_up_early(candidate)


def test_a_trial_that_ends_otherwise_has_not_failed_by_itself(
    searched: tuple[CrashTally, Candidate, Tune],
) -> None:
    """Its processes died as often as they may; the next one trained on until it was asked to end."""
    tally, candidate, tune = searched
    for _ in range(2):
        tune.begins()
        tune.fails(KILLED)
    tune.begins(epochs=7)
    assert tally.own_failure(candidate) is None
    assert not tally.given_up_early(candidate)


def test_a_trial_that_never_began_is_given_again(
    searched: tuple[CrashTally, Candidate, Tune], tmp_path: Path
) -> None:
    """A process that Tune kept has died: it tells of that twice, and neither is the next trial's fault."""
    tally, candidate, tune = searched
    for number in range(RETURNS + 1):
        place = tmp_path / str(number)
        place.mkdir()
        tune = Tune(tally, candidate.run, place)
        tune.fails(KILLED)
        tune.fails(KILLED, last=True)
        assert tally.given_up_early(candidate) == (number < RETURNS)
        assert tally.own_failure(candidate) is None


def test_who_was_asked_to_end_or_was_taken_over_judges_nobody(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trials=2)
    store, plan, (first, second) = tiny_search(config)
    inputs = config.resolve()
    state = opened_state(store, plan, inputs, 1.0)
    nobody: Any = None
    found: Any = SimpleNamespace(own_failure=lambda candidate: OwnFailure("died", "often"))
    with stoppable(pytest.fail) as stopping, Lease(store.folder, "search", "search") as lease:
        on_tune = TuneRun(
            store,
            plan,
            ClusterRequest.of(config, inputs),
            state,
            conclusion=nobody,
            publisher=nobody,
            lease=lease,
            stopping=stopping,
            say=pytest.fail,
        )
        assert on_tune._own_failure(first, found) == "died"
        result = store.result(first.run)
        assert result
        assert (result.status, result.reason, result.detail) == ("failed", "died", "often")
        stopping.why = "interrupted"
        assert on_tune._own_failure(second, found) is None
        stopping.why = None
        holder = read_lease(store.folder)
        assert holder
        theirs = replace(holder, number=holder.number + 1, owner="f" * 32)
        store.folder.write(f"{theirs.name}.json", theirs.to_json())
        assert on_tune._own_failure(second, found) is None
    assert store.finished() == {first.run}


@pytest.mark.parametrize("end", [CrashTally.on_trial_complete, CrashTally.on_trial_error])
def test_trials_that_have_ended_are_let_go(
    searched: tuple[CrashTally, Candidate, Tune], end: Callable[..., None], tmp_path: Path
) -> None:
    """Tune's trials take some 100 kB each, and of ten thousand it keeps one wave."""
    tally, candidate, _ = searched
    tune = Tune(tally, candidate.run, tmp_path)
    tune.begins()
    kept = weakref.ref(tune)
    end(tally, 0, [], tune)
    del tune
    gc.collect()
    assert kept() is None


@pytest.mark.ray
def test_a_space_that_kills_its_process(
    ray_cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a word, again and again: recorded, not tried for ever, and the search completes."""
    own = (
        "space.name=tests.search.unruly:Deadly",
        "search.seed=8",
        "run.max_failures=1",
        "run.stop_at_failed=1",
        "search.minimum=1",
    )
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
