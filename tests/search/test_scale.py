"""Tests for long searches: each result is read once, figures are kept, and Tune runs in waves."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.simulated import simulated_result, simulated_trial
from search_spaces import RequestError
from tests.search.helpers import summary, tiny_config, tiny_search
from tinynet_search.plan.candidates import candidates_of
from tinynet_search.search.driver import opened_state, retryable
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.schema import Plan
from trainables.result import NetworkFigures
from trainables.run_name import RunName
from trainables.trial_folder import result_name


@pytest.fixture
def drawn(tmp_path: Path) -> tuple[SearchStore, Plan, list[Candidate]]:
    return tiny_search(tiny_config(tmp_path))


def test_a_result_is_read_once_and_kept_without_its_epochs(
    drawn: tuple[SearchStore, Plan, list[Candidate]], tmp_path: Path
) -> None:
    """Results are looked up repeatedly, but each result is read only once."""
    store, plan, candidates = drawn
    runs = [c.run for c in candidates]
    results = {c.run: simulated_result(c.spec, c.run, 1e9) for c in candidates}

    def write(ended: Sequence[RunName]) -> None:
        for run in ended:
            store.write_json(result_name(run), results[run].to_json(), once=True)

    write(runs[:3])
    reads, read = Counter[str](), store.folder.read

    def counted(name: str, *most: Any) -> bytes:
        reads[name] += name.startswith("results/")
        return read(name, *most)

    store.folder.read = counted  # pyright: ignore[reportAttributeAccessIssue]
    inputs = tiny_config(tmp_path).resolve()
    state = opened_state(store, plan, inputs, 1.0)
    assert set(retryable(store, inputs, state)) == set(state.results) == set(runs[:3])
    state.read(store.summaries(state.unread))
    write(runs[3:5])
    state.read(store.summaries(state.unread))
    assert +reads == {result_name(run): 1 for run in runs[:5]}
    assert [c.run for c in state.pending_trials] == runs[5:]
    result = results[runs[0]]
    kept = state.results[runs[0]]
    assert kept == store.summary(runs[0]) == result.summary()
    assert "epochs" not in {field.name for field in fields(kept)}
    assert (kept.epochs_done, kept.seconds) == (2, sum(epoch.seconds for epoch in result.epochs))
    assert result.metrics is not None
    assert (kept.top1, kept.first_ts) == (result.metrics.top1, result.epochs[0].ts)
    store.remove_result(runs[0])
    assert list(store.summaries(runs)) == runs[1:5]


def test_damaged_result_is_rejected_every_time(
    drawn: tuple[SearchStore, Plan, list[Candidate]],
) -> None:
    store, _, (first, *_) = drawn
    store.folder.write(result_name(first.run), b'{"run": ')
    for _ in range(2):
        with pytest.raises(RequestError, match=first.run):
            store.summaries([first.run])


@pytest.mark.parametrize(
    "change",
    [
        {"macs": 1},
        {"params": None},
        {"params": -5},
        {"activations": "x"},
        {"resolution": 7},
        {"id": "0"},
    ],
)
def test_damaged_figures_are_recomputed(
    drawn: tuple[SearchStore, Plan, list[Candidate]], change: dict[str, Any]
) -> None:
    store, plan, candidates = drawn
    document = store.read_json("candidates/000000.json")
    row = document["candidates"][0]
    (row if "id" in change else row["network"]).update(change)
    store.write_json("candidates/000000.json", document)
    for read, candidate in zip(candidates_of(plan, store, 2), candidates, strict=True):
        counted = NetworkFigures.of(candidate.spec.network())
        assert (
            (read.run, read.spec)
            == (candidate.run, candidate.spec)
            == (candidate.spec.run, candidate.spec)
        )
        assert read.network in (counted, replace(counted, details={}))


def test_time_left_is_estimated_from_all_trials(
    drawn: tuple[SearchStore, Plan, list[Candidate]],
) -> None:
    from tinynet_search.callbacks.progress import Progress

    _, _, candidates = drawn
    progress, rng = Progress(at_once=2), random.Random(1)
    progress.watch(candidates, {})
    assert progress.time_left() is None
    for ended in range(1, len(candidates)):
        times = {c.run: 2.0 + c.network.macs / 1e7 + rng.random() / 10 for c in candidates[:ended]}
        done = {run: summary(run, seconds=2 * each) for run, each in times.items()}
        progress.watch(candidates, done)
        macs = np.array([c.network.macs for c in candidates], float)
        costs = np.array(list(times.values()))
        line = np.polyfit(macs[:ended], costs, 1) if ended > 3 else None
        shares = (
            np.polyval(line, macs)
            if line is not None
            else costs.sum() / np.sqrt(macs[:ended]).sum() * np.sqrt(macs)
        )
        assert progress.time_left() == pytest.approx(2 * shares[ended:].sum() / 2)
        assert progress.done == ended


@pytest.mark.ray
def test_one_source_in_several_tune_runs(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a phase ends with a wave, the next phase is created once all its results are written."""
    from tinynet_search.callbacks.progress import Progress
    from tinynet_search.cluster import tune
    from tinynet_search.cluster.placement import ClusterRequest
    from tinynet_search.cluster.tune import FixedSource, PhasedSource

    config = tiny_config(tmp_path, trials=5)
    store, _, candidates = tiny_search(config)
    monkeypatch.setattr(tune, "MAX_TRIALS_PER_RUN", 3)
    monkeypatch.setitem(tune.TRAINABLES, "inline", simulated_trial)
    finished: list[set[RunName]] = []

    def second() -> FixedSource:
        finished.append(store.finished())
        return FixedSource(candidates[3:])

    progress = Progress(2)
    progress.watch(candidates, {})
    tune.run_source(
        ClusterRequest.of(config, config.resolve()),
        store.url,
        PhasedSource([lambda: FixedSource(candidates[:3]), second]),
        max_trials=5,
        at_once=2,
        callbacks=[progress],
        stop="lease/none",
    )
    assert finished == [{c.run for c in candidates[:3]}]
    assert store.finished() == {c.run for c in candidates}
    assert {(row.state, row.epochs, row.timed) for row in progress.rows.values()} == {
        ("finished", 2, 2)
    }
    assert progress.done == 5
