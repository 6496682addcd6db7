"""Tests that a trial fails if its own processes crash, and not if its nodes are lost."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.search.helpers import results, tiny_config, tiny_search
from tinynet_search.callbacks.crashes import MAX_REPEATS, CrashTally, OwnFailure
from tinynet_search.cluster.placement import ClusterRequest
from tinynet_search.cluster.ray_internals import death_detail, process_died_on_live_node
from tinynet_search.search.driver import opened_state, run_search
from tinynet_search.search.tune_run import TuneRun
from tinynet_search.signals import stoppable
from tinynet_search.store.directory import Candidate
from tinynet_search.store.lease import Lease, read_lease

pytestmark = pytest.mark.quick

# Error messages of Ray 2.58.
KILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: ImplicitFunc\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
    "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. "
    "Some common causes include: (1) the process was killed by the OOM killer due to high memory "
    "usage, (2) ray stop --force was called\n"
)
OUT_OF_MEMORY = (
    "Task was killed due to the node running low on memory.\n"
    "Memory on the node (IP: 10.0.0.7) was 30.1GB / 31.0GB (0.97)\n"
)
OTHER_ERRORS = (
    "The actor died because its node has died. Node Id: 5a\n\t"
    "the actor's node was terminated unexpectedly: health check failed\n",
    "The actor 0daad0 is unavailable: The actor is temporarily unavailable: "
    "RpcError: RPC error: Socket closed rpc_code: 14.\n",
    "The actor is dead because it was killed by `ray.kill`.\n",
    "The actor is dead because its worker process has died. Worker exit type: INTENDED_SYSTEM_EXIT "
    "Worker exit detail: Worker exits because it uses placement group bundles that are not "
    "registered to GCS. It can happen upon GCS restart.\n",
    f"Rank 0: {KILLED} Rank 1: The actor died because its node has died.\n",
    "OSError: No space left on device\n",
)


class FakeTrial:
    """A simulated Tune trial, which calls the callback and writes the error file as Tune does."""

    def __init__(self, tally: CrashTally, run: str, folder: Path) -> None:
        self._tally, self._messages = tally, list[str]()
        self.config, self.error_file = {"run": run}, str(folder / "error.txt")
        self.last_result: dict[str, Any] | None = None

    def start(self, epochs: int = 0) -> None:
        self._tally.on_trial_start(0, [], self)
        self.last_result = {"epochs_done": epochs} if epochs else self.last_result

    def fail(self, message: str, *, last: bool = False) -> None:
        self._messages.append(message)
        rows = [
            f"Failure # {n} (occurred at 2026-11-23_03-44-0{n})\n{text}"
            for n, text in enumerate(self._messages, 1)
        ]
        Path(self.error_file).write_text("".join(rows))
        if not last:
            self._tally.on_trial_recover(0, [], self)


@pytest.fixture
def tally_and_trial(tmp_path: Path) -> tuple[CrashTally, Candidate, FakeTrial]:
    """A tally, a candidate and its trial, in a search with at most two restarts per trial."""
    store, _, (candidate, _) = tiny_search(tiny_config(tmp_path, trials=2))
    tally = CrashTally(store, 2)
    return tally, candidate, FakeTrial(tally, candidate.run, tmp_path)


def test_ray_error_messages_are_classified() -> None:
    assert process_died_on_live_node(KILLED)
    assert process_died_on_live_node(OUT_OF_MEMORY)
    assert not any(map(process_died_on_live_node, OTHER_ERRORS))
    assert death_detail(KILLED) == "Worker unexpectedly exits with a connection error code 2"
    assert (
        death_detail(OUT_OF_MEMORY)
        == "Memory on the node (IP: 10.0.0.7) was 30.1GB / 31.0GB (0.97)"
    )


@pytest.mark.parametrize(
    ("deaths", "reason"),
    [
        ([(KILLED, 0), (KILLED, 0), (KILLED, 0)], "died"),
        ([(KILLED, 4), (KILLED, 4), (OUT_OF_MEMORY, 4)], "out of memory"),
        # A new epoch between two crashes.
        ([(KILLED, 0), (KILLED, 1), (KILLED, 1)], None),
        # A lost node between two crashes.
        ([(KILLED, 0), (OTHER_ERRORS[0], 0), (KILLED, 0)], None),
        # A different error at the end.
        *(([(KILLED, 0), (KILLED, 0), (error, 0)], None) for error in OTHER_ERRORS),
        ([(KILLED, 0), (KILLED, 0), (KILLED, 80)], None),
    ],
)
def test_repeated_crashes_are_a_failure(
    tally_and_trial: tuple[CrashTally, Candidate, FakeTrial],
    deaths: list[tuple[str, int]],
    reason: str | None,
) -> None:
    tally, candidate, trial = tally_and_trial
    for number, (message, epochs) in enumerate(deaths):
        assert tally.own_failure(candidate) is None  # Tune would restart the trial
        trial.start(epochs)
        trial.fail(message, last=number == 2)
    failure = tally.own_failure(candidate)
    assert (failure and failure.reason) == reason
    if failure:
        assert failure.detail.startswith(
            "the process died 3 times without a new epoch in between while its node was alive: "
        )
    assert not tally.should_repeat(candidate)


def test_stopped_trial_after_crashes_has_not_failed(
    tally_and_trial: tuple[CrashTally, Candidate, FakeTrial],
) -> None:
    """All allowed restarts were used; the last process trained until it received a stop request."""
    tally, candidate, trial = tally_and_trial
    for _ in range(2):
        trial.start()
        trial.fail(KILLED)
    trial.start(epochs=7)
    assert tally.own_failure(candidate) is None
    assert not tally.should_repeat(candidate)


def test_trial_that_never_started_is_repeated(
    tally_and_trial: tuple[CrashTally, Candidate, FakeTrial], tmp_path: Path
) -> None:
    """Tune counts the death of a reused process twice for the next trial, which is not at fault."""
    tally, candidate, _ = tally_and_trial
    for number in range(MAX_REPEATS + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        trial = FakeTrial(tally, candidate.run, folder)
        trial.fail(KILLED)
        trial.fail(KILLED, last=True)
        assert tally.should_repeat(candidate) == (number < MAX_REPEATS)
        assert tally.own_failure(candidate) is None


def test_driver_without_lease_or_stopping_writes_no_failures(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trials=2)
    store, plan, (first, second) = tiny_search(config)
    inputs = config.resolve()
    state = opened_state(store, plan, inputs, 1.0)
    unused: Any = None
    crashes: Any = SimpleNamespace(own_failure=lambda candidate: OwnFailure("died", "often"))
    with stoppable(pytest.fail) as stopping, Lease(store.folder, "search", "search") as lease:
        tune_run = TuneRun(
            store,
            plan,
            ClusterRequest.of(config, inputs),
            state,
            conclusion=unused,
            publisher=unused,
            lease=lease,
            stopping=stopping,
            warn=pytest.fail,
        )
        assert tune_run._own_failure(first, crashes) == "died"
        result = store.result(first.run)
        assert result
        assert (result.status, result.reason, result.detail) == ("failed", "died", "often")
        stopping.reason = "interrupted"
        assert tune_run._own_failure(second, crashes) is None
        stopping.reason = None
        holder = read_lease(store.folder)
        assert holder
        new_holder = replace(holder, number=holder.number + 1, owner="f" * 32)
        store.folder.write(f"{new_holder.name}.json", new_holder.to_json())
        assert tune_run._own_failure(second, crashes) is None
    assert store.finished() == {first.run}


@pytest.mark.parametrize("end", [CrashTally.on_trial_complete, CrashTally.on_trial_error])
def test_ended_trials_are_released(
    tally_and_trial: tuple[CrashTally, Candidate, FakeTrial],
    end: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Tune trials take about 100 kB each; Tune itself keeps only those of the current run."""
    tally, candidate, _ = tally_and_trial
    trial = FakeTrial(tally, candidate.run, tmp_path)
    trial.start()
    reference = weakref.ref(trial)
    end(tally, 0, [], trial)
    del trial
    gc.collect()
    assert reference() is None


@pytest.mark.ray
def test_trials_that_kill_their_process_fail(
    ray_cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The crashes are recorded as failures after a limited number of restarts.

    The search completes.
    """
    settings = (
        "space.name=tests.search.unruly:Deadly",
        "search.seed=8",
        "run.max_failures=1",
        "run.stop_at_failed=1",
        "search.minimum=1",
    )
    config = tiny_config(tmp_path, *settings, trials=4)
    outcome = run_search(config)
    results_by_run = results(tmp_path)
    assert len(results_by_run) == 4
    assert "  failed (died)  0 s" in capfd.readouterr().err
    reasons = {r["reason"] for r in results_by_run.values() if r["network"]["resolution"] % 3 == 0}
    assert reasons == {"died"}
    assert {r["reason"] for r in results_by_run.values() if r["network"]["resolution"] % 3} == {
        None
    }
    assert (outcome.lost, outcome.stopped) == ([], None)
    assert run_search(config).new == 0
