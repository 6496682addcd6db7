"""Alternates epochs of the ``Trainer`` with another workload in the same process.

``train_speed``, ``train_data`` and the GPU checks use it. Changes in the machine's load then affect
both workloads. The first turn is a warm-up; a ratio is the median of the ratios of the turns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from benchmarks.synthetic import NullFolder, spec_of
from search_spaces import Network
from trainables.data import ImageData
from trainables.execution import Execution
from trainables.recipe import Recipe
from trainables.result import EpochRecord
from trainables.trainer import Trainer


@dataclass
class Turns:
    """Images per second of each turn.

    It is the ``Trainer``'s reporter, so the other workload runs after each epoch.
    """

    other: Callable[[], float]
    trainer_rates: list[float] = field(default_factory=list)
    other_rates: list[float] = field(default_factory=list)
    rank: int = 0
    world_size: int = 1

    def report(self, record: EpochRecord) -> None:
        self.trainer_rates.append(record.images_per_s)
        self.other_rates.append(self.other())

    @property
    def trainer_rate(self) -> float:
        return median(self.trainer_rates[1:])

    @property
    def other_rate(self) -> float:
        return median(self.other_rates[1:])

    @property
    def ratio(self) -> float:
        """The ``Trainer``'s rate divided by the other workload's."""
        pairs = zip(self.trainer_rates[1:], self.other_rates[1:], strict=True)
        return median(a / b for a, b in pairs)


def in_turns_with(
    other: Callable[[], float],
    network: Network,
    recipe: Recipe,
    data: ImageData,
    execution: Execution,
) -> Turns:
    """Train ``recipe.epochs`` epochs with the ``Trainer``, and call ``other`` after each epoch.

    Args:
        other: runs the other workload once and returns its images per second.
    """
    turns = Turns(other)
    Trainer(spec_of(network, recipe, data), data, NullFolder(), turns, execution).run()
    return turns
