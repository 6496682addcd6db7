"""Typed documents of a search or a job, validated with pydantic when they are read.

They come from shared storage, so a damaged document is rejected with one line that names the
field. Read and written by ``store/directory.py`` and ``store/train_job.py``.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
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
from search_spaces.space import MAX_CLASSES, RDW_LIMITS
from tinynet_search.owner import OWNER
from trainables.recipe import Recipe, recipe_from
from trainables.result import NetworkFigures
from trainables.run_name import RunName
from trainables.spec import Setting, Settings, TrialSpec
from trainables.storage.documents import MAX_TIMESTAMP, DocumentError, reason

Value = TypeVar("Value")
SCHEMA = 1
# The limits are those of the configuration.
MAX_TRIALS = 100_000
# A name becomes part of paths, MLflow names and messages.
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"


def new_id() -> str:
    """Return a random id of a search or a job, which identifies it in MLflow."""
    return secrets.token_hex(8)


def _as_tuple(value: Any) -> Any:
    """Convert a JSON list to the tuple that the document has."""
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
    except ValueError as error:  # the name of the field is prepended later
        raise ValueError(str(error).removeprefix("recipe: ")) from error


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("expected printable characters")
    return value


# Display name of a rule or a network.
Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Multiplier = Annotated[float, Field(ge=RDW_LIMITS[0], le=RDW_LIMITS[1])]
Multipliers = Annotated[tuple[Multiplier, Multiplier, Multiplier], BeforeValidator(_as_tuple)]
Bound = Annotated[float, Field(gt=0, le=RDW_LIMITS[1])]
Span = Annotated[tuple[Bound, Bound], BeforeValidator(_as_tuple)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Classes = Annotated[int, Field(ge=2, le=MAX_CLASSES)]
# Names of classes in the order of the network's outputs.
ClassNames = Annotated[
    list[Annotated[str, Field(max_length=1000)]], Field(min_length=2, max_length=MAX_CLASSES)
]
Owner = Annotated[str, Field(pattern=OWNER)]
# Random: two users may start the same search in the same second.
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Experiment = Annotated[str, Field(min_length=1, max_length=255)]
Fingerprint = Annotated[str, Field(min_length=1, max_length=500)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Date = Annotated[int, Field(ge=0, lt=int(MAX_TIMESTAMP))]
DataSettings = dict[str, Setting]
Run = Annotated[RunName, BeforeValidator(_run_name)]
WrittenRecipe = Annotated[Recipe, BeforeValidator(_recipe)]


@contextlib.contextmanager
def validating(what: str) -> Iterator[None]:
    """Convert validation errors into RequestError while a document is created.

    A value that the reader of the document would reject comes from an invalid request.

    Args:
        what: the document, for the message.

    Raises:
        RequestError: in one line that names the field.
    """
    try:
        yield
    except ValidationError as error:
        raise RequestError(f"{what} is not valid: {reason(error)}") from error


class Document(BaseModel):
    """A part of a document. Unknown keys are ignored."""

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
        """Validate a document.

        Raises:
            DocumentError: in one line that names the field.
        """
        return checked(cls.model_validate, values)


class StrictDocument(Document):
    """A part of a document that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid")


