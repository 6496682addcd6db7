"""Parses and validates JSON documents from shared storage, which may be damaged or untrusted.

Called by every module that reads a document. A parsed document has no NaN or infinity, no integer
beyond 64 bits, no deep nesting and no very long key, so its values can be safely compared,
converted and printed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import TYPE_CHECKING, Any, NotRequired, TypeAlias, TypeVar, get_type_hints

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# Size limits in bytes: of a document that describes one object, and of one that lists all epochs or
# all trials.
SMALL, LARGE = 4_000_000, 128_000_000
MAX_DEPTH = 24
# Integers must be in [-MAX_INTEGER, MAX_INTEGER).
MAX_INTEGER = 2**63
MAX_KEY_LENGTH = 200
MAX_EPOCHS = 100_000
# Limit of a result's reason and detail, because a driver keeps ten thousand results in memory.
MAX_TEXT_LENGTH = 10_000
# In seconds since 1970: far in the future, and still valid for MLflow in milliseconds.
MAX_TIMESTAMP = 1e11


Kind = TypeVar("Kind")
# A JSON value; unlike pydantic's JsonValue, the type also accepts a list of numbers as an argument.
Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | float | bool | None"


class DocumentError(ValueError):
    """A document is not valid; the message is one short line without the file name."""


def parsed(data: bytes | str) -> Any:
    """Parse a JSON document.

    Raises:
        DocumentError: the document is damaged or exceeds the limits of this module.
    """
    try:
        value = json.loads(data, parse_constant=_reject_constant)
    except DocumentError:
        raise
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"invalid JSON: {' '.join(str(error).split())[:80]}") from error
    _check(value)
    return value


def _reject_constant(name: str) -> Any:
    raise DocumentError(f"{name} is not a valid number")


def _check(document: Any) -> None:
    """Check a document's values against the limits.

    The document is traversed level by level, so that deep nesting does not overflow the stack. Each
    level takes few passes, because a search reads thousands of results.
    """
    level = [document]
    for _ in range(MAX_DEPTH):
        floats = [value for value in level if type(value) is float]
        if floats and not all(map(math.isfinite, floats)):
            raise DocumentError("a number is too large")
        integers = [value for value in level if type(value) is int]
        if integers and not -MAX_INTEGER <= min(integers) <= max(integers) < MAX_INTEGER:
            raise DocumentError("an integer is too large")
        next_level: list[Any] = []
        for value in level:
            if type(value) is dict:
                longest = max(map(len, value), default=0)
                if longest > MAX_KEY_LENGTH:
                    raise DocumentError(
                        f"a key has {longest} characters, the limit is {MAX_KEY_LENGTH}"
                    )
                next_level += value.values()
            elif type(value) is list:
                next_level += value
        if not next_level:
            return
        level = next_level
    raise DocumentError(f"it is nested deeper than {MAX_DEPTH} levels")


def fields_of(document: object) -> dict[str, Any]:
    """The members of a JSON object.

    Raises:
        DocumentError: the document is not an object.
    """
    if not isinstance(document, dict):
        raise DocumentError("it is not an object")
    return document


def typed(kind: type[Kind], values: Any, what: str = "it") -> Kind:
    """Build a dataclass from a JSON object.

    pydantic checks the types strictly, and ``__post_init__`` checks the ranges. Unknown keys are
    ignored. pydantic is imported here, because only documents need it. Types are not checked on a
    machine without pydantic (the GPU checks run from a bare source tree), which only reads
    documents that it has just written.

    Args:
        kind: a dataclass whose fields are plain values or already converted objects.
        values: the JSON object.
        what: describes the object in error messages, for example ``epoch 3``.

    Raises:
        DocumentError: ``values`` is not an object, a field is missing, or a value has the wrong
            type or is out of range.
    """
    if not isinstance(values, dict):
        raise DocumentError(f"{what} is not an object")
    adapter = _adapter(kind)
    try:
        if adapter is not None:
            return kind(**adapter.validate_python(values))
        names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        return kind(**{name: value for name, value in values.items() if name in names})
    except (ValueError, TypeError) as error:
        raise DocumentError(
            f"{reason(error)} ({what})" if what != "it" else reason(error)
        ) from error


def reason(error: Exception) -> str:
    """The first problem of a validation error in one short line, with the field's name.

    Accepts pydantic's errors and other exceptions.
    """
    errors = getattr(error, "errors", None)
    if errors is None:
        return " ".join(str(error).split())[:200]
    first = errors()[0]
    location = ".".join(str(part) for part in first["loc"])[:100]
    text = first["msg"].removeprefix("Value error, ")
    line = f"{location}: {text}" if location else text
    return " ".join("".join(ch if ch.isprintable() else " " for ch in line).split())[:300]


@cache
def _adapter(kind: type) -> "TypeAdapter[Any] | None":
    """pydantic's validator for the fields of a dataclass, or None if pydantic is not installed."""
    try:
        import typing_extensions
        from pydantic import ConfigDict, TypeAdapter
    except ModuleNotFoundError:
        return None
    hints = get_type_hints(kind)
    optional = {
        field.name
        for field in fields(kind)
        if field.default is not MISSING or field.default_factory is not MISSING
    }
    # Created at run time, so a type checker cannot check it.
    typed_dict: Any = typing_extensions.TypedDict
    schema = typed_dict(
        kind.__name__,
        {
            field.name: NotRequired[hints[field.name]]
            if field.name in optional
            else hints[field.name]
            for field in fields(kind)
        },
    )
    schema.__pydantic_config__ = ConfigDict(
        strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )
    return TypeAdapter(schema)
