"""Prints what image sets report about the files that they do not read, one line per set, on stderr.

Used by ``main`` around every command.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator

LOGGER = "trainables.data"


@contextlib.contextmanager
def data_notes() -> Iterator[None]:
    """Print the warnings of image sets on stderr, each once."""
    logger, handler = logging.getLogger(LOGGER), _Notes()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        # A search opens its data for the plan and again for its trials.
        message = record.getMessage()
        if message not in self._printed:
            self._printed.add(message)
            print(f"note: {message}", file=sys.stderr)
