"""The files of an image set that are not read, counted by reason.

The sources count them while they list a set; ``open_data`` reports them as one line.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

HIDDEN_FILE = "hidden files"
HIDDEN_FOLDER = "hidden folders"
NOT_AN_IMAGE = "files that are not images"
BROKEN_LINK = "broken links"
REPEATED_FOLDER = "folders that are read already"
SPECIAL_FILE = "special files"
OUTSIDE_CLASS = "files outside of class folders"
SUBFOLDER = "folders in a split without class folders"
TAR_LINK = "links in tar files"
SKIPPED = "images that were skipped in packing"


class IgnoredFiles(NamedTuple):
    """The files or folders that are not read for one reason.

    Attributes:
        reason: one of this module's constants.
        number: how many there are; a folder counts once.
        example: the path of the first one, relative to the folder of the set.
    """

    reason: str
    number: int
    example: str


class IgnoredCounter:
    """Counts ignored files by reason; the order of the calls does not matter."""

    def __init__(self, ignored: Iterable[IgnoredFiles] = ()) -> None:
        self._by_reason: dict[str, IgnoredFiles] = {}
        self.update(ignored)

    def add(self, reason: str, path: str, number: int = 1) -> None:
        known = self._by_reason.get(reason)
        if known is not None:
            path, number = min(path, known.example), number + known.number
        self._by_reason[reason] = IgnoredFiles(reason, number, path)

    def update(self, ignored: Iterable[IgnoredFiles]) -> None:
        for reason, number, example in ignored:
            self.add(reason, example, number)

    def __iter__(self) -> Iterator[IgnoredFiles]:
        return iter(self.files)

    @property
    def files(self) -> tuple[IgnoredFiles, ...]:
        """The counts, sorted by reason."""
        return tuple(self._by_reason[reason] for reason in sorted(self._by_reason))


def summary(ignored: Sequence[IgnoredFiles]) -> str:
    """Return the counts as text, such as "broken links (2, for example 'train/a/x.png')"."""
    return ", ".join(
        f"{reason} ({number}, for example {example!r})" for reason, number, example in ignored
    )
