"""The document of a subset as a value with types: ``imagenet100.json``.

The copy writes it, and reads what an earlier run wrote. It is checked once, in ``from_json``.
"""

from dataclasses import asdict, dataclass
from typing import Any

from trainables.data.subset.selection import Drawn
from trainables.storage.documents import fields_of, typed


@dataclass(frozen=True)
class SubsetRequest(Drawn):
    """Which images a subset has: the document in ``.building`` until all of them are copied.

    Attributes:
        classes, train, val: how many there are.
        names_sha256: digest of the images' sorted paths.
    """

    classes: int
    train: int
    val: int
    names_sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> "SubsetRequest":
        """
        Raises:
            DocumentError: a field is missing or of another type.
        """
        optional = {"seed": None, "images_per_class": None}
        return typed(cls, optional | fields_of(document))


@dataclass(frozen=True)
class SubsetRecord:
    """What ``imagenet100.json`` of a whole subset holds.

    Attributes:
        source: the kind of set that it was copied from; version: of the program that copied it.
        drawing: how a seed decides the images; None for a list.
        bytes: of all images.
        files_sha256: digest of ``files.csv``.
    """

    request: SubsetRequest
    source: str
    version: str
    drawing: str | None
    bytes: int
    files_sha256: str

    def to_json(self) -> dict[str, Any]:
        drawing = {} if self.drawing is None else {"drawing": self.drawing}
        return {
            **self.request.to_json(),
            "source": self.source,
            "version": self.version,
            **drawing,
            "bytes": self.bytes,
            "files_sha256": self.files_sha256,
        }

    @classmethod
    def from_json(cls, document: object) -> "SubsetRecord":
        """
        Raises:
            DocumentError: a field is missing or of another type.
        """
        request = SubsetRequest.from_json(document)
        return typed(cls, {"drawing": None, **fields_of(document), "request": request})
