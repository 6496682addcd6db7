"""The pydantic models that validate a formula file.

Imported by ``files.parse`` and ``fit_formula`` when they are called, so a suggestion by the
published formula does not import pydantic.
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

from search_spaces.space import RDW_LIMITS
from tinynet_search.errors import one_line
from tinynet_search.formula.contents import (
    MAX_POINTS,
    MIN_POINTS,
    SCHEMA,
    DamagedError,
    FormulaContents,
)

MAX_INTEGER = 10**9
# Largest nesting depth of a provenance: deeper JSON can be parsed, but not serialised or displayed.
MAX_DEPTH = 20


def _bounded(provenance: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [provenance]
    for _ in range(MAX_DEPTH):
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
    raise ValueError(f"nested too deeply: more than {MAX_DEPTH} levels")


# Values outside these bounds mean that the file is damaged.
Cost = Annotated[float, Field(ge=1e-6, le=100.0)]
Multiplier = Annotated[float, Field(ge=RDW_LIMITS[0], le=RDW_LIMITS[1])]
Scale = Annotated[float, Field(ge=1e-6, le=1e6)]
Variance = Annotated[float, Field(ge=0.0, le=1e6)]
Mean = Annotated[float, Field(ge=-RDW_LIMITS[1], le=RDW_LIMITS[1])]
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
    """The fields that usable and unusable formulas share, validated in their order."""

    version: int = Field(alias="schema")
    space: str
    space_version: int = Field(ge=0, le=MAX_INTEGER)
    num_classes: int = Field(ge=2, le=MAX_INTEGER)
    usable: bool
    points: list[PointRow] = Field(max_length=MAX_POINTS)
    range: list[float] | None
    provenance: Origin

    @field_validator("version")
    @classmethod
    def _supported(cls, version: int) -> int:
        if version != SCHEMA:
            raise ValueError(f"expected {SCHEMA}")
        return version

    @field_validator("range")
    @classmethod
    def _matches_points(cls, span: list[float] | None, info: ValidationInfo) -> list[float] | None:
        """Reject a range that differs from the points: a wider one would extrapolate silently."""
        points = info.data.get("points")
        if points is None:
            # The points themselves are invalid and are reported instead.
            return span
        costs = [point.c for point in points]
        if span != ([min(costs), max(costs)] if costs else None):
            raise ValueError("does not match the range of the points")
        return span


class UsableDocument(FormulaDocument):
    """A formula that can predict."""

    reason: None
    points: list[PointRow] = Field(min_length=MIN_POINTS, max_length=MAX_POINTS)
    forms: FormRows


class UnusableDocument(FormulaDocument):
    """A formula with too few points, and the reason why it cannot predict."""

    reason: str
    forms: dict[str, Any] = Field(max_length=0)


_POINTS = TypeAdapter(list[PointRow])


def check_document(document: Mapping[str, Any]) -> FormulaContents:
    """Validate a formula document and return its contents.

    Raises:
        DamagedError: A field is missing, has the wrong type or is out of range. The message
            contains its name.
    """
    kind = UsableDocument if document.get("usable") is True else UnusableDocument
    try:
        model = kind.model_validate(document)
    except ValidationError as error:
        raise _damaged(error) from error
    return FormulaContents.from_json(model.model_dump())


def check_points(rows: Sequence[Mapping[str, float]]) -> list[tuple[float, float, float]]:
    """Validate training points and return (c, r, d) of each.

    Raises:
        DamagedError: A number is out of range.
    """
    try:
        points = _POINTS.validate_python(rows)
    except ValidationError as error:
        raise _damaged(error, "points") from error
    return [(point.c, point.r, point.d) for point in points]


def _damaged(error: ValidationError, *outer: str) -> DamagedError:
    """The first error in one line: ``points[3].c: Input should be a finite number (got nan)``."""
    first = error.errors(include_url=False)[0]
    location = ""
    for part in (*outer, *first["loc"]):
        location += f"[{part}]" if isinstance(part, int) else f".{part}"
    value = first["input"]
    is_short = value is None or isinstance(value, (str, int, float))
    shown = f" (got {one_line(repr(value), 40)})" if is_short else ""
    message = first["msg"].removeprefix("Value error, ")
    return DamagedError(
        f"{one_line(location.removeprefix('.'), 100)}: {one_line(message, 200)}{shown}"
    )
