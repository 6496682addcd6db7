"""Errors of a search; mistakes in a request are ``RequestError``."""

import contextlib
import importlib.util
from collections.abc import Iterator

from search_spaces.errors import RequestError


class TrackingError(RuntimeError):
    """MLflow could not be reached or read: the message is one line that names its address.

    The command line prints the message alone and exits with 1.
    """


class JobError(RuntimeError):
    """A cluster that answered could not do what was asked of it: one line, exit code 1."""


def require(*modules: str) -> None:
    """Make sure, without loading them, that modules are installed.

    Raises:
        RequestError: one is missing; the line says which extra brings it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(module)


def _missing(module: str) -> RequestError:
    return RequestError(
        f"this needs {module}, which is not installed: pip install 'tinynet-search[search]'"
    )


@contextlib.contextmanager
def extras() -> Iterator[None]:
    """Turn a module that is not installed into one line that says which extra brings it.

    Raises:
        RequestError: a module is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("search_spaces", "trainables", "tinynet_search"):
            raise
        raise _missing(module) from error


def last_line(error: BaseException) -> str:
    """What was wrong, of an error before whose message Ray has put a worker's traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def one_line(text: object, limit: int = 300) -> str:
    """Foreign text made safe to print within a one-line message."""
    line = "".join(ch if ch.isprintable() else " " for ch in str(text))
    return " ".join(line.split())[:limit]
