"""Selection of the images of a subset: drawn as ImageNet-100 in the paper (section 4.1), or listed.

Called by ``tinynet data imagenet100``.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.subset.file_list import SPLITS, Row, from_csv

VERSION = 1  # bump whenever the same seed draws different images
DRAWING = (
    "Of n items in sorted order, those with the smallest of n numbers of numpy's "
    "Generator(PCG64(key)).random(n) are kept: classes with the key [1, seed, 0], the training "
    "images of a class with the key [1, seed, 1, the first 8 bytes of the SHA-256 of its name as a "
    "big-endian number]; all validation images of the classes."
)
DrawnFrom = Literal["seed", "classes", "list"]
DRAWN_FROM: tuple[DrawnFrom, ...] = get_args(DrawnFrom)


@dataclass(frozen=True)
class Drawn:
    """How a subset was selected; ``seed`` and ``images_per_class`` are None for a list."""

    drawn_from: DrawnFrom
    seed: int | None
    images_per_class: int | None


@dataclass(frozen=True)
class Selection:
    """A subset of a set.

    Attributes:
        drawn: how it was selected.
        classes: the names of the classes, sorted.
        chosen: indices into ``train`` and ``val`` of the set, int64, sorted.
        expected: the row of each listed file by split and name; its content must match.
    """

    drawn: Drawn
    classes: list[str]
    chosen: dict[str, np.ndarray]
    expected: Mapping[tuple[str, str], Row] = field(default_factory=dict)


def draw(
    data: EncodedData, seed: int, images_per_class: int, classes: int | Sequence[str]
) -> Selection:
    """Draw a number of random classes and training images per class.

    The subset has all validation images of the classes. It depends on the seed and the sorted names
    alone, and the images of a class do not depend on the other classes.

    Args:
        classes: the number of classes to draw, or the names of the classes.

    Raises:
        RequestError: There are too few classes, or too few training images of a class.
    """
    available = sorted(data.class_names)
    if isinstance(classes, int):
        if classes > len(available):
            raise RequestError(
                f"expected {classes} or more classes, got {len(available)}: "
                f"pass --num-classes {len(available)} or fewer"
            )
        names = [available[i] for i in _lowest([VERSION, seed, 0], len(available), classes)]
    else:
        names = sorted(classes)
    number = {name: i for i, name in enumerate(data.class_names)}
    members = _by_class(data.train, len(number))
    counts = {name: len(members[number[name]]) for name in names}
    smallest = min(names, key=lambda name: counts[name])
    if counts[smallest] < images_per_class:
        raise RequestError(
            f"class {smallest!r}: expected {images_per_class} or more training images, "
            f"got {counts[smallest]}: pass --images-per-class {counts[smallest]} or fewer, "
            "or --classes with other classes"
        )
    train = [
        members[number[name]][_lowest(_key(seed, name), counts[name], images_per_class)]
        for name in names
    ]
    val = np.flatnonzero(np.isin(data.val.labels, [number[name] for name in names]))
    drawn = Drawn("seed" if isinstance(classes, int) else "classes", seed, images_per_class)
    return Selection(drawn, names, {"train": np.sort(np.concatenate(train)), "val": val})


def _key(seed: int, name: str) -> list[int]:
    """Return the key of the random numbers of a class."""
    return [VERSION, seed, 1, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")]


def _lowest(key: list[int], n: int, count: int) -> np.ndarray:
    """Return the sorted indices of the ``count`` smallest of ``n`` random numbers."""
    # PCG64 is explicit: numpy may change the generator of default_rng, but not the stream of PCG64.
    return np.sort(
        np.argsort(np.random.Generator(np.random.PCG64(key)).random(n), kind="stable")[:count]
    )


def _by_class(part: Part, classes: int) -> list[np.ndarray]:
    """Image indices of each class, in the order of the names."""
    order = np.argsort(part.labels, kind="stable")
    return np.split(order, np.searchsorted(part.labels[order], np.arange(1, classes)))


def class_list(file: Path, known: Sequence[str]) -> list[str]:
    """Read a published list of classes.

    A class is the first column of a line. Blank lines and ``#`` comments are skipped.

    Args:
        known: the classes of the set.

    Raises:
        RequestError: The file cannot be read, has fewer than two classes, or has classes that are
            not in the set.
    """
    try:
        lines = [
            line.partition("#")[0].strip()
            for line in file.read_text(encoding="utf-8-sig").splitlines()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"class list {str(file)!r} cannot be read: {error}") from error
    valid = set(known)
    # The name of a class may itself contain spaces or commas.
    columns = [
        line if line in valid else line.replace(",", " ").split()[0]
        for line in lines
        if line.strip(", ")
    ]
    names = list(dict.fromkeys(columns))
    if len(names) < 2:
        raise RequestError(
            f"class list {str(file)!r} has {len(names)} class: expected two or more, one per line"
        )
    unknown = [name for name in names if name not in valid]
    if unknown:
        examples = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise RequestError(
            f"{len(unknown)} of {len(names)} classes of {str(file)!r} are not in the images: "
            f"{examples}"
        )
    return names


def select_listed(data: EncodedData, file: Path) -> Selection:
    """Select exactly the files of a ``files.csv``.

    Raises:
        RequestError: The file is not such a list, lists a file twice, or has files that are not in
            the set.
    """
    rows = from_csv(file)
    path, count = Counter(row.path for row in rows).most_common(1)[0]
    if count > 1:
        raise RequestError(f"{str(file)!r} lists {path!r} {count} times: list each file once")
    chosen = {}
    for split, part in zip(SPLITS, (data.train, data.val), strict=True):
        index = {name: i for i, name in enumerate(part.names)}
        names = [row.name for row in rows if row.split == split]
        missing = [name for name in names if name not in index]
        if missing:
            raise RequestError(
                f"{len(missing)} {split} images of {str(file)!r} are not in the set "
                f"(for example {missing[0]!r}): pass the set that the list was made from"
            )
        chosen[split] = np.sort(np.array([index[name] for name in names], dtype=np.int64))
    return Selection(
        Drawn("list", None, None),
        sorted({row.folder for row in rows}),
        chosen,
        {(row.split, row.name): row for row in rows},
    )
