"""The document of a formula file as a pydantic model: what a file must contain to be read.

Imported by ``files.parse`` and ``fit_formula`` when they are called: a suggestion by the published formula loads no pydantic.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from search_spaces.space import SANE
from tinynet_search.errors import one_line
from tinynet_search.formula.contents import (
    MAX_POINTS,
    MIN_POINTS,
    SCHEMA,
    DamagedError,
    FormulaContents,
)

MOST = 10**9
# Levels of a provenance: what is nested without end can be read, but not written or shown.
DEPTH = 20


def _bounded(provenance: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [provenance]
    for _ in range(DEPTH):
        if any(isinstance(value, float) and not math.isfinite(value) for value in level):
            raise ValueError("a number is not finite")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, list):
                below += value
        level = below
        if not level:
            return provenance
    raise ValueError(f"nested too deeply, beyond {DEPTH} levels")


# A cost or a variance beyond these is a damaged file.
Cost = Annotated[float, Field(ge=1e-6, le=100.0)]
Multiplier = Annotated[float, Field(ge=SANE[0], le=SANE[1])]
Scale = Annotated[float, Field(ge=1e-6, le=1e6)]
Variance = Annotated[float, Field(ge=0.0, le=1e6)]
Mean = Annotated[float, Field(ge=-SANE[1], le=SANE[1])]
Origin = Annotated[dict[str, Any], AfterValidator(_bounded)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class PointRow(_Part):
    """A training point."""

    c: Cost
    r: Multiplier
    d: Multiplier


class KernelRow(_Part):
    """The fields of ``gaussian_process.Kernel``."""

    amplitude: Scale
    length_scale: Scale
    noise: Variance
    mean: Mean
    log_c: bool


class TargetRows(_Part):
    """The kernels of one form."""

    r: KernelRow
    d: KernelRow


class FormRows(_Part):
    """Both forms (``contents.FORMS``)."""

    paper: TargetRows
    default: TargetRows


class FormulaDocument(_Part):
    """What usable and unusable formulas have in common; each field is checked after those above it."""

    version: int = Field(alias="schema")
    space: str
    space_version: int = Field(ge=0, le=MOST)
    num_classes: int = Field(ge=2, le=MOST)
    usable: bool
    points: list[PointRow] = Field(max_length=MAX_POINTS)
    range: list[float] | None
    provenance: Origin

    @field_validator("version")
    @classmethod
    def _readable(cls, version: int) -> int:
        if version != SCHEMA:
            raise ValueError(f"this version reads {SCHEMA}")
        return version

    @field_validator("range")
    @classmethod
    def _of_the_points(cls, span: list[float] | None, info: ValidationInfo) -> list[float] | None:
        """A range wider than the points would extrapolate without a word."""
        points = info.data.get("points")
        if points is None:
            # The points themselves are refused.
            return span
        costs = [point.c for point in points]
        if span != ([min(costs), max(costs)] if costs else None):
            raise ValueError("this is not the range of the points")
        return span


class UsableDocument(FormulaDocument):
    """A formula that predicts."""

    reason: None
    points: list[PointRow] = Field(min_length=MIN_POINTS, max_length=MAX_POINTS)
    forms: FormRows


class UnusableDocument(FormulaDocument):
    """A formula of too few points, with the reason why it does not predict."""

    reason: str
    forms: dict[str, Any] = Field(max_length=0)


_POINTS = TypeAdapter(list[PointRow])


def check_document(document: Mapping[str, Any]) -> FormulaContents:
    """The contents of a formula's document.

    Raises:
        DamagedError: a field is missing, of another type or out of range; the line names it.
    """
    kind = UsableDocument if document.get("usable") is True else UnusableDocument
    try:
        model = kind.model_validate(document)
    except ValidationError as error:
        raise _damaged(error) from error
    return FormulaContents.from_json(model.model_dump())


def check_points(rows: Sequence[Mapping[str, float]]) -> list[tuple[float, float, float]]:
    """(c, r, d) of each training point.

    Raises:
        DamagedError: a number is out of range.
    """
    try:
        points = _POINTS.validate_python(rows)
    except ValidationError as error:
        raise _damaged(error, "points") from error
    return [(point.c, point.r, point.d) for point in points]


def _damaged(error: ValidationError, *outer: str) -> DamagedError:
    """The first mistake in one line, as ``points[3].c: Input should be a finite number (it is nan)``."""
    first = error.errors(include_url=False)[0]
    place = ""
    for part in (*outer, *first["loc"]):
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    value = first["input"]
    is_short = value is None or isinstance(value, (str, int, float))
    shown = f" (it is {one_line(repr(value), 40)})" if is_short else ""
    message = first["msg"].removeprefix("Value error, ")
    return DamagedError(
        f"{one_line(place.removeprefix('.'), 100)}: {one_line(message, 200)}{shown}"
    )
