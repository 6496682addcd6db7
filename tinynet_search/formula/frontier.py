"""Selects the frontier of a search: the top fifth by NSGA-III nondominated sorting (section 3.2).

Also computes the rank correlation of r, d and w with FLOPs. Called by searches. The objectives are
high top-1 and low c. The selection depends only on the results, not on their order, on the time or
on earlier calls.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import RequestError

FINISHED = "finished"


class TrialPoint(NamedTuple):
    """A trial as input of the selection.

    Attributes:
        id: Name of the trial.
        rdw: Multipliers (r, d, w) of its network.
        c: Exact multiply-adds divided by those of the baseline.
        top1: Top-1 accuracy used for ranking, in the same unit for all trials; None if missing.
        status: Only ``finished`` trials can be selected.
    """

    id: str
    rdw: tuple[float, float, float]
    c: float
    top1: float | None
    status: str


class FrontierModel(NamedTuple):
    """A selected trial; ``pareto_rank`` is the number of its front, where 1 is nondominated."""

    id: str
    rdw: tuple[float, float, float]
    c: float
    top1: float
    pareto_rank: int


class Costed(Protocol):
    """Anything with multipliers and a cost."""

    @property
    def rdw(self) -> tuple[float, float, float]:
        """Multipliers (r, d, w)."""
        ...

    @property
    def c(self) -> float:
        """Multiply-adds divided by those of the baseline."""
        ...


def select_frontier(
    trials: Sequence[TrialPoint], *, fraction: float = 0.2, minimum: int = 6
) -> list[FrontierModel]:
    """The models on the accuracy-FLOPs Pareto front: the paper's top 20 % (section 3.2, Figure 3).

    Complete fronts are taken in order. From the first front that does not fit, NSGA-III keeps the
    most evenly spread models, with one reference direction per survivor. Trials with equal (top1,
    c) count once, under the smallest id.

    Args:
        trials: All results, in any order. Trials that are not finished, or have no finite top1 and
            c, are ignored.
        fraction: Share of the usable, distinct results to keep, rounded up.
        minimum: Smallest number of models to keep; all models if fewer exist.

    Returns:
        The selected models, sorted by c; empty if no result is usable.

    Raises:
        RequestError: ``fraction`` is not in (0, 1] or ``minimum`` is negative.
    """
    if not 0 < fraction <= 1 or minimum < 0:
        raise RequestError(
            f"frontier fraction = {fraction:g}, minimum = {minimum}: "
            "pass a fraction in (0, 1] and a minimum of 0 or more"
        )
    points = _distinct(trials)
    if not points:
        return []
    # The tolerance keeps .2 * 35 = 7.000000000000001 at seven.
    count = max(math.ceil(fraction * len(points) - 1e-9), min(minimum, len(points)))
    ranks = _ranks(points)
    kept = sorted(_survivors(points, count)) if count < len(points) else range(len(points))
    return [
        FrontierModel(
            points[i].id, points[i].rdw, points[i].c, float(points[i].top1 or 0.0), ranks[i]
        )
        for i in kept
    ]


def spearman(points: Sequence[Costed]) -> dict[str, float | None]:
    """Spearman's rank correlation of r, d and w with c.

    In Figure 3 the paper finds r > d > w, with .81 for r.

    Returns:
        ``{"r": ..., "d": ..., "w": ...}``. A value is None if it is undefined: fewer than three
        points, or constant values.
    """
    costs = [p.c for p in points]
    return {name: _correlation([p.rdw[i] for p in points], costs) for i, name in enumerate("rdw")}


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """The hypervolume of (c, top-1 in percent) points, in [0, 1] and without a unit.

    The objectives are c and the error 1 - top1 / 100, both minimised, and the reference point is
    (1, 1): the baseline's FLOPs and no correct image. So it is the mean, over budgets c from 0 to
    1, of the best top-1 (as a fraction) of a model within the budget. Points with c of 1 and more
    do not contribute. Values of different spaces or data are not comparable.
    """
    below = [(c, 1 - top1 / 100) for c, top1 in points if c < 1]
    if not below:
        return 0.0
    with warnings.catch_warnings():  # pymoo disables all Python warnings
        from pymoo.indicators.hv import HV

        volume: Any = HV(ref_point=np.ones(2))(np.array(below))
    return round(float(volume), 9)  # further digits depend on the order of the sum


def _correlation(values: Sequence[float], costs: Sequence[float]) -> float | None:
    if len(costs) < 3 or len(set(values)) < 2 or len(set(costs)) < 2:
        return None
    from scipy.stats import spearmanr

    result: Any = spearmanr(values, costs)
    return float(result.statistic)


def _usable(trial: TrialPoint) -> bool:
    return (
        trial.status == FINISHED
        and trial.top1 is not None
        and math.isfinite(trial.top1)
        and math.isfinite(trial.c)
    )


def _distinct(trials: Sequence[TrialPoint]) -> list[TrialPoint]:
    """Usable trials sorted by c, one per (top1, c): pymoo's niching would select duplicates too."""
    first: dict[tuple[float, float | None], TrialPoint] = {}
    for trial in sorted((t for t in trials if _usable(t)), key=lambda t: t.id):
        first.setdefault((trial.c, trial.top1), trial)
    return [first[key] for key in sorted(first, key=lambda k: (k[0], k[1] or 0.0))]


def _objectives(points: Sequence[TrialPoint]) -> NDArray[np.float64]:
    """c and -top1 of each point, (points, 2): both are minimised and in [0, 1]."""
    columns = [np.array([p.c for p in points], float), -np.array([p.top1 for p in points], float)]
    return np.stack([_scaled(column) for column in columns], axis=1)


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale values to [0, 1]; use their ranks if scaling would make distinct values equal."""
    order, place = np.unique(values, return_inverse=True)
    with np.errstate(all="ignore"):
        scaled = (values - order[0]) / ((order[-1] - order[0]) or 1.0)
    if len(np.unique(scaled)) == len(order) and np.isfinite(scaled).all():
        return scaled
    return place / max(1, len(order) - 1)


def _ranks(points: Sequence[TrialPoint]) -> list[int]:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    ranks = [0] * len(points)
    for number, front in enumerate(NonDominatedSorting().do(_objectives(points)), start=1):
        for index in front:
            ranks[index] = number
    return ranks


def _survivors(points: Sequence[TrialPoint], count: int) -> list[int]:
    """Indices kept by one NSGA-III survival.

    Each call creates a new survival object and random state, so earlier calls have no influence.
    """
    from pymoo.algorithms.moo.nsga3 import ReferenceDirectionSurvival
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.util.ref_dirs import get_reference_directions

    directions = get_reference_directions("uniform", 2, n_points=count)
    population = Population.new(F=_objectives(points))
    # pymoo disables all Python warnings; this restores the caller's filters.
    with warnings.catch_warnings():
        return ReferenceDirectionSurvival(directions).do(
            Problem(n_var=1, n_obj=2),
            population,
            n_survive=count,
            random_state=np.random.default_rng(0),
            return_indices=True,
        )
