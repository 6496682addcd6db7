"""What long searches rest on: results read once, candidates as they were written, Tune in waves."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.simulated import simulated_result, simulated_trial
from search_spaces import RequestError
from tests.search.helpers import tiny_config
from tinynet_search.plan.candidates import candidates_of, grow
from tinynet_search.plan.plan import agreed_plan
from tinynet_search.store.directory import Candidate, SearchStore
from trainables.spec import describe
from trainables.trial_folder import result_name


@pytest.fixture
def drawn(tmp_path: Path) -> tuple[SearchStore, dict[str, Any], list[Candidate]]:
    store = SearchStore(str(tmp_path / "demo"))
    plan = agreed_plan(store, tiny_config(tmp_path))
    return store, plan, grow(plan, store, tiny_config(tmp_path))


def test_a_result_is_read_once_and_kept_without_its_epochs(
    drawn: tuple[SearchStore, dict[str, Any], list[Candidate]],
) -> None:
    store, _, candidates = drawn
    runs = [c.run for c in candidates]
    for candidate in candidates[:3]:
        store.write_json(
            result_name(candidate.run),
            simulated_result(candidate.spec, candidate.run, 1e9),
            once=True,
        )
    reads, read = Counter[str](), store.folder.read

    def counted(name: str, *most: Any) -> bytes:
        reads[name] += 1
        return read(name, *most)

    store.folder.read = counted  # pyright: ignore[reportAttributeAccessIssue]
    first = store.summaries(runs)
    assert store.summaries(runs) == first
    assert reads == {result_name(run): 1 for run in runs[:3]}
    whole = store.result(runs[0])
    assert whole is not None
    summary = first[runs[0]]
    assert "epochs" not in summary
    assert (summary["epochs_done"], summary["seconds"]) == (
        2,
        sum(epoch["seconds"] for epoch in whole["epochs"]),
    )
    assert (summary["metrics"], summary["first_ts"]) == (whole["metrics"], whole["epochs"][0]["ts"])
    store.remove_result(runs[0])
    assert list(store.summaries(runs)) == runs[1:3]


def test_a_damaged_result_is_refused_however_often(
    drawn: tuple[SearchStore, dict[str, Any], list[Candidate]],
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
def test_figures_that_were_not_written_for_a_network_are_counted_anew(
    drawn: tuple[SearchStore, dict[str, Any], list[Candidate]], change: dict[str, Any]
) -> None:
    store, plan, candidates = drawn
    document = store.read_json("candidates/000000.json")
    row = document["candidates"][0]
    (row if "id" in change else row["network"]).update(change)
    store.write_json("candidates/000000.json", document)
    for read, candidate in zip(candidates_of(plan, store, 2), candidates, strict=True):
        counted = describe(candidate.spec.network())
        assert (
            (read.run, read.spec)
            == (candidate.run, candidate.spec)
            == (candidate.spec.run, candidate.spec)
        )
        assert {key: counted[key] for key in read.network} | dict(read.network) == {
            key: counted[key] for key in read.network
        }


def test_the_time_left_is_that_of_all_rows(
    drawn: tuple[SearchStore, dict[str, Any], list[Candidate]],
) -> None:
    from tinynet_search.callbacks.progress import Progress

    _, _, candidates = drawn
    progress, chance = Progress(at_once=2), random.Random(1)
    progress.watch(candidates, {})
    assert progress.time_left() is None
    for ended in range(1, len(candidates)):
        times = {
            c.run: 2.0 + c.network["macs"] / 1e7 + chance.random() / 10 for c in candidates[:ended]
        }
        done = {
            run: {"status": "finished", "epochs_done": 2, "metrics": {}, "seconds": 2 * each}
            for run, each in times.items()
        }
        progress.watch(candidates, done)
        macs = np.array([c.network["macs"] for c in candidates], float)
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
def test_one_source_through_several_tune_runs(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phase may end with a wave; the one after it is made when all its results are there."""
    from tinynet_search.callbacks.progress import Progress
    from tinynet_search.cluster import tune
    from tinynet_search.cluster.tune import Fixed, Phases

    config = tiny_config(tmp_path, trials=5)
    store = SearchStore(config.url)
    candidates = grow(agreed_plan(store, config), store, config)
    monkeypatch.setattr(tune, "WAVE", 3)
    monkeypatch.setitem(tune.TRAINABLES, "inline", simulated_trial)
    there: list[set[str]] = []

    def second() -> Fixed:
        there.append(store.finished())
        return Fixed(candidates[3:])

    progress = Progress(2)
    progress.watch(candidates, {})
    tune.run_source(
        config,
        store.url,
        Phases([lambda: Fixed(candidates[:3]), second]),
        5,
        2,
        [progress],
        "lease/none",
    )
    assert there == [{c.run for c in candidates[:3]}]
    assert store.finished() == {c.run for c in candidates}
    assert {(row.state, row.epochs, row.timed) for row in progress.rows.values()} == {
        ("finished", 2, 2)
    }
    assert progress.done == 5
