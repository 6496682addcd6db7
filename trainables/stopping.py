"""Stops trainings on request: a stopped training commits a checkpoint and writes no result.

The executors create ``StopFile``; the training loop calls it and raises ``Stopped``.
"""

import time

from trainables.storage.folder import Folder

# Seconds between two checks of the storage.
POLL_SECONDS = 2.0


class Stopped(Exception):  # noqa: N818 - requested, not an error
    """The training was stopped on request; everything up to its last step is committed."""


class StopFile:
    """Stop condition that is true once a given file exists in the search directory.

    Called before each step. The storage is checked every few seconds; a storage error counts as no
    request.
    """

    def __init__(self, root: Folder, name: str) -> None:
        self._root, self._name = root, name
        self._next_check, self._requested = 0.0, False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._requested and now >= self._next_check:
            self._next_check = now + POLL_SECONDS
            try:
                self._requested = self._root.exists(self._name)
            except OSError:
                self._requested = False
        return self._requested