class PlannedSpace(Document):
    """The search space of a plan.

    Attributes:
        name: the argument of ``get_space``.
        version: version of the space.
        num_classes: number of classes.
        ranges: searched range of each of r, d and w.
        band: searched range of c.
    """

    name: Annotated[str, Field(max_length=200)]
    version: int = Field(ge=0, le=10**6)
    num_classes: Classes
    ranges: dict[Literal["r", "d", "w"], Span]
    band: Span

    @field_validator("ranges")
    @classmethod
    def _all_axes(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        if set(ranges) != {"r", "d", "w"}:
            raise ValueError("expected the keys r, d and w")
        return ranges

    def narrowed(self) -> SearchSpace:
        """Return the space with the ranges and the band of the plan."""
        ranges: dict[str, Sequence[float]] = {**self.ranges}
        return get_space(self.name).narrowed(ranges, self.band)


class PlannedSampler(StrictDocument):
    """The sampler of a plan; only the sampler ``near`` has ``c`` and ``tol``."""

    name: Literal[(*SAMPLERS, *ADAPTIVE)]  # pyright: ignore[reportInvalidTypeForm]
    c: float | None = Field(default=None, gt=0, le=RDW_LIMITS[1])
    tol: float | None = Field(default=None, gt=0, le=1)

    @property
    def adaptive(self) -> bool:
        """Whether candidates are drawn during the search, each based on the results before it."""
        return self.name in ADAPTIVE

    @property
    def options(self) -> dict[str, float]:
        """Keyword arguments of ``samplers.draw``."""
        options = {"c": self.c, "tol": self.tol}
        return {key: value for key, value in options.items() if value is not None}


class PlannedData(Document):
    """The data of a plan.

    Attributes:
        settings: the ``[data]`` settings.
        fingerprint: fingerprint of the data.
        train: number of training images.
        val: number of validation images.
        class_names: names of the classes in the order of the labels.
        largest_pixels: the resolution in pixels for which packed data were created, None for
            other data.
    """

    settings: DataSettings
    fingerprint: Fingerprint
    train: Count
    val: Count
    class_names: ClassNames
    largest_pixels: int | None = Field(default=None, ge=1, le=10**6)

    def to_json(self) -> dict[str, Any]:
        largest = {"largest_pixels": self.largest_pixels} if self.largest_pixels else {}
        return {**self.model_dump(exclude={"largest_pixels"}), **largest}


class FrontierRule(Document):
    """Size of the frontier: a fraction of the results, and a minimum number of models."""

    fraction: float = Field(gt=0, le=1)
    minimum: int = Field(ge=0, le=10**6)


class Plan(Document):
    """The plan of a search, written once before its first trial.

    Attributes:
        id: random id, which identifies the search in MLflow wherever its directory is.
        owner: who started the search.
        experiment: MLflow experiment that the user has chosen, None for the default.
        ranks: the weights whose top-1 in the last epoch ranks trials: averaged (``ema``) or raw.
        created: seconds since 1970.
    """

    version: Literal[1] = Field(validation_alias="schema")
    search: str = Field(pattern=NAME)
    id: Id
    owner: Owner
    experiment: Experiment | None = None
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
            "id": self.id,
            "owner": self.owner,
            **({"experiment": self.experiment} if self.experiment else {}),
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
        """Return the same plan with the data at another location."""
        return self.model_copy(
            update={"data": self.data.model_copy(update={"settings": dict(settings)})}
        )

    def recipe_for(self, epochs: int | None = None) -> Recipe:
        """Return the recipe of the plan, optionally with another number of epochs."""
        return self.recipe if epochs is None else replace(self.recipe, epochs=epochs)


class TrialDocument(StrictDocument):
    """A ``TrialSpec`` as written to job.json and finals.json."""

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
    """A longer training of a frontier model: its run, epochs and top-1 in percent."""

    run: Run
    epochs: int = Field(ge=1)
    top1: Finite


class FrontierRow(Document):
    """A model on the frontier.

    Attributes:
        run: run name of the trial.
        rdw: (r, d, w).
        c: multiply-adds relative to the baseline.
        macs: multiply-adds.
        params: number of parameters.
        resolution: input resolution in pixels.
        top1: percent.
        pareto_rank: number of the Pareto front; 1 is the nondominated front.
        longer: the longest training of the same model with more epochs than this one.
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
    """A final network and its training.

    Attributes:
        run: run name of the training.
        label: the rule that the network follows.
        c: the requested budget.
        note: distance between the network and the budget, if the rule reports it.
        extrapolated: whether the budget is outside the data of the formula.
        spec: specification of the training.
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
    """Return the stored figures of a candidate, None if they are not valid.

    They are optional: missing figures are computed again.
    """
    try:
        figures = replace(NetworkFigures.from_json(value), details={})
    except DocumentError:
        return None
    counted = min(figures.params, figures.activations, figures.activation_bytes)
    return figures if counted > 0 else None


class DrawnCandidate(Document):
    """A candidate as written to a batch: (r, d, w), and optionally its id and network figures."""

    rdw: Multipliers
    id: Annotated[str | None, BeforeValidator(lambda v: v if isinstance(v, str) else None)] = None
    network: Annotated[NetworkFigures | None, BeforeValidator(_figures)] = None


class Batch(Document):
    """The candidates of one batch file."""

    candidates: list[DrawnCandidate] = Field(max_length=MAX_TRIALS)


class Images(Document):
    train: Count
    val: Count
    class_names: ClassNames


class Macs(Document):
    macs: int


class JobDocument(Document):
    """The content of job.json; ``TrainJob`` is the parsed form."""

    version: Literal[1] = Field(validation_alias="schema")
    job: str = Field(pattern=NAME)
    id: Id
    owner: Owner
    experiment: Experiment | None = None
    network: Label
    created: Date
    images: Images
    figures: Macs
    trial: TrialDocument


FRONTIER_ROWS, FINAL_ROWS = TypeAdapter(list[FrontierRow]), TypeAdapter(list[FinalRow])


def checked(validate: Callable[[Any], Value], values: Any) -> Value:
    """Validate values with pydantic.

    Raises:
        DocumentError: in one line that names the field, if the values are not valid.
    """
    try:
        return validate(values)
    except ValueError as error:
        text = reason(error)
        raise DocumentError(text if ":" in text else f"document: {text}") from error


def untrusted_space_error(name: str, trusted: str | None) -> str | None:
    """Return why a space whose name was read from a file must not be loaded, None if it may be.

    Importing ``module:attribute`` runs code, and anyone who can write to the storage could choose
    the name. A space is loaded if it is built in, or if the user gives the same name.

    Args:
        name: name of the space in the file.
        trusted: name of the space given by the user.
    """
    if not is_own(name) or name == trusted:
        return None
    return (
        f"its space {name!r} is user-defined code, which is not loaded from a file: "
        f"pass --space {name} if you trust it"
    )
