"""Defines the errors of a search, and helpers that keep an error message on one line.

Every module of the package raises them; mistakes in a request are ``RequestError``.
"""

import contextlib
import importlib.util
from collections.abc import Iterator

from search_spaces.errors import RequestError


class TrackingError(RuntimeError):
    """MLflow could not be reached or read; the message is one line that contains its address.

    The command line prints only the message and exits with code 1.
    """


class JobError(RuntimeError):
    """A reachable cluster could not complete a request: a one-line message, exit code 1."""


def require(*modules: str) -> None:
    """Check that modules are installed, without loading them.

    Raises:
        RequestError: a module is missing; the message names the extra that installs it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(module)


def _missing(module: str) -> RequestError:
    return RequestError(
        f"this needs {module}, which is not installed: "
        "install the extra 'search' (in a checkout: pip install '.[search]')"
    )


@contextlib.contextmanager
def explain_missing_modules() -> Iterator[None]:
    """Convert the error of a missing third-party module to a ``RequestError``.

    Raises:
        RequestError: a module is missing; the message names the extra that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("search_spaces", "trainables", "tinynet_search"):
            raise
        raise _missing(module) from error


def last_line(error: BaseException) -> str:
    """The message of an error without the worker's traceback that Ray puts before it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def one_line(text: object, limit: int = 300) -> str:
    """External text as one printable line of at most ``limit`` characters."""
    line = "".join(ch if ch.isprintable() else " " for ch in str(text))
    return " ".join(line.split())[:limit]
