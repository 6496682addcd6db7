"""Counts the failed trials of a search and decides when too many have failed.

Used by the state of a search.
"""

from collections import Counter

from trainables.result import ResultSummary

# The failure rate is checked once this many trials and this share of all trials have ended. The
# largest networks train first, and they alone may be too large for a machine.
MIN_ENDED, MIN_ENDED_SHARE = 8, 0.2


class FailureTally:
    """Counts results as they arrive and reports when the search should stop because of failures.

    Args:
        planned: Total number of trials.
        max_share: Largest allowed share of failed trials among those that have ended; 1 allows all.
    """

    def __init__(self, planned: int, max_share: float) -> None:
        self._planned, self._max_share = planned, max_share
        self._ended: set[str] = set()
        self._reasons: Counter[str] = Counter()

    def add(self, run: str, result: ResultSummary | None) -> None:
        """Count a trial that has ended. A trial without a result (None) is ignored."""
        if result is not None and run not in self._ended:
            self._ended.add(run)
            self._reasons.update([] if result.finished else [str(result.reason)])

    @property
    def stop_reason(self) -> str | None:
        """Why the search should stop, or None."""
        ended, failed = len(self._ended), self._reasons.total()
        enough = min(self._planned, max(MIN_ENDED, round(MIN_ENDED_SHARE * self._planned)))
        if ended >= self._planned or ended < enough or failed <= self._max_share * ended:
            return None
        counts = ", ".join(f"{count} {reason}" for reason, count in self._reasons.most_common())
        return f"{failed} of {ended} trials failed ({counts})"
