"""Parquet shards of encoded images, in the layout of the Hugging Face hub (ImageNet for example).

Opened by ``open_data`` for the data name ``parquet``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.sources.imagefolder import check_classes
from trainables.data.sources.row_groups import RowGroups, Shards, scan_shards

WNID = r"n\d{8}"
# The hub appends the wnid to each ImageNet name; names of original training images begin with it.
WNID_SUFFIX = re.compile(rf"(.+)_({WNID})")
WNID_PREFIX = re.compile(rf"({WNID})_.+")
SHARD_NUMBER = re.compile(r"-(\d+)-of-(\d+)\b")


@dataclass(frozen=True)
class ParquetPart(Part):
    """A split whose images are stored in row groups.

    Attributes:
        order: int64 (n,), image indices in storage order. Reading in this order reads each row
            group once.
    """

    order: np.ndarray


class ParquetData(EncodedData):
    """Shards ``train-*.parquet`` and ``validation-*.parquet`` (or ``val-*``) in a folder.

    The shards are in the folder or in its ``data/``. Column ``image`` is a struct of ``bytes`` and
    ``path``, or binary; column ``label`` is a class number or text. The classes are the wnids in
    the paths of the images, sorted, if each label has exactly one and no two labels share one; else
    the label names of the hub's metadata, in their order; else the sorted distinct labels. Images
    are named ``class/file name``, or by row number if file names are missing or not unique.

    Opening reads labels and paths, but no image. Reading an image reads its row group (100 images
    for the hub's ImageNet; the last two row groups are cached), so pack such a set before training
    on it. Parquet does not store the size of an image: ``sizes`` are the mean size of the row group
    (slightly too large), and the fingerprint covers names, labels and the compressed sizes of the
    row groups.

    Raises:
        RequestError: Shards are missing or damaged, a column has the wrong type, a label has no
            class, there are fewer than two classes, or the classes of the two splits differ.
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
                f"data folder {str(root)!r} does not exist: "
                f"pass the folder that holds {train}-*.parquet"
            )
        splits = [scan_shards(_complete(root, split), image, label) for split in (train, val)]
        stems = [[_stem(path) for path in split.paths] for split in splits]
        names, numbers = _classes(root, splits, stems)
        used = [{names[i] for i in np.unique(labels)} for labels in numbers]
        if len(names) < 2:
            raise RequestError(
                f"the shards in {str(root)!r} have {len(names)} class: expected two or more"
            )
        check_classes(used[0], used[1], f"{train} and {val} of {str(root)!r}")
        parts = [
            _part(split, split_stems, names, labels)
            for split, split_stems, labels in zip(splits, stems, numbers, strict=True)
        ]
        super().__init__(names, parts[0], parts[1], _fingerprint(parts, splits))


def shards(root: Path, split: str) -> list[Path]:
    """Return the files of a split, sorted, from the first pattern that matches; may be empty."""
    names = ["val", "validation"] if split == "val" else [split]
    for folder in (root, root / "data"):
        for name in names:
            for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet"):
                if files := sorted(folder.glob(pattern)):
                    return files
    return []


def _complete(root: Path, split: str) -> list[Path]:
    """Return the shards of a split.

    Raises:
        RequestError: There are none, or fewer than the number in their names.
    """
    files = shards(root, split)
    if not files:
        raise RequestError(
            f"no {split}-*.parquet in {str(root)!r} or its data/: "
            "pass the folder that holds the shards"
        )
    numbered = [match for file in files if (match := SHARD_NUMBER.search(file.name))]
    for total in {int(match[2]) for match in numbered}:
        present = {int(match[1]) for match in numbered if int(match[2]) == total}
        missing = sorted(set(range(total)) - present)
        if missing:
            raise RequestError(
                f"{len(missing)} of {total} {split} shards are missing in "
                f"{str(files[0].parent)!r} (the first is number {missing[0]}): download them"
            )
    return files


def _stem(path: str | None) -> tuple[str, str | None]:
    """Return the original file name and the wnid of a row; the wnid is None if it has none."""
    name = PurePosixPath(path or "")
    if match := WNID_SUFFIX.fullmatch(name.stem):
        return match[1] + name.suffix, match[2]
    match = WNID_PREFIX.fullmatch(name.stem)
    return name.name, match and match[1]


def _classes(
    root: Path, splits: Sequence[Shards], stems: list[list[tuple[str, str | None]]]
) -> tuple[list[str], list[np.ndarray]]:
    """Return the class names, and the class of each image of each split, int64 (n,).

    Raises:
        RequestError: The splits have labels of different types, or a label has no class.
    """
    if len({type(split.labels[0]) for split in splits}) > 1:
        raise RequestError(
            f"labels of the shards in {str(root)!r} are numbers in one split and text in the "
            "other: use one type"
        )
    rows = [np.array(split.labels) for split in splits]
    distinct = sorted({label for labels in rows for label in np.unique(labels).tolist()})
    wnids = _wnids(rows, stems)
    label_names = splits[0].label_names
    if set(wnids) == set(distinct):
        names = sorted(wnids.values())
        number = {label: names.index(wnid) for label, wnid in wnids.items()}
    elif label_names and isinstance(distinct[0], int):
        names, number = label_names, {label: label for label in distinct}
        if not 0 <= distinct[0] <= distinct[-1] < len(label_names):
            wrong = distinct[0] if distinct[0] < 0 else distinct[-1]
            raise RequestError(
                f"label {wrong} in {str(root)!r} is not one of its {len(label_names)} classes: "
                "pass a set whose images all have labels"
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
    """Return the wnid of each label that has one.

    The result is empty if a label has several wnids or several labels share one.
    """
    pairs: set[tuple[int | str, str]] = set()
    for labels, split_stems in zip(rows, stems, strict=True):
        for label, (_, wnid) in zip(labels.tolist(), split_stems, strict=True):
            if wnid:
                pairs.add((label, wnid))
    labels_with_wnid, wnids = {label for label, _ in pairs}, {wnid for _, wnid in pairs}
    unique = len(labels_with_wnid) == len(wnids) == len(pairs)
    return dict(pairs) if unique else {}


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
