"""A training of ours in turns with something else in the same process: an epoch, then the other, and so on.

The machine's moods then fall on both. The first turn warms up; a ratio is the median of the turns' ratios.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from benchmarks.synthetic import Nowhere, spec_of
from search_spaces import Network
from trainables.data import ImageData
from trainables.execution import Execution
from trainables.recipe import Recipe
from trainables.result import EpochRecord
from trainables.trainer import Trainer


@dataclass
class Turns:
    """Images per second of each turn; it is the reporter of our training, so the other's turn comes after each epoch."""

    other: Callable[[], float]
    all_ours: list[float] = field(default_factory=list)
    all_others: list[float] = field(default_factory=list)
    rank: int = 0
    world_size: int = 1

    def report(self, record: EpochRecord) -> None:
        self.all_ours.append(record.images_per_s)
        self.all_others.append(self.other())

    @property
    def ours(self) -> float:
        return median(self.all_ours[1:])

    @property
    def others(self) -> float:
        return median(self.all_others[1:])

    @property
    def ratio(self) -> float:
        """Ours over the other's."""
        return median(a / b for a, b in zip(self.all_ours[1:], self.all_others[1:], strict=True))


def in_turns_with(
    other: Callable[[], float],
    network: Network,
    recipe: Recipe,
    data: ImageData,
    execution: Execution,
) -> Turns:
    """Train ``recipe.epochs`` epochs by our loop; ``other`` does its share once an epoch and says its images per second."""
    turns = Turns(other)
    Trainer(spec_of(network, recipe, data), data, Nowhere(), turns, execution).run()
    return turns
