"""Parquet shards of encoded images, as the Hugging Face hub lays image sets out (ImageNet among them)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.sources.imagefolder import check_classes
from trainables.data.sources.row_groups import RowGroups, Shards, listed

WNID = r"n\d{8}"
# The hub appends the wnid to every ImageNet name; training images begin with it in the original.
APPENDED = re.compile(rf"(.+)_({WNID})")
LEADING = re.compile(rf"({WNID})_.+")
NUMBERED = re.compile(r"-(\d+)-of-(\d+)\b")


@dataclass(frozen=True)
class ParquetPart(Part):
    """A split whose images lie in row groups.

    Attributes:
        order: image indices, int64 (n,), in the order in which they lie: whoever reads many reads each row group once.
    """

    order: np.ndarray


class ParquetData(EncodedData):
    """Shards ``train-*.parquet`` and ``validation-*.parquet`` (or ``val-*``), in the folder or in its ``data/``.

    ``image`` is a struct of ``bytes`` and ``path``, or binary; ``label`` is a class number, or text. Classes are the
    wnids in the images' paths where every label has one of its own (in sorted order), else the label names of the hub's
    metadata (in theirs), else the sorted distinct labels. Images are named ``class/file name``; where rows have no file
    names, or the same twice, by their number.

    Opening reads labels and paths, never an image. An image costs the read of its row group (100 images on the hub's
    ImageNet; the last two are kept), so pack such a set before training on it. Parquet does not say how long an
    image is: ``sizes`` are its row group's share (a little too much), and the fingerprint is made of names, labels and
    the row groups' compressed sizes.

    Raises:
        RequestError: no shards, some missing or damaged, columns of other types, labels that name no class, fewer than
            two classes, classes that differ.
    """

    def __init__(
        self,
        path: str,
        train: str = "train",
        val: str = "val",
        image: str = "image",
        label: str = "label",
    ) -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise RequestError(
                f"data folder {str(root)!r} does not exist: give the folder that holds {train}-*.parquet"
            )
        splits = [listed(_complete(root, split), image, label) for split in (train, val)]
        stems = [[_stem(path) for path in split.paths] for split in splits]
        names, numbers = _classes(root, splits, stems)
        used = [{names[i] for i in np.unique(labels)} for labels in numbers]
        if len(names) < 2:
            raise RequestError(
                f"the shards in {str(root)!r} have {len(names)} class: two classes or more are needed"
            )
        check_classes(used[0], used[1], f"{train} and {val} of {str(root)!r}")
        parts = [
            _part(split, found, names, labels)
            for split, found, labels in zip(splits, stems, numbers, strict=True)
        ]
        super().__init__(names, parts[0], parts[1], _fingerprint(parts, splits))


def shards(root: Path, split: str) -> list[Path]:
    """A split's files, sorted; none where there are none."""
    others = {"val": ["val", "validation"]}.get(split, [split])
    patterns = [
        pattern
        for name in others
        for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet")
    ]
    found = ((folder, pattern) for folder in (root, root / "data") for pattern in patterns)
    return next((files for folder, pattern in found if (files := sorted(folder.glob(pattern)))), [])


def _complete(root: Path, split: str) -> list[Path]:
    """A split's shards, if all that their names speak of are there."""
    files = shards(root, split)
    if not files:
        raise RequestError(
            f"no {split}-*.parquet in {str(root)!r} or its data/: give the folder that holds the shards"
        )
    numbered = [match for file in files if (match := NUMBERED.search(file.name))]
    for total in {int(match[2]) for match in numbered}:
        there = {int(match[1]) for match in numbered if int(match[2]) == total}
        missing = sorted(set(range(total)) - there)
        if missing:
            raise RequestError(
                f"{len(missing)} of {total} {split} shards are not in {str(files[0].parent)!r} (number {missing[0]} first)"
            )
    return files


def _stem(path: str | None) -> tuple[str, str | None]:
    """A row's original file name and wnid, as far as it has them."""
    name = PurePosixPath(path or "")
    if match := APPENDED.fullmatch(name.stem):
        return match[1] + name.suffix, match[2]
    match = LEADING.fullmatch(name.stem)
    return name.name, match and match[1]


def _classes(
    root: Path, splits: Sequence[Shards], stems: list[list[tuple[str, str | None]]]
) -> tuple[list[str], list[np.ndarray]]:
    """Class names, and the class of every image of each split, int64 (n,)."""
    if len({type(split.labels[0]) for split in splits}) > 1:
        raise RequestError(
            f"labels of the shards in {str(root)!r} are numbers in one split and text in the other: make them alike"
        )
    rows = [np.array(split.labels) for split in splits]
    distinct = sorted({label for labels in rows for label in np.unique(labels).tolist()})
    wnids = _wnids(rows, stems)
    given = splits[0].label_names
    if set(wnids) == set(distinct):
        names = sorted(wnids.values())
        number = {label: names.index(wnid) for label, wnid in wnids.items()}
    elif given and isinstance(distinct[0], int):
        names, number = given, {label: label for label in distinct}
        if not 0 <= distinct[0] <= distinct[-1] < len(given):
            wrong = distinct[0] if distinct[0] < 0 else distinct[-1]
            raise RequestError(
                f"label {wrong} in {str(root)!r} is none of its {len(given)} classes: are these labelled images?"
            )
    else:
        names, number = (
            [str(label) for label in distinct],
            {label: i for i, label in enumerate(distinct)},
        )
    return names, [
        np.array([number[label] for label in labels.tolist()], dtype=np.int64) for labels in rows
    ]


def _wnids(
    rows: list[np.ndarray], stems: list[list[tuple[str, str | None]]]
) -> dict[int | str, str]:
    """The wnid of each label that has one; none where a label has several, or two labels the same."""
    pairs = {
        pair
        for labels, found in zip(rows, stems, strict=True)
        for pair in zip(labels.tolist(), (w for _, w in found), strict=True)
    }
    known = [(label, wnid) for label, wnid in pairs if wnid]
    alone = len({label for label, _ in known}) == len({wnid for _, wnid in known}) == len(known)
    return dict(known) if alone else {}


def _part(
    split: Shards, stems: list[tuple[str, str | None]], classes: list[str], labels: np.ndarray
) -> ParquetPart:
    files = [name for name, _ in stems]
    folders = [classes[label].replace("/", "_") for label in labels]
    names = [f"{folder}/{file}" for folder, file in zip(folders, files, strict=True)]
    if not all(files) or len(set(names)) < len(names):
        names = [f"{folder}/{row:08d}{split.suffix}" for row, folder in enumerate(folders)]
    rows = np.array(
        sorted(range(len(names)), key=lambda row: names[row].split("/")), dtype=np.int64
    )
    reader = RowGroups(split, rows)
    groups = np.searchsorted(split.starts, rows, "right") - 1
    sorted_names = [names[row] for row in rows]
    return ParquetPart(
        sorted_names,
        labels[rows],
        split.mean_bytes[groups],
        reader.read,
        reader.place,
        np.argsort(rows),
    )


def _fingerprint(parts: Sequence[Part], splits: Sequence[Shards]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for part, split in zip(parts, splits, strict=True):
        digest.update(
            "".join(
                f"{name} {label}\n" for name, label in zip(part.names, part.labels, strict=True)
            ).encode()
        )
        groups = zip(np.diff(split.starts), split.compressed, strict=True)
        digest.update("".join(f"{rows} {size}\n" for rows, size in groups).encode() + b"--\n")
    return f"parquet-{digest.hexdigest()[:16]}"
