"""The document ``imagenet100.json`` of a subset as a typed object.

``build`` writes it and reads the one of an earlier run. ``from_json`` validates it.
"""

from dataclasses import asdict, dataclass
from typing import Any

from trainables.data.subset.selection import Drawn
from trainables.storage.documents import fields_of, typed


@dataclass(frozen=True)
class SubsetRequest(Drawn):
    """The images of a subset; the document in ``.building`` until all of them are copied.

    Attributes:
        classes, train, val: number of classes, training images and validation images.
        names_sha256: digest of the sorted paths of the images.
    """

    classes: int
    train: int
    val: int
    names_sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> "SubsetRequest":
        """Validate a decoded document.

        Raises:
            DocumentError: A field is missing or has the wrong type.
        """
        optional = {"seed": None, "images_per_class": None}
        return typed(cls, optional | fields_of(document))


@dataclass(frozen=True)
class SubsetRecord:
    """The content of ``imagenet100.json`` of a complete subset.

    Attributes:
        request: the images of the subset.
        source: the kind of set that the images were copied from.
        version: version of the program that copied them.
        drawing: how a seed determines the images; None for a list.
        bytes: size of all images.
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
        """Validate a decoded document.

        Raises:
            DocumentError: A field is missing or has the wrong type.
        """
        request = SubsetRequest.from_json(document)
        return typed(cls, {"drawing": None, **fields_of(document), "request": request})
