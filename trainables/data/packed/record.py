"""The documents of a packed store as values with types: ``settings.json`` and ``packed.json``.

Packing writes and reads both, the data set reads ``packed.json``. Each is checked once, in its ``from_json``.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from trainables.data.packed.shards import PARTS, VERSION
from trainables.data.packed.workers import Task
from trainables.storage.documents import fields_of, typed


class OtherVersionError(ValueError):
    """A store that another version of this program packed."""


@dataclass(frozen=True)
class PackingSettings:
    """What decides the pixels of a store, and how they are divided.

    Attributes:
        source: fingerprint of the set that is packed.
        short_side: pixels to which larger images are shrunk.
        train, val: images of each part.
        shard_images: images of one file.
    """

    source: str
    short_side: int
    train: int
    val: int
    shard_images: int
    version: int = VERSION

    def tasks(self) -> Iterator[Task]:
        for part in PARTS:
            count = getattr(self, part)
            for number, first in enumerate(range(0, count, self.shard_images)):
                yield Task(part, number, first, min(count, first + self.shard_images))

    @classmethod
    def from_json(cls, document: object) -> "PackingSettings":
        """The settings among a document's fields.

        Raises:
            DocumentError: one is missing or of another type.
        """
        return typed(cls, {"version": None, **fields_of(document)})


@dataclass(frozen=True)
class PackingState:
    """What ``settings.json`` holds.

    Attributes:
        unreadable: bytes of each image that could not be read when packing ended, by ``part/class/file``.
    """

    settings: PackingSettings
    unreadable: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        unreadable = {"unreadable": self.unreadable} if self.unreadable else {}
        return asdict(self.settings) | unreadable

    @classmethod
    def from_json(cls, document: object) -> "PackingState":
        """
        Raises:
            DocumentError: a field is missing or of another type.
        """
        settings = PackingSettings.from_json(document)
        return typed(cls, {"unreadable": {}, **fields_of(document), "settings": settings})


@dataclass(frozen=True)
class PackedRecord:
    """What ``packed.json`` holds.

    Attributes:
        fingerprint: names the content of the store.
        counts: images that were packed, by part.
        bytes: of all pixels.
        skipped: ``part/class/file`` of each image that could not be read.
        shards: the digest of each shard's index in order, by part.
    """

    settings: PackingSettings
    fingerprint: str
    class_names: list[str]
    counts: dict[str, int]
    bytes: int
    skipped: list[str]
    shards: dict[str, list[str]]

    def __post_init__(self) -> None:
        for name in ("counts", "shards"):
            if getattr(self, name).keys() != set(PARTS):
                raise ValueError(f"{name}: expected {' and '.join(PARTS)}")

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        settings = document.pop("settings")
        return settings | document

    @classmethod
    def from_json(cls, document: object) -> "PackedRecord":
        """
        Raises:
            OtherVersionError: the document has another version, or none.
            DocumentError: a field is missing or of another type.
        """
        if isinstance(document, dict) and document.get("version") != VERSION:
            raise OtherVersionError("it was packed by another version of this program")
        settings = PackingSettings.from_json(document)
        return typed(cls, {**fields_of(document), "settings": settings})
