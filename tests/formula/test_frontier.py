"""Tests of the frontier: NSGA-III nondominated sorting that depends only on the results."""

import math
import subprocess
import sys
import warnings
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from search_spaces import RequestError
from tinynet_search.formula.frontier import (
    FrontierModel,
    TrialPoint,
    hypervolume,
    select_frontier,
    spearman,
)

pytestmark = pytest.mark.quick


def point(name: str, c: float, top1: float | None, status: str = "finished") -> TrialPoint:
    return TrialPoint(name, (c, 1.0, 1 - c), c, top1, status)


def dominates(a: TrialPoint, b: TrialPoint) -> bool:
    assert a.top1 is not None and b.top1 is not None
    return a.c <= b.c and a.top1 >= b.top1 and (a.c, a.top1) != (b.c, b.top1)


def is_usable(trial: TrialPoint) -> bool:
    return (
        trial.status == "finished"
        and trial.top1 is not None
        and math.isfinite(trial.top1)
        and math.isfinite(trial.c)
    )


def pareto_ranks(trials: list[TrialPoint]) -> dict[str, int]:
    """Front number of each usable trial by id, computed from the definition.

    Front 1 is the nondominated one; the next fronts are computed without the previous ones.
    """
    ranks, remaining, number = {}, [trial for trial in trials if is_usable(trial)], 1
    while remaining:
        front = [p for p in remaining if not any(dominates(q, p) for q in remaining)]
        ranks |= {p.id: number for p in front}
        remaining, number = [p for p in remaining if p not in front], number + 1
    return ranks


# A coarse grid makes ties and duplicates common; the fine values exercise the scaling.
values = st.one_of(
    st.integers(1, 8).map(lambda n: n / 8), st.floats(1e-300, 1e300), st.floats(0.03, 1.05)
)
scores = st.one_of(values, values, values, st.sampled_from([None, math.nan, math.inf, -math.inf]))
trials = st.lists(
    st.tuples(values, scores, st.sampled_from(["finished"] * 5 + ["failed", "running"])),
    max_size=40,
).map(lambda rows: [point(f"t{i:03}", c, top1, status) for i, (c, top1, status) in enumerate(rows)])


@settings(max_examples=150, deadline=None)
@given(
    trials,
    st.sampled_from([0.05, 0.2, 0.5, 1.0]),
    st.integers(0, 8),
    st.randoms(use_true_random=False),
)
def test_selection_is_sound(
    rows: list[TrialPoint], fraction: float, minimum: int, random: object
) -> None:
    chosen = select_frontier(rows, fraction=fraction, minimum=minimum)
    usable = [t for t in rows if is_usable(t)]
    smallest = {(t.c, t.top1): t.id for t in sorted(usable, key=lambda t: t.id, reverse=True)}
    distinct = [t for t in usable if smallest[t.c, t.top1] == t.id]
    ranks = pareto_ranks(distinct)

    expected = max(math.ceil(round(fraction * len(distinct), 9)), min(minimum, len(distinct)))
    assert len(chosen) == expected
    assert {m.id for m in chosen} <= set(ranks)
    assert all(m.pareto_rank == ranks[m.id] for m in chosen)
    assert [m.c for m in chosen] == sorted(m.c for m in chosen)
    left_out = set(ranks) - {m.id for m in chosen}
    # A front is only used after the previous one has been selected completely.
    assert max((m.pareto_rank for m in chosen), default=0) <= min(
        (ranks[i] for i in left_out), default=len(ranks) + 1
    )
    # Trials with equal (top1, c) are on the same front, and all fronts match the definition.
    assert pareto_ranks(rows) == {t.id: ranks[smallest[t.c, t.top1]] for t in usable}
    everything = select_frontier(rows, fraction=1.0)
    assert {m.id: m.pareto_rank for m in everything} == ranks

    shuffled = list(rows)
    random.shuffle(shuffled)  # pyright: ignore[reportAttributeAccessIssue]
    assert select_frontier(shuffled, fraction=fraction, minimum=minimum) == chosen


def test_top_fifth_of_a_hundred_spreads_over_the_front() -> None:
    rows = [point(f"t{i:03}", 0.03 + i / 100, 60 + 30 * math.sqrt(i / 100)) for i in range(100)]
    chosen = select_frontier(rows)
    assert len(chosen) == 20 and {m.pareto_rank for m in chosen} == {1}
    # Both ends of the front are kept, and the models have no large gaps.
    assert (chosen[0].id, chosen[-1].id) == ("t000", "t099")
    assert max(b.c - a.c for a, b in pairwise(chosen)) < 0.25


@pytest.mark.parametrize(
    ("count", "kept"),
    [(0, 0), (1, 1), (4, 4), (6, 6), (10, 6), (30, 6), (31, 7), (35, 7), (100, 20)],
)
def test_count(count: int, kept: int) -> None:
    assert (
        len(select_frontier([point(str(i), 1 + i, 50 + (i * 37 % 101)) for i in range(count)]))
        == kept
    )


def test_unusable_trials_are_ignored() -> None:
    rows = [
        point("failed", 0.1, 99.0, "failed"),
        point("none", 0.1, None),
        point("nan", 0.1, math.nan),
        point("inf", 0.1, math.inf),
        TrialPoint("no cost", (1, 1, 1), math.nan, 99.0, "finished"),
        point("good", 0.5, 70.0),
    ]
    assert select_frontier(rows) == [FrontierModel("good", (0.5, 1.0, 0.5), 0.5, 70.0, 1)]
    assert pareto_ranks(rows) == {"good": 1}


