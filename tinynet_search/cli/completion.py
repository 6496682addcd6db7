"""Provides the values that the shell completes for arguments and options.

The modules of the commands pass these functions to Typer. None of them imports torch or Ray.
"""

from collections.abc import Callable

from search_spaces import list_spaces
from search_spaces.networks import NETWORKS

Complete = Callable[[str], list[str]]


def complete_network(incomplete: str) -> list[str]:
    """The names of ``tinynet networks`` that start with a text."""
    return [name for name in NETWORKS if name.startswith(incomplete)]


def complete_space(incomplete: str) -> list[str]:
    """The built-in search spaces whose names start with a text."""
    return [name for name in list_spaces() if name.startswith(incomplete)]


def complete_from(*values: str) -> Complete:
    """Return a function that completes fixed values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete
