"""Errors of a search; mistakes in a request are ``RequestError``."""

import contextlib
from collections.abc import Iterator

from search_spaces.errors import RequestError


class TrackingError(RuntimeError):
    """MLflow could not be reached or read: the message is one line that names its address.

    The command line prints the message alone and exits with 1.
    """


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
        raise RequestError(f"this needs {module}, which is not installed: pip install 'tinynet-search[search]'") from error
