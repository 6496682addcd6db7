"""Fields of a JSON document, each with the type that it must have.

Called by the ``from_json`` of documents that are read where pydantic is not installed.
"""

from typing import Any, TypeVar

from trainables.storage.documents import DocumentError

T = TypeVar("T")


def value_of(document: object, key: str, *kinds: type[T]) -> T:
    """The value under a key, of exactly one of these types: True is not a whole number.

    Raises:
        DocumentError: it is missing or of another type, or the document is not an object.
    """
    if not isinstance(document, dict):
        raise DocumentError("expected an object")
    value: Any = document.get(key)
    if type(value) not in kinds:
        raise DocumentError(f"{key} is not {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def list_of(document: object, key: str, kind: type[T]) -> list[T]:
    """The list under a key, all of one type.

    Raises:
        DocumentError: as ``value_of``; or an item is of another type.
    """
    values = value_of(document, key, list)
    if any(type(value) is not kind for value in values):
        raise DocumentError(f"{key} is not a list of {kind.__name__}")
    return values
