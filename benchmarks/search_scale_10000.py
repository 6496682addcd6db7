"""``search_scale`` with up to 10,000 trials, which takes about half an hour.

Run by ``python -m benchmarks.run search_scale_10000``.
"""

from benchmarks.measure import Row
from benchmarks.search_scale import rows_of


def run() -> list[Row]:
    return rows_of((100, 1000, 10_000))
