"""``search_scale`` up to 10,000 trials, in some half an hour: what the driver of a search costs as searches grow."""

from benchmarks.measure import Row
from benchmarks.search_scale import rows_of


def run() -> list[Row]:
    return rows_of((100, 1000, 10_000))
