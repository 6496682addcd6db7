"""Defines a trial (``TrialSpec``) and the interface that a training reports to (``Reporter``).

Used by plans, executors and the training loop.
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
from trainables.storage.documents import MAX_TEXT_LENGTH

Stop = Callable[[], bool]
# The ``[data]`` table of the configuration: a name and the options of that kind of data.
Setting = str | int | float | bool | None
Settings = Mapping[str, Setting]


def never_stop() -> bool:
    """Stop condition of a training that is never stopped."""
    return False


class TrialFailure(RuntimeError):  # noqa: N818 - a result, not a program error
    """The trial failed in a way that a retry would not fix."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail[:MAX_TEXT_LENGTH]


class Reporter(Protocol):
    """Interface between a training and the executor that runs it."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def report(self, record: EpochRecord) -> None:
        """Called on every rank once per epoch; on rank 0 after the checkpoint is committed."""
        ...


@dataclass(frozen=True)
class LocalReporter:
    """Reporter of a training without an executor: one rank that ignores reports."""

    rank: int = 0
    world_size: int = 1

    def report(self, record: EpochRecord) -> None:
        return None


@dataclass(frozen=True)
class TrialSpec:
    """Everything that determines a trial's result.

    Attributes:
        space, space_version, rdw, num_classes: the network.
        recipe: the training settings, including the number of epochs.
        data: the ``[data]`` settings.
        data_fingerprint: fingerprint of the data when the search was planned.
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
        """Ten hex digits of a hash of everything that determines the result, except the epochs."""
        return trial_id(
            get_space(self.space),
            self.network(),
            self.recipe,
            self.data_fingerprint,
            self.seed,
        )

    @property
    def folder(self) -> str:
        """The trial's folder in the search directory; each epoch budget has its own."""
        return f"trials/{self.run}"

    @property
    def run(self) -> RunName:
        """Name of the training: the trial's id and its number of epochs."""
        return RunName(self.id, self.recipe.epochs)

    def with_epochs(self, epochs: int) -> "TrialSpec":
        """The same trial with a different number of epochs."""
        return replace(self, recipe=replace(self.recipe, epochs=epochs))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrialSpec":
        """Read a trial from JSON.

        Raises:
            RequestError: the recipe is not valid.
        """
        converted = {"rdw": tuple(values["rdw"]), "recipe": recipe_from(values["recipe"])}
        return cls(**{**values, **converted})


def trial_id(
    space: SearchSpace, network: Network, recipe: Recipe, fingerprint: str, seed: int
) -> str:
    """Ten hex digits of a hash of everything that determines a trial's result."""
    parts = (json.dumps(part) for part in (space.name, space.version, network.key))
    inputs = [*parts, _identity(recipe), json.dumps(fingerprint), json.dumps(seed)]
    return hashlib.sha256(f"[{', '.join(inputs)}]".encode()).hexdigest()[:10]


@lru_cache(maxsize=8)
def _identity(recipe: Recipe) -> str:
    """The recipe's identity as JSON; cached because all candidates of a search share it."""
    return json.dumps(recipe.identity(), sort_keys=True)
