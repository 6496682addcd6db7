"""The error that reports an invalid request.

Every package of this project raises it, and the command line prints it.
"""

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """An invalid request. The message is one line that states the problem and how to fix it.

    The command line prints the message without a traceback and exits with status 2. Any other
    exception is a bug in this project.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """Return the error for an unknown name, with the closest known name or a list of all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return RequestError(f"unknown {kind} {name!r}: {hint}")
