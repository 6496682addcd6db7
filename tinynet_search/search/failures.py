"""Trials that failed by themselves, and when so many did that the rest is not worth training."""

from collections import Counter

from trainables.result import ResultSummary

# A search is judged by its failures once this many trials have ended, and this share of all: the largest come first,
# and those alone may be too large for a machine.
JUDGED_AFTER, JUDGED_SHARE = 8, 0.2


class FailureTally:
    """The results of a search as they come, and whether so many failed that the rest is not worth training.

    Args:
        planned: trials in all.
        most: the share of those ended that may have failed; 1 is any.
    """

    def __init__(self, planned: int, most: float) -> None:
        self._planned, self._most = planned, most
        self._ended: set[str] = set()
        self._reasons: Counter[str] = Counter()

    def add(self, run: str, result: ResultSummary | None) -> None:
        """A trial has ended; None: without a result."""
        if result is not None and run not in self._ended:
            self._ended.add(run)
            self._reasons.update([] if result.finished else [str(result.reason)])

    @property
    def verdict(self) -> str | None:
        """Why to stop, or None."""
        ended, reasons = len(self._ended), self._reasons
        enough = min(self._planned, max(JUDGED_AFTER, round(JUDGED_SHARE * self._planned)))
        if ended >= self._planned or ended < enough or reasons.total() <= self._most * ended:
            return None
        return f"{reasons.total()} of {ended} trials failed ({', '.join(f'{n} {reason}' for reason, n in reasons.most_common())})"
