"""The document of a subset as a value with types: ``imagenet100.json``.

The copy writes it, and reads what an earlier run wrote. It is checked once, in ``from_json``.
"""

from dataclasses import asdict, dataclass
from typing import Any

from trainables.data.subset.selection import DRAWN_FROM, Drawn
from trainables.storage.documents import DocumentError
from trainables.storage.fields import value_of


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
        drawn_from = value_of(document, "drawn_from", str)
        if drawn_from not in DRAWN_FROM:
            raise DocumentError(f"drawn_from is not one of {', '.join(DRAWN_FROM)}")
        return cls(
            drawn_from=drawn_from,
            seed=value_of(document, "seed", int, type(None)),
            images_per_class=value_of(document, "images_per_class", int, type(None)),
            classes=value_of(document, "classes", int),
            train=value_of(document, "train", int),
            val=value_of(document, "val", int),
            names_sha256=value_of(document, "names_sha256", str),
        )


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
        return cls(
            request=SubsetRequest.from_json(document),
            source=value_of(document, "source", str),
            version=value_of(document, "version", str),
            drawing=value_of(document, "drawing", str, type(None)),
            bytes=value_of(document, "bytes", int),
            files_sha256=value_of(document, "files_sha256", str),
        )
