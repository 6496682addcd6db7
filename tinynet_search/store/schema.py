"""What files of a search or a job must be to be read: they come from shared storage, and a damaged one is refused in one line.

Every check takes plain data from ``trainables.storage.documents`` and says what is wrong in a few words, None where nothing is.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from search_spaces import is_own
from search_spaces.samplers import ADAPTIVE, SAMPLERS
from search_spaces.space import MOST_CLASSES, SANE
from trainables.recipe import recipe_from
from trainables.storage.documents import LAST_DATE

# As configurations have them; a name becomes part of paths, of MLflow's names and of messages.
MOST_TRIALS = 100_000
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
RUN = r"^[0-9a-f]{10}-e[1-9][0-9]{0,5}$"
# A rule's or a network's name as people see it.
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Multiplier = Annotated[float, Field(ge=SANE[0], le=SANE[1])]
Multipliers = Annotated[list[Multiplier], Field(min_length=3, max_length=3)]
Span = Annotated[list[Annotated[float, Field(gt=0, le=SANE[1])]], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Classes = Annotated[int, Field(ge=2, le=MOST_CLASSES)]
Fingerprint = Annotated[str, Field(min_length=1, max_length=500)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Settings = dict[str, str | int | float | bool | None]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Exact(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Space(_Part):
    name: Annotated[str, Field(max_length=200)]
    version: int = Field(ge=0, le=10**6)
    num_classes: Classes
    ranges: dict[Literal["r", "d", "w"], Span]
    band: Span

    @field_validator("ranges")
    @classmethod
    def _whole(cls, ranges: dict[str, Any]) -> dict[str, Any]:
        if set(ranges) != {"r", "d", "w"}:
            raise ValueError("r, d and w are needed")
        return ranges


class _Sampler(_Exact):
    name: Literal[(*SAMPLERS, *ADAPTIVE)]  # pyright: ignore[reportInvalidTypeForm]
    c: float | None = Field(default=None, gt=0, le=SANE[1])
    tol: float | None = Field(default=None, gt=0, le=1)


class _Data(_Part):
    settings: Settings
    fingerprint: Fingerprint
    train: Count
    val: Count
    largest_pixels: int | None = Field(default=None, ge=1, le=10**6)


class _Frontier(_Part):
    fraction: float = Field(gt=0, le=1)
    minimum: int = Field(ge=0, le=10**6)


class _HasRecipe(_Part):
    recipe: dict[str, Any]

    @field_validator("recipe")
    @classmethod
    def _sound(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        recipe_from(recipe)
        return recipe


class _Plan(_HasRecipe):
    version: Literal[1] = Field(alias="schema")
    search: str = Field(pattern=NAME)
    space: _Space
    sampler: _Sampler
    data: _Data
    seed: Seed
    frontier: _Frontier
    ranks: Literal["ema", "raw"]
    created: int = Field(ge=0, lt=int(LAST_DATE))


class _Trial(_HasRecipe):
    model_config = ConfigDict(strict=True, extra="forbid")
    space: Annotated[str, Field(max_length=200)]
    space_version: int = Field(ge=0, le=10**6)
    rdw: Multipliers
    num_classes: Classes
    data: Settings
    data_fingerprint: Fingerprint
    seed: Seed
    kind: Literal["trial", "final", "continued"] = "trial"


class _Images(_Part):
    train: Count
    val: Count


class _Figures(_Part):
    macs: int


class _Job(_Part):
    version: Literal[1] = Field(alias="schema")
    job: str = Field(pattern=NAME)
    network: Label
    created: int = Field(ge=0, lt=int(LAST_DATE))
    images: _Images
    figures: _Figures
    trial: _Trial


class _Final(_Part):
    run: str = Field(pattern=RUN)
    label: Label
    c: Finite
    spec: _Trial


class _Row(_Part):
    id: str = Field(pattern=r"^[0-9a-f]{10}$")
    run: str = Field(pattern=RUN)
    rdw: Multipliers
    c: Finite
    macs: Count
    params: Count
    resolution: Count
    top1: Finite
    pareto_rank: int = Field(ge=1, le=10**6)


_PLAN, _JOB, _FINALS, _ROWS = (
    TypeAdapter(_Plan),
    TypeAdapter(_Job),
    TypeAdapter(list[_Final]),
    TypeAdapter(list[_Row]),
)


def fault_of_plan(plan: Any) -> str | None:
    return _fault(_PLAN, plan)


def fault_of_job(job: Any) -> str | None:
    return _fault(_JOB, job)


def fault_of_finals(rows: Any) -> str | None:
    return _fault(_FINALS, rows)


def fault_of_frontier(rows: Any) -> str | None:
    return _fault(_ROWS, rows)


def foreign_space(name: str, named: str | None) -> str | None:
    """Why a space that a file names is not to be loaded, None where it may be: it is built in, or the user names it too.

    Importing ``module:attribute`` runs code, and whoever can write to the storage could choose it.
    """
    if not is_own(name) or name == named:
        return None
    return f"it is of the space {name!r}, which would be code to run: say --space {name} if it is yours"


def _fault(kind: TypeAdapter[Any], value: Any) -> str | None:
    try:
        kind.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        return f"{place or 'the whole'}: {' '.join(first['msg'].split())[:200]}"
    return None
