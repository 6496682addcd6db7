"""Names of trainings: ``<id>-e<epochs>``, one for each trial and number of epochs.

Results, trial folders, frontier rows and MLflow's runs carry them; nothing else builds or takes apart such a name.
"""

import re
from collections.abc import Iterable

# Ten hex digits of what decides a trial's result.
ID_PATTERN = r"[0-9a-f]{10}"
_RUN = re.compile(rf"({ID_PATTERN})-e([1-9][0-9]{{0,5}})")


class RunName(str):
    """The name of one trial trained for one number of epochs.

    It is a ``str``: a file name, a JSON value and a dictionary key as it is.

    Args:
        id: of the trial, which does not depend on the epochs.
        epochs: how many the training has.
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
        """The same trial trained for another number of epochs."""
        return RunName(self.id, epochs)

    @classmethod
    def parse(cls, text: str) -> "RunName":
        """Read a name from a file.

        Raises:
            ValueError: it is not of the form ``<ten hex digits>-e<epochs>``.
        """
        found = _RUN.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r:.80} is not a run name, <id>-e<epochs>")
        return cls(found[1], int(found[2]))

    @classmethod
    def parsed(cls, names: Iterable[str], suffix: str = "") -> "set[RunName]":
        """Those of some file names that are run names with this suffix; other files are ignored."""
        found = (
            _RUN.fullmatch(name[: len(name) - len(suffix)])
            for name in names
            if name.endswith(suffix)
        )
        return {cls(match[1], int(match[2])) for match in found if match}
