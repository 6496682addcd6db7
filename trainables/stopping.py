"""A training that is asked to end: it commits a checkpoint in the middle of its epoch and leaves no result."""

import time

from trainables.storage.folder import Folder

# Seconds between looks at storage.
POLL = 2.0


class Stopped(Exception):  # noqa: N818 - what was asked for, not a fault
    """The training was asked to end, and everything up to its last step is committed."""


class StopFile:
    """Called before each step: whether a file of the search directory asks its trainings to end.

    Storage is looked at every few seconds; one that cannot be read asks for nothing.
    """

    def __init__(self, root: Folder, name: str) -> None:
        self._root, self._name = root, name
        self._next, self._asked = 0.0, False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._asked and now >= self._next:
            self._next = now + POLL
            try:
                self._asked = self._root.exists(self._name)
            except OSError:
                self._asked = False
        return self._asked
