"""The documents of a search or a job as typed values: read once, checked once, passed on.

They come from shared storage, so a damaged one is refused in one line that names the field. Read and written by
``store/directory.py`` and ``store/train_job.py``.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from search_spaces import RequestError, SearchSpace, get_space, is_own
from search_spaces.samplers import ADAPTIVE, SAMPLERS
from search_spaces.space import MOST_CLASSES, SANE
from trainables.recipe import Recipe, recipe_from
from trainables.result import NetworkFigures
from trainables.run_name import RunName
from trainables.spec import Setting, Settings, TrialSpec
from trainables.storage.documents import LAST_DATE, DocumentError, reason

Made = TypeVar("Made")
SCHEMA = 1
# As configurations have them; a name becomes part of paths, of MLflow's names and of messages.
MOST_TRIALS = 100_000
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"


def _listed(value: Any) -> Any:
    """JSON has lists where documents have tuples."""
    return tuple(value) if isinstance(value, list) else value


def _run_name(value: Any) -> Any:
    return RunName.parse(value) if type(value) is str else value


def _recipe(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("expected an object")
    try:
        return recipe_from(value)
    except ValueError as error:  # the field's name is put before it
        raise ValueError(str(error).removeprefix("recipe: ")) from error


# A rule's or a network's name as people see it.
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Multiplier = Annotated[float, Field(ge=SANE[0], le=SANE[1])]
Multipliers = Annotated[tuple[Multiplier, Multiplier, Multiplier], BeforeValidator(_listed)]
Bound = Annotated[float, Field(gt=0, le=SANE[1])]
Span = Annotated[tuple[Bound, Bound], BeforeValidator(_listed)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Classes = Annotated[int, Field(ge=2, le=MOST_CLASSES)]
Fingerprint = Annotated[str, Field(min_length=1, max_length=500)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Date = Annotated[int, Field(ge=0, lt=int(LAST_DATE))]
DataSettings = dict[str, Setting]
Run = Annotated[RunName, BeforeValidator(_run_name)]
WrittenRecipe = Annotated[Recipe, BeforeValidator(_recipe)]


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """While a document is made: a value that its reader would refuse is a request that cannot be.

    Raises:
        RequestError: one line that names the field.
    """
    try:
        yield
    except ValidationError as error:
        raise RequestError(f"{what} cannot be written down: {reason(error)}") from error


class Document(BaseModel):
    """A part of a document. Keys that it does not know are ignored."""

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        frozen=True,
        arbitrary_types_allowed=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Raises DocumentError, which names the field."""
        return checked(cls.model_validate, values)


class Exact(Document):
    """A part whose keys are all known."""

    model_config = ConfigDict(extra="forbid")


class PlannedSpace(Document):
    """The space of a plan, as ``get_space`` takes its name, with the ranges and the band that were searched."""

    name: Annotated[str, Field(max_length=200)]
    version: int = Field(ge=0, le=10**6)
    num_classes: Classes
    ranges: dict[Literal["r", "d", "w"], Span]
    band: Span

    @field_validator("ranges")
    @classmethod
    def _whole(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        if set(ranges) != {"r", "d", "w"}:
            raise ValueError("r, d and w are needed")
        return ranges

    def narrowed(self) -> SearchSpace:
        """The space with the plan's ranges and band."""
        ranges: dict[str, Sequence[float]] = {**self.ranges}
        return get_space(self.name).narrowed(ranges, self.band)


class PlannedSampler(Exact):
    """How candidates are drawn; ``c`` and ``tol`` are of the sampler ``near`` alone."""

    name: Literal[(*SAMPLERS, *ADAPTIVE)]  # pyright: ignore[reportInvalidTypeForm]
    c: float | None = Field(default=None, gt=0, le=SANE[1])
    tol: float | None = Field(default=None, gt=0, le=1)

    @property
    def adaptive(self) -> bool:
        """Whether candidates are drawn while the search runs, each from the results before it."""
        return self.name in ADAPTIVE

    @property
    def options(self) -> dict[str, float]:
        """What ``samplers.draw`` takes besides the name."""
        named = {"c": self.c, "tol": self.tol}
        return {key: value for key, value in named.items() if value is not None}


class PlannedData(Document):
    """The images of a plan: ``[data]`` settings, what they held, how many there are.

    Attributes:
        largest_pixels: of packed data, the resolution that they were made for.
    """

    settings: DataSettings
    fingerprint: Fingerprint
    train: Count
    val: Count
    largest_pixels: int | None = Field(default=None, ge=1, le=10**6)

    def to_json(self) -> dict[str, Any]:
        largest = {"largest_pixels": self.largest_pixels} if self.largest_pixels else {}
        return {**self.model_dump(exclude={"largest_pixels"}), **largest}


class FrontierRule(Document):
    """Which share of the results is the frontier, and at least how many."""

    fraction: float = Field(gt=0, le=1)
    minimum: int = Field(ge=0, le=10**6)


class Plan(Document):
    """What a search trains, written once before its first trial.

    Attributes:
        ranks: which top-1 of the last epoch decides, of the averaged (``ema``) or of the raw weights.
        created: seconds since 1970.
    """

    version: Literal[1] = Field(validation_alias="schema")
    search: str = Field(pattern=NAME)
    space: PlannedSpace
    sampler: PlannedSampler
    recipe: WrittenRecipe
    data: PlannedData
    seed: Seed
    frontier: FrontierRule
    ranks: Literal["ema", "raw"]
    created: Date

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.version,
            "search": self.search,
            "space": self.space.model_dump(mode="json"),
            "sampler": {"name": self.sampler.name, **self.sampler.options},
            "recipe": asdict(self.recipe),
            "data": self.data.to_json(),
            "seed": self.seed,
            "frontier": self.frontier.model_dump(),
            "ranks": self.ranks,
            "created": self.created,
        }

    def with_data_at(self, settings: Settings) -> "Plan":
        """The same plan with the data in another place."""
        return self.model_copy(
            update={"data": self.data.model_copy(update={"settings": dict(settings)})}
        )

    def recipe_for(self, epochs: int | None = None) -> Recipe:
        """The plan's recipe, or the same with another number of epochs."""
        return self.recipe if epochs is None else replace(self.recipe, epochs=epochs)


