"""What long searches rest on: results read once, candidates as they were written, Tune in waves, formulas over thousands of points."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.simulated import simulated_result, simulated_trial
from search_spaces import RequestError, get_space
from tests.search.helpers import tiny_config
from tinynet_search.formula import gaussian_process as gaussian
from tinynet_search.formula.gaussian_process import BOUNDS, Kernel, Posterior, fit_kernel
from tinynet_search.formula.low_rank import MANY, Basis, Likelihood, nodes_for
from tinynet_search.formula.tiny_formula import TinyFormula, fit_formula
from tinynet_search.plan.candidates import candidates_of, grow
from tinynet_search.plan.plan import agreed_plan
from tinynet_search.store.directory import Candidate, SearchStore
from trainables.spec import describe
from trainables.trial_folder import result_name

B0 = get_space("efficientnet_b0")


def points(count: int) -> list[tuple[float, float, float]]:
    chance = np.random.default_rng(3)
    c = np.exp(chance.uniform(np.log(0.03), np.log(1.05), count))
    return [
        (
            float(x),
            float(1.1 * x**0.25 + chance.uniform(-0.3, 0.3)),
            float(x**0.3 + chance.uniform(0.1, 1.5)),
        )
        for x in c
    ]


@pytest.mark.parametrize("form", ["paper", "default"])
def test_many_points_are_fitted_as_scikit_learn_does(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    c, r, _ = zip(*points(MANY), strict=True)
    ours = form == "default"
    options: dict[str, Any] = {"log_c": ours, "centred": ours, "bounds": BOUNDS[form], "seed": 0}
    smooth = fit_kernel(c, r, **options)
    monkeypatch.setattr(gaussian, "MANY", 10**9)
    dense = fit_kernel(c, r, **options)
    assert [smooth.amplitude, smooth.length_scale, smooth.noise] == pytest.approx(
        [dense.amplitude, dense.length_scale, dense.noise], rel=2e-5
    )


@pytest.mark.parametrize("log_c", [True, False])
@pytest.mark.parametrize("noise", [1e-6, 0.05])
def test_likelihood_and_posterior_leave_nothing_out(log_c: bool, noise: float) -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    c, r, _ = zip(*points(300), strict=True)
    shortest = BOUNDS["default" if log_c else "paper"].length_scale[0]
    kernel = Kernel(0.3, shortest, noise, 0.0, log_c)
    x, y, where = kernel.inputs(c), np.array(r), np.array([0.01, 0.03, 0.2, 0.7, 1.05, 2.0])
    nodes = nodes_for(x, shortest)
    assert nodes
    fixed: Any = {"alpha": 0, "optimizer": None}
    dense: Any = GaussianProcessRegressor(
        ConstantKernel(0.3) * RBF(shortest) + WhiteKernel(noise), **fixed
    )
    theta = np.log([0.3, shortest, noise])
    value, gradient = dense.fit(x[:, None], y).log_marginal_likelihood(theta, eval_gradient=True)
    ours, slope = Likelihood(Basis(x, nodes), y)(theta)
    assert -ours == pytest.approx(value, rel=1e-8)
    assert -slope == pytest.approx(gradient, rel=1e-6, abs=1e-6 * np.abs(gradient).max())
    for got, wanted in zip(
        gaussian.posterior(kernel, c, r)(where), Posterior(kernel, c, r)(where), strict=True
    ):
        assert got == pytest.approx(wanted, abs=1e-6)


def test_a_formula_of_two_thousand_points() -> None:
    formula = fit_formula(B0, points(2000), provenance={})
    again = TinyFormula.from_json(formula.to_json())
    assert again.predict(0.3) == formula.predict(0.3)
    assert again.predict(0.3).r_mean == pytest.approx(1.1 * 0.3**0.25, abs=0.05)
    assert again.suggest(0.3).network.c == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"noise": 0.0}, "singular"), ({"length_scale": 1e-6}, "too large: 2100 points")],
)
def test_kernels_that_no_fit_gives_are_refused(change: dict[str, float], words: str) -> None:
    document = json.loads(fit_formula(B0, points(2100), provenance={}).to_json())
    document["forms"]["default"]["r"] |= change
    with pytest.raises(RequestError, match=words):
        TinyFormula.from_json(json.dumps(document))


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
