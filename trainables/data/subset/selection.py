"""Which images of a set make a subset: drawn as the paper drew ImageNet-100 (section 4.1), or listed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.subset.file_list import SPLITS, Row, from_csv

VERSION = 1  # bump whenever the same seed draws other images
DRAWING = (
    "Of n things in sorted order, those with the smallest of n numbers of numpy's Generator(PCG64(key)).random(n) are kept: "
    "classes with the key [1, seed, 0], the training images of a class with the key [1, seed, 1, the first 8 bytes of the "
    "SHA-256 of its name as a big-endian number]; all validation images of the classes."
)
DrawnFrom = Literal["seed", "classes", "list"]
DRAWN_FROM: tuple[DrawnFrom, ...] = get_args(DrawnFrom)


@dataclass(frozen=True)
class Drawn:
    """How a subset was chosen: ``seed`` and ``images_per_class`` are None for a list."""

    drawn_from: DrawnFrom
    seed: int | None
    images_per_class: int | None


@dataclass(frozen=True)
class Selection:
    """A subset of a set.

    Attributes:
        drawn: how it was chosen.
        classes: their names, sorted.
        chosen: indices into the set's ``train`` and ``val``, int64, sorted.
        expected: what a listed file, by split and name, must turn out to be.
    """

    drawn: Drawn
    classes: list[str]
    chosen: dict[str, np.ndarray]
    expected: Mapping[tuple[str, str], Row] = field(default_factory=dict)


def draw(
    data: EncodedData, seed: int, images_per_class: int, classes: int | Sequence[str]
) -> Selection:
    """So many random classes, or those given, so many random training images of each, and all their validation images.

    It depends on the seed and the sorted names alone. The images of a class do not depend on the other classes.

    Raises:
        RequestError: too few classes, or too few training images of a class.
    """
    there = sorted(data.class_names)
    if isinstance(classes, int):
        if classes > len(there):
            raise RequestError(
                f"there are {len(there)} classes and {classes} are wanted: pass --num-classes {len(there)} or fewer"
            )
        names = [there[i] for i in _lowest([VERSION, seed, 0], len(there), classes)]
    else:
        names = sorted(classes)
    number = {name: i for i, name in enumerate(data.class_names)}
    members = _by_class(data.train, len(number))
    counts = {name: len(members[number[name]]) for name in names}
    least = min(names, key=lambda name: counts[name])
    if counts[least] < images_per_class:
        few = (
            f"class {least!r} has {counts[least]} training images and {images_per_class} are wanted"
        )
        raise RequestError(
            f"{few}: pass --images-per-class {counts[least]} or fewer, or --classes with others"
        )
    train = [
        members[number[name]][_lowest(_key(seed, name), counts[name], images_per_class)]
        for name in names
    ]
    val = np.flatnonzero(np.isin(data.val.labels, [number[name] for name in names]))
    drawn = Drawn("seed" if isinstance(classes, int) else "classes", seed, images_per_class)
    return Selection(drawn, names, {"train": np.sort(np.concatenate(train)), "val": val})


def _key(seed: int, name: str) -> list[int]:
    return [VERSION, seed, 1, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")]


def _lowest(key: list[int], n: int, count: int) -> np.ndarray:
    # PCG64 by name: numpy may one day give default_rng another generator, and never changes this one's numbers.
    return np.sort(
        np.argsort(np.random.Generator(np.random.PCG64(key)).random(n), kind="stable")[:count]
    )


def _by_class(part: Part, classes: int) -> list[np.ndarray]:
    """Image indices of each class, in the order of the names."""
    order = np.argsort(part.labels, kind="stable")
    return np.split(order, np.searchsorted(part.labels[order], np.arange(1, classes)))


def class_list(file: Path, known: Sequence[str]) -> list[str]:
    """The classes that a published list names: the first column of each line; blank lines and ``#`` comments are skipped.

    Raises:
        RequestError: the file cannot be read, names no class, or classes that are not there.
    """
    try:
        lines = [
            line.partition("#")[0].strip()
            for line in file.read_text(encoding="utf-8-sig").splitlines()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"class list {str(file)!r} cannot be read: {error}") from error
    among = set(known)
    names = list(
        dict.fromkeys(
            line if line in among else line.replace(",", " ").split()[0]
            for line in lines
            if line.strip(", ")
        )
    )
    if len(names) < 2:
        raise RequestError(
            f"class list {str(file)!r} names {len(names)} class: give two or more, one a line"
        )
    strange = [name for name in names if name not in among]
    if strange:
        some = ", ".join(map(repr, strange[:5])) + (", ..." if len(strange) > 5 else "")
        raise RequestError(
            f"{len(strange)} of {len(names)} classes of {str(file)!r} are not in the images: {some}"
        )
    return names


def listed(data: EncodedData, file: Path) -> Selection:
    """Exactly the files of a ``files.csv``.

    Raises:
        RequestError: it is no such list, or names files that are not there.
    """
    rows = from_csv(file)
    chosen = {}
    for split, part in zip(SPLITS, (data.train, data.val), strict=True):
        index = {name: i for i, name in enumerate(part.names)}
        wanted = [row.name for row in rows if row.split == split]
        missing = [name for name in wanted if name not in index]
        if missing:
            raise RequestError(
                f"{len(missing)} {split} images of {str(file)!r} are not there ({missing[0]!r} first): another ImageNet?"
            )
        chosen[split] = np.sort(np.array([index[name] for name in wanted], dtype=np.int64))
    return Selection(
        Drawn("list", None, None),
        sorted({row.folder for row in rows}),
        chosen,
        {(row.split, row.name): row for row in rows},
    )