class TrialDocument(Exact):
    """A ``TrialSpec`` as it is written in job.json and finals.json."""

    space: Annotated[str, Field(max_length=200)]
    space_version: int = Field(ge=0, le=10**6)
    rdw: Multipliers
    num_classes: Classes
    recipe: WrittenRecipe
    data: DataSettings
    data_fingerprint: Fingerprint
    seed: Seed
    kind: Literal["trial", "final", "continued"] = "trial"

    def spec(self) -> TrialSpec:
        return TrialSpec(**{name: getattr(self, name) for name in type(self).model_fields})


def _spec(value: Any) -> Any:
    return value if isinstance(value, TrialSpec) else TrialDocument.from_json(value).spec()


class LongerTraining(Document):
    """A frontier model trained for more epochs: its run, and how good it then was."""

    run: Run
    epochs: int = Field(ge=1)
    top1: Finite


class FrontierRow(Document):
    """A model on the frontier.

    Attributes:
        c: multiply-adds over the baseline's; resolution: pixels; top1: percent.
        pareto_rank: the number of its front, 1 the nondominated one.
        longer: the longest training of the same model beyond this one.
    """

    run: Run
    rdw: Multipliers
    c: Finite
    macs: Count
    params: Count
    resolution: Count
    top1: Finite
    pareto_rank: int = Field(ge=1, le=10**6)
    longer: LongerTraining | None = None

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def r(self) -> float:
        return self.rdw[0]

    @property
    def d(self) -> float:
        return self.rdw[1]

    @property
    def w(self) -> float:
        return self.rdw[2]

    def to_json(self) -> dict[str, Any]:
        row = {"id": self.id, **self.model_dump(mode="json", exclude={"longer"})}
        return row | ({"longer": self.longer.model_dump(mode="json")} if self.longer else {})


class FinalRow(Document):
    """A final job.

    Attributes:
        label: the rule that the network follows; c: the budget that was asked for.
        note: how far the network is from the budget, where the rule says so.
        extrapolated: whether the budget is outside the formula's data.
    """

    run: Run
    label: Label
    c: Finite
    note: str | None = None
    extrapolated: bool = False
    spec: Annotated[TrialSpec, BeforeValidator(_spec)]

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "label": self.label,
            "c": self.c,
            "note": self.note,
            "rdw": list(self.spec.rdw),
            "extrapolated": self.extrapolated,
            "spec": self.spec.to_json(),
        }


def _figures(value: Any) -> NetworkFigures | None:
    """The figures beside a candidate are not relied on: without them they are counted again."""
    try:
        figures = replace(NetworkFigures.from_json(value), details={})
    except DocumentError:
        return None
    counted = min(figures.params, figures.activations, figures.activation_bytes)
    return figures if counted > 0 else None


class Drawn(Document):
    """A candidate as it is written: (r, d, w), and beside them its id and its network's figures, which may be missing."""

    rdw: Multipliers
    id: Annotated[str | None, BeforeValidator(lambda v: v if isinstance(v, str) else None)] = None
    network: Annotated[NetworkFigures | None, BeforeValidator(_figures)] = None


class Batch(Document):
    """The candidates of one file."""

    candidates: list[Drawn] = Field(max_length=MOST_TRIALS)


class Images(Document):
    train: Count
    val: Count


class Macs(Document):
    macs: int


class JobDocument(Document):
    """job.json; ``TrainJob`` is what it means."""

    version: Literal[1] = Field(validation_alias="schema")
    job: str = Field(pattern=NAME)
    network: Label
    created: Date
    images: Images
    figures: Macs
    trial: TrialDocument


FRONTIER_ROWS, FINAL_ROWS = TypeAdapter(list[FrontierRow]), TypeAdapter(list[FinalRow])


def checked(validate: Callable[[Any], Made], values: Any) -> Made:
    """What pydantic makes of the values. Raises DocumentError, in one line that names the field, where it refuses them."""
    try:
        return validate(values)
    except ValueError as error:
        text = reason(error)
        raise DocumentError(text if ":" in text else f"the whole: {text}") from error


def foreign_space(name: str, named: str | None) -> str | None:
    """Why a space that a file names is not to be loaded, None where it may be: it is built in, or the user names it too.

    Importing ``module:attribute`` runs code, and whoever can write to the storage could choose it.
    """
    if not is_own(name) or name == named:
        return None
    return f"it is of the space {name!r}, which would be code to run: say --space {name} if it is yours"
