"""The documents of a packed store as typed objects: ``settings.json`` and ``packed.json``.

Packing writes and reads both, and the data set reads ``packed.json``. ``from_json`` validates them.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from trainables.data.packed.shards import PARTS, VERSION
from trainables.data.packed.workers import Task
from trainables.storage.documents import fields_of, typed


class OtherVersionError(ValueError):
    """A store that was packed by another version of this program."""


@dataclass(frozen=True)
class PackingSettings:
    """The settings that determine the pixels of a store and their division into shards.

    Attributes:
        source: fingerprint of the source set.
        short_side: the short side, in pixels, to which larger images are shrunk.
        train, val: number of images of each split.
        shard_images: number of images per shard.
        version: format version of the store.
    """

    source: str
    short_side: int
    train: int
    val: int
    shard_images: int
    version: int = VERSION

    def tasks(self) -> Iterator[Task]:
        """Yield one task per shard."""
        for part in PARTS:
            count = getattr(self, part)
            for number, first in enumerate(range(0, count, self.shard_images)):
                yield Task(part, number, first, min(count, first + self.shard_images))

    @classmethod
    def from_json(cls, document: object) -> "PackingSettings":
        """Read the settings from the fields of a document.

        Raises:
            DocumentError: A field is missing or has the wrong type.
        """
        return typed(cls, {"version": None, **fields_of(document)})


@dataclass(frozen=True)
class PackingState:
    """The content of ``settings.json``.

    Attributes:
        unreadable: size in bytes of each image that could not be read when packing ended, by
            ``split/class/file``.
    """

    settings: PackingSettings
    unreadable: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        unreadable = {"unreadable": self.unreadable} if self.unreadable else {}
        return asdict(self.settings) | unreadable

    @classmethod
    def from_json(cls, document: object) -> "PackingState":
        """Validate a decoded document.

        Raises:
            DocumentError: A field is missing or has the wrong type.
        """
        settings = PackingSettings.from_json(document)
        return typed(cls, {"unreadable": {}, **fields_of(document), "settings": settings})


@dataclass(frozen=True)
class PackedRecord:
    """The content of ``packed.json``.

    Attributes:
        fingerprint: identifies the content of the store.
        counts: number of packed images, by split.
        bytes: size of all pixels.
        skipped: ``split/class/file`` of each image that could not be read.
        shards: digests of the shard indexes in order, by split.
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
        """Validate a decoded document.

        Raises:
            OtherVersionError: The document has another version or no version.
            DocumentError: A field is missing or has the wrong type.
        """
        if isinstance(document, dict) and document.get("version") != VERSION:
            raise OtherVersionError("it was packed by another version of this program")
        settings = PackingSettings.from_json(document)
        return typed(cls, {**fields_of(document), "settings": settings})