def test_duplicates_are_selected_once() -> None:
    duplicates = [point(f"b{i}", 0.5, 70.0) for i in range(50)]
    others = [point(f"a{i}", 0.6 + i / 10, 60.0 - i) for i in range(5)]
    chosen = select_frontier([*duplicates, *others], minimum=4)
    assert [m.id for m in chosen] == ["b0", "a0", "a1", "a2"]
    assert [m.pareto_rank for m in chosen] == [1, 2, 3, 4]
    assert pareto_ranks(duplicates) == {t.id: 1 for t in duplicates}


@pytest.mark.parametrize("same", ["c", "top1"])
def test_one_objective_all_equal(same: str) -> None:
    rows = [
        point(f"t{i:02}", 0.5, 50.0 + i) if same == "c" else point(f"t{i:02}", 0.1 + i / 100, 50.0)
        for i in range(40)
    ]
    best = rows[::-1] if same == "c" else rows
    assert {m.id: m.pareto_rank for m in select_frontier(rows)} == {
        p.id: i for i, p in enumerate(best[:8], start=1)
    }


@pytest.mark.parametrize(
    "settings", [{"fraction": 0.0}, {"fraction": 1.1}, {"fraction": math.nan}, {"minimum": -1}]
)
def test_invalid_settings(settings: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="frontier fraction"):
        select_frontier([point("a", 0.5, 70.0)], **settings)  # pyright: ignore[reportArgumentType]


def test_selection_keeps_warning_filters_and_global_random_state() -> None:
    import numpy as np

    rows = [point(str(i), 1 + i, 50 + (i * 37 % 101)) for i in range(60)]
    np.random.seed(1)
    before, state = list(warnings.filters), np.random.get_state()[1].tolist()  # pyright: ignore
    first = select_frontier(rows)
    assert select_frontier(rows) == first
    assert list(warnings.filters) == before
    assert np.random.get_state()[1].tolist() == state  # pyright: ignore
    with pytest.warns(UserWarning, match="still shown"):
        warnings.warn("still shown", UserWarning, stacklevel=1)


def test_selection_is_equal_in_different_processes() -> None:
    program = """
from tinynet_search.formula.frontier import TrialPoint, select_frontier
top1 = [50 + i + 5 * (i * 37 % 7) for i in range(90)]
trials = [TrialPoint(str(i), (1, 1, 1), 1 + i, top1[i], "finished") for i in range(90)]
print([model.id for model in select_frontier(trials)])
"""
    run = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
        )
        for _ in range(2)
    ]
    assert run[0].returncode == 0, run[0].stderr
    assert run[0].stdout == run[1].stdout != ""


def test_spearman() -> None:
    models = [FrontierModel(str(i), (i + (i % 3), -i, 1.0), i / 10, 70.0, 1) for i in range(1, 12)]
    result = spearman(models)
    assert result["d"] == pytest.approx(-1.0) and result["w"] is None
    expected = spearmanr([m.rdw[0] for m in models], [m.c for m in models])
    assert result["r"] == pytest.approx(expected.statistic)  # pyright: ignore


@pytest.mark.parametrize("count", [0, 1, 2])
def test_spearman_needs_three_points(count: int) -> None:
    assert spearman([point(str(i), 0.1 + i, 1.0) for i in range(count)]) == {
        "r": None,
        "d": None,
        "w": None,
    }


def test_spearman_of_constant_cost_is_undefined() -> None:
    assert spearman([TrialPoint(str(i), (i, i, i), 0.5, 1.0, "finished") for i in range(5)]) == {
        "r": None,
        "d": None,
        "w": None,
    }


def test_hypervolume_is_the_mean_best_accuracy_over_budgets() -> None:
    """Of budgets from 0 to 1: none below .25, 40 % up to .5, then 60 %; dominated points add none.

    The reference point is c = 1 and a top-1 of 0 %.
    """
    points = [(0.25, 40.0), (0.5, 60.0), (0.75, 50.0), (1.0, 90.0), (1.05, 99.0)]
    assert hypervolume(points) == pytest.approx(0.25 * 0.4 + 0.5 * 0.6, abs=1e-9)
    assert hypervolume(points[::-1]) == hypervolume(points)
    assert hypervolume(points[-2:]) == hypervolume([]) == 0.0
    assert hypervolume([(1e-9, 100.0)]) == pytest.approx(1.0, abs=1e-6)


@given(
    st.lists(st.tuples(st.floats(0.001, 1.2), st.floats(0, 100)), min_size=1, max_size=12),
)
@settings(max_examples=50, deadline=None)
def test_hypervolume_equals_an_integral_by_hand(points: list[tuple[float, float]]) -> None:
    inside = sorted((c, top1) for c, top1 in points if c < 1)
    area, best = 0.0, 0.0
    for (c, top1), (following, _) in pairwise([*inside, (1.0, 0.0)]):
        best = max(best, top1)
        area += (following - c) * best / 100
    assert hypervolume(points) == pytest.approx(area, abs=1e-8)
