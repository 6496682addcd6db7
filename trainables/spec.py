"""What one trial is, and what it reports to.

Called by plans, executors and the training itself.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

from search_spaces import Network, SearchSpace, get_space
from trainables.recipe import Recipe, recipe_from
from trainables.result import EpochRecord
from trainables.run_name import RunName
from trainables.storage.documents import LONGEST_TEXT

Stop = Callable[[], bool]
# Of ``[data]``: a name and the options of that kind of data.
Setting = str | int | float | bool | None
Settings = Mapping[str, Setting]


def never() -> bool:
    """Nobody asks the training to end."""
    return False


class TrialFailure(RuntimeError):  # noqa: N818 - it is a result, not a fault of the program
    """The trial cannot go on, and another try would end the same way."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail[:LONGEST_TEXT]


class Reporter(Protocol):
    """How a training speaks with whatever runs it."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def report(self, record: EpochRecord) -> None:
        """Called on every rank, once an epoch; on rank 0 after the epoch's checkpoint is committed."""
        ...


@dataclass(frozen=True)
class Alone:
    """The reporter of a training that nobody drives."""

    rank: int = 0
    world_size: int = 1

    def report(self, record: EpochRecord) -> None:
        return None


@dataclass(frozen=True)
class TrialSpec:
    """Everything that decides a trial's result.

    Attributes:
        space, space_version, rdw, num_classes: the network.
        recipe: how it is trained, the epochs included.
        data: the ``[data]`` settings; data_fingerprint: what they held when the search was planned.
        seed: of weights, order, augmentation and dropout.
        kind: ``trial`` or ``final``.
    """

    space: str
    space_version: int
    rdw: tuple[float, float, float]
    num_classes: int
    recipe: Recipe
    data: Settings
    data_fingerprint: str
    seed: int
    kind: str = "trial"

    def network(self) -> Network:
        return get_space(self.space).network(self.rdw, self.num_classes)

    @property
    def id(self) -> str:
        """Ten hex digits of what decides the result; the epochs are not in it."""
        return trial_id(
            get_space(self.space),
            self.network(),
            self.recipe,
            self.data_fingerprint,
            self.seed,
        )

    @property
    def folder(self) -> str:
        """The trial's folder below the search directory: one for each epoch budget."""
        return f"trials/{self.run}"

    @property
    def run(self) -> RunName:
        """Names the training: the trial and its number of epochs."""
        return RunName(self.id, self.recipe.epochs)

    def with_epochs(self, epochs: int) -> "TrialSpec":
        """The same trial trained for another number of epochs."""
        return replace(self, recipe=replace(self.recipe, epochs=epochs))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrialSpec":
        """Raises RequestError where the recipe is not valid."""
        made = {"rdw": tuple(values["rdw"]), "recipe": recipe_from(values["recipe"])}
        return cls(**{**values, **made})


def trial_id(
    space: SearchSpace, network: Network, recipe: Recipe, fingerprint: str, seed: int
) -> str:
    parts = (json.dumps(part) for part in (space.name, space.version, network.key))
    decides = [*parts, _identity(recipe), json.dumps(fingerprint), json.dumps(seed)]
    return hashlib.sha256(f"[{', '.join(decides)}]".encode()).hexdigest()[:10]


@lru_cache(maxsize=8)
def _identity(recipe: Recipe) -> str:
    """As JSON; thousands of candidates of a search share it."""
    return json.dumps(recipe.identity(), sort_keys=True)
