"""Prints the progress of a training job: one line per epoch on stderr.

Used by ``run_job``.
"""

from collections.abc import Callable, Sequence

from tinynet_search.text import duration, number, percent
from tinynet_search.tracking.job_publisher import seconds_left
from trainables.result import EpochRecord


class EpochLines:
    """Prints one line per epoch record.

    Serves as the reporter of a training in this process. For a training on Ray, a Tune callback
    passes the same records.

    Args:
        before: Records of the completed epochs.
        total: Total number of epochs.
        log: Called with each line.
    """

    rank, world_size = 0, 1

    def __init__(
        self, before: Sequence[EpochRecord], total: int, log: Callable[[str], None]
    ) -> None:
        self._records, self._total, self._log = list(before), total, log

    def report(self, record: EpochRecord) -> None:
        self._records.append(record)
        self._log(self._line(record))

    def _line(self, record: EpochRecord) -> str:
        parts = [
            f"epoch {record.epoch:>{len(str(self._total))}}/{self._total}",
            f"loss {number(record.train_loss, 4)}",
            f"top-1 {percent(record.top1_raw, 2)} raw, {percent(record.top1_ema, 2)} EMA",
            f"top-5 {percent(record.top5, 2)}",
            f"{record.images_per_s:,.0f} images/s",
        ]
        if record.epoch < self._total:
            parts.append(f"{duration(seconds_left(self._records, self._total))} left")
        return "  ".join(parts)
