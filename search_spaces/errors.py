"""The one error that is the user's to mend."""

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """What was asked for cannot be: the message is one line that says what is wrong and how to mend it.

    The command line prints the message alone and exits with 2; every other exception is a fault of ours.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """The error for a name nobody knows: names the nearest one that exists, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return RequestError(f"unknown {kind} {name!r}: {hint}")
