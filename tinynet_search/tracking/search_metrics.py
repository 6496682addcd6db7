"""Computes the figures of a whole search, by which MLflow's table compares searches.

Called by the driver and by ``tinynet sync``; ``conclusion`` logs them to the parent run.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from tinynet_search.formula.frontier import hypervolume
from tinynet_search.store.schema import FrontierRow, Plan
from tinynet_search.tracking.projection import Point, ended_ms
from trainables.result import ResultSummary
from trainables.run_name import RunName


@dataclass(frozen=True)
class SearchMetrics:
    """The figures of a search; each is a metric of its parent run.

    Attributes:
        best_top1: the highest top-1 of a finished trial in percent, None without one.
        hypervolume: ``formula.frontier.hypervolume`` of the frontier, None without a frontier.
        trials_finished: number of trials that finished a training.
        trials_failed: number of trials that failed and finished no other training.
        training_hours: hours that all trainings of trials and final networks took, including
            failed ones; the epochs of a training on several workers count once.
        training_macs: multiply-adds of the forward passes of these trainings: those of the network
            for one image, times training images, times epochs. Backward passes are not counted.
        results: number of results. It is the step of the metrics, and MLflow shows the values of
            the last step: more results replace fewer.
        ts: end of the last training, in ms since 1970. It is the time stamp of the metrics, so
            logging them again changes nothing.
    """

    best_top1: float | None
    hypervolume: float | None
    trials_finished: int
    trials_failed: int
    training_hours: float
    training_macs: float
    results: int
    ts: int

    def points(self) -> list[Point]:
        """Return one point per known figure."""
        figures = asdict(self)
        del figures["ts"], figures["results"]
        return [
            Point(key, float(value), self.ts, self.results)
            for key, value in figures.items()
            if value is not None
        ]


def search_metrics(
    plan: Plan,
    drawn: Collection[str],
    results: Mapping[RunName, ResultSummary],
    frontier: Sequence[FrontierRow] | None,
) -> SearchMetrics | None:
    """Return the figures of a search, None before its first result.

    Args:
        plan: plan of the search.
        drawn: ids of the drawn candidates. Other results are those of final networks.
        results: all results of the search directory, by run.
        frontier: rows of the frontier, None if it is not known.
    """
    if not results:
        return None
    ended = list(results.values())
    # A final network that equals a trial has the same run: it is trained once.
    trials = [result for result in ended if result.run.id in drawn]
    finished = {result.run.id for result in trials if result.finished}
    scores = [
        result.top1 for result in trials if result.top1 is not None and math.isfinite(result.top1)
    ]
    macs = sum(result.macs * result.epochs_done for result in ended)
    return SearchMetrics(
        best_top1=max(scores, default=None),
        hypervolume=hypervolume([(row.c, row.top1) for row in frontier]) if frontier else None,
        trials_finished=len(finished),
        trials_failed=len({result.run.id for result in trials} - finished),
        training_hours=round(math.fsum(result.seconds for result in ended) / 3600, 6),
        training_macs=float(macs * plan.data.train),
        results=len(ended),
        ts=max(ended_ms(result) for result in ended),
    )
