"""JSON from shared storage as bounded plain data: a file there may be damaged, or written by somebody else.

What passes has no NaN or infinity, no number beyond 64 bits, no deep nesting and no key that is a page long, so that
whoever reads it may compare, convert and print its values.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import TYPE_CHECKING, Any, NotRequired, TypeAlias, TypeVar, get_type_hints

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# Bytes: of a document that describes one thing, and of one that lists every epoch or every trial.
SMALL, LARGE = 4_000_000, 128_000_000
DEPTH = 24
# Of a whole number, either way; and of a key.
WHOLE, LONGEST_KEY = 2**63, 200
MOST_EPOCHS = 100_000
# Of a result's text, since a driver keeps ten thousand results.
LONGEST_TEXT = 10_000
# Seconds since 1970: far enough ahead, and MLflow takes the milliseconds.
LAST_DATE = 1e11


Kind = TypeVar("Kind")
# What a JSON document holds; unlike pydantic's JsonValue it takes a list of numbers where it is passed.
Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | float | bool | None"


class DocumentError(ValueError):
    """What is wrong with a document, in one short line without the name of its file."""


def parsed(data: bytes | str) -> Any:
    """The content of a JSON document.

    Raises:
        DocumentError: it is damaged, or holds what no document of ours does.
    """
    try:
        value = json.loads(data, parse_constant=_refused)
    except DocumentError:
        raise
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"no JSON: {' '.join(str(error).split())[:80]}") from error
    _check(value)
    return value


def _refused(name: str) -> Any:
    raise DocumentError(f"{name} is no number")


def _check(whole: Any) -> None:
    """Level by level, so that depth costs no stack; in few passes over each, since a search reads thousands of results."""
    level = [whole]
    for _ in range(DEPTH):
        floats = [value for value in level if type(value) is float]
        if floats and not all(map(math.isfinite, floats)):
            raise DocumentError("a number is too large")
        wholes = [value for value in level if type(value) is int]
        if wholes and not -WHOLE <= min(wholes) <= max(wholes) < WHOLE:
            raise DocumentError("a whole number is too large")
        below: list[Any] = []
        for value in level:
            if type(value) is dict:
                longest = max(map(len, value), default=0)
                if longest > LONGEST_KEY:
                    raise DocumentError(f"a key has {longest} letters")
                below += value.values()
            elif type(value) is list:
                below += value
        if not below:
            return
        level = below
    raise DocumentError(f"it is nested deeper than {DEPTH} levels")


def fields_of(document: object) -> dict[str, Any]:
    """The members of a JSON object. Raises DocumentError where it is something else."""
    if not isinstance(document, dict):
        raise DocumentError("it is not an object")
    return document


def typed(kind: type[Kind], values: Any, what: str = "it") -> Kind:
    """A dataclass from a JSON object: its types are checked by pydantic, strictly, and its ranges by ``__post_init__``.

    Keys that the dataclass does not know are ignored. pydantic is loaded here, since only documents need it. A machine
    without it (the GPU checks run from a bare source tree) reads no documents but those it wrote a moment before: there the
    types are taken on trust.

    Args:
        kind: a dataclass whose fields are plain values or objects that were made already.
        what: names the object in errors, as in ``epoch 3``.

    Raises:
        DocumentError: it is not an object, a field is missing, or a value is not of its field's type or range.
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
    """The first thing that is wrong, in one short line that names the field; of pydantic's errors and of others."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return " ".join(str(error).split())[:200]
    first = errors()[0]
    place = ".".join(str(part) for part in first["loc"])[:100]
    text = first["msg"].removeprefix("Value error, ")
    line = f"{place}: {text}" if place else text
    return " ".join("".join(ch if ch.isprintable() else " " for ch in line).split())[:300]


@cache
def _adapter(kind: type) -> "TypeAdapter[Any] | None":
    """pydantic's check of a dataclass's fields, None where it is not installed."""
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
    # Made while the program runs, which a type checker cannot follow.
    make: Any = typing_extensions.TypedDict
    shape = make(
        kind.__name__,
        {
            field.name: NotRequired[hints[field.name]]
            if field.name in optional
            else hints[field.name]
            for field in fields(kind)
        },
    )
    shape.__pydantic_config__ = ConfigDict(
        strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )
    return TypeAdapter(shape)
