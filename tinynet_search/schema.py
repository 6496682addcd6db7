"""What a plan must be to be read: files of a search come from shared storage, and a damaged one is refused in one line."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from search_spaces.samplers import ADAPTIVE, SAMPLERS
from trainables.recipe import Recipe, validated

Finite = Annotated[float, Field(allow_inf_nan=False)]
Span = tuple[Finite, Finite]


class _Part(BaseModel):
    model_config = ConfigDict(strict=False, extra="ignore")


class _Space(_Part):
    name: str
    version: int
    num_classes: int = Field(ge=2)
    ranges: dict[Literal["r", "d", "w"], Span]
    band: Span


class _Sampler(_Part):
    name: Literal[(*SAMPLERS, *ADAPTIVE)]  # pyright: ignore[reportInvalidTypeForm]


class _Data(_Part):
    settings: dict[str, Any]
    fingerprint: str
    train: int = Field(ge=1)
    val: int = Field(ge=1)


class _Frontier(_Part):
    fraction: Finite
    minimum: int


class _Plan(_Part):
    version: Literal[1] = Field(alias="schema")
    search: str
    space: _Space
    sampler: _Sampler
    recipe: Recipe
    data: _Data
    seed: int
    frontier: _Frontier
    ranks: Literal["ema", "raw"]
    created: int

    @field_validator("recipe")
    @classmethod
    def _sound(cls, recipe: Recipe) -> Recipe:
        return validated(recipe)


def fault_of_plan(plan: Any) -> str | None:
    """What is wrong with a plan, in a few words; None where nothing is."""
    try:
        _Plan.model_validate(plan)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'the whole'}: {first['msg']}"
    return None
