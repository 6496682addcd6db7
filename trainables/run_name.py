"""Names of trainings: ``<id>-e<epochs>``, one for each trial and number of epochs.

Results, trial folders, frontier rows and MLflow runs have these names. Only this module builds and
parses them.
"""

import re
from collections.abc import Iterable

# Ten hex digits of a hash of everything that determines a trial's result.
ID_PATTERN = r"[0-9a-f]{10}"
_RUN = re.compile(rf"({ID_PATTERN})-e([1-9][0-9]{{0,5}})")


class RunName(str):
    """The name of one trial trained for one number of epochs.

    It is a ``str``, so it can be used directly as a file name, a JSON value and a dictionary key.

    Args:
        id: the trial's id, which does not depend on the epochs.
        epochs: the number of epochs of the training.
    """

    __slots__ = ()

    def __new__(cls, id: str, epochs: int) -> "RunName":
        return super().__new__(cls, f"{id}-e{epochs}")

    def __getnewargs__(self) -> tuple[str, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.id, self.epochs

    @property
    def id(self) -> str:
        return self.rpartition("-e")[0]

    @property
    def epochs(self) -> int:
        return int(self.rpartition("-e")[2])

    def with_epochs(self, epochs: int) -> "RunName":
        """The name of the same trial trained for a different number of epochs."""
        return RunName(self.id, epochs)

    @classmethod
    def parse(cls, text: str) -> "RunName":
        """Parse a name that was read from a file.

        Raises:
            ValueError: the text is not of the form ``<ten hex digits>-e<epochs>``.
        """
        match = _RUN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r:.80} is not a run name, <id>-e<epochs>")
        return cls(match[1], int(match[2]))

    @classmethod
    def parsed(cls, names: Iterable[str], suffix: str = "") -> "set[RunName]":
        """Run names among file names with this suffix; other files are ignored."""
        matches = (
            _RUN.fullmatch(name[: len(name) - len(suffix)])
            for name in names
            if name.endswith(suffix)
        )
        return {cls(match[1], int(match[2])) for match in matches if match}
