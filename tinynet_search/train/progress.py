"""What a person sees while a job trains: a line an epoch on stderr."""

from collections.abc import Callable, Sequence

from tinynet_search.text import duration, number, percent
from tinynet_search.tracking.job_publisher import seconds_left
from trainables.result import EpochRecord


class EpochLines:
    """The reporter of a training in this process; of one elsewhere it is told the same records.

    Args:
        before: records of the epochs that are done.
        total: epochs in all.
    """

    rank, world_size = 0, 1

    def __init__(
        self, before: Sequence[EpochRecord], total: int, say: Callable[[str], None]
    ) -> None:
        self._records, self._total, self._say = list(before), total, say

    def report(self, record: EpochRecord) -> None:
        self._records.append(record)
        self._say(self._line(record))

    def _line(self, record: EpochRecord) -> str:
        parts = [
            f"epoch {record.epoch:>{len(str(self._total))}}/{self._total}",
            f"loss {number(record.train_loss, 4)}",
            f"top-1 {percent(record.top1_raw, 2)} raw, {percent(record.top1_ema, 2)} EMA",
            f"top-5 {percent(record.top5, 2)}",
            f"{record.images_per_s:,.0f} images/s",
            *(
                [f"{duration(seconds_left(self._records, self._total))} left"]
                if record.epoch < self._total
                else []
            ),
        ]
        return "  ".join(parts)
