"""Parquet shards of encoded images, in the layout of the Hugging Face hub (ImageNet for example).

Opened by ``open_data`` for the data name ``parquet``.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.ignored import IgnoredCounter
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.sources.image_files import is_hidden
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
    the label names of the hub's metadata, in their order; else the sorted distinct labels. A name
    that several classes have (ImageNet has two ``crane``) gets the number of the class appended
    (``crane 134``), since classes are matched by name. Images are named ``class/file name``, or by
    row number if file names are missing or not unique. Rows with a hidden path are ignored.

    Opening reads labels and paths, but no image. Reading an image reads its row group (100 images
    for the hub's ImageNet; the last two row groups are cached), so pack such a set before training
    on it. Parquet does not store the size of an image: ``sizes`` are the mean size of the row group
    (slightly too large), and the fingerprint covers names, labels and the compressed sizes of the
    row groups.

    Raises:
        RequestError: Shards are missing or damaged, or are of several uploads; a column has the
            wrong type; a label has no class; the shards number their classes differently; there
            are fewer than two classes, or the classes of the two splits differ.
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
        for name, split in zip((train, val), splits, strict=True):
            _check_labels(root, name, split.labels)
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
        ignored = IgnoredCounter()
        for split in splits:
            ignored.update(split.ignored)
        super().__init__(names, parts[0], parts[1], _fingerprint(parts, splits), ignored.files)


def shards(root: Path, split: str) -> list[Path]:
    """Return the files of a split, sorted, from the first pattern that matches; may be empty."""
    return next((files for _, files in _places(root, split)), [])


def _places(root: Path, split: str) -> Iterator[tuple[str, list[Path]]]:
    """Yield each pattern that matches files of a split, with the files, sorted."""
    names = ["val", "validation"] if split == "val" else [split]
    for folder in ("", "data/"):
        for name in names:
            for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet"):
                files = sorted(
                    file for file in root.glob(folder + pattern) if not is_hidden(file.name)
                )
                if files:
                    yield folder + pattern, files


def _complete(root: Path, split: str) -> list[Path]:
    """Return the shards of a split.

    Raises:
        RequestError: There are none, fewer than the number in their names, or those of several
            uploads.
    """
    places = list(_places(root, split))
    if len(places) > 1:
        patterns = " and ".join(f"{pattern} ({len(files)})" for pattern, files in places)
        raise RequestError(
            f"the {split} images in {str(root)!r} are there twice, as {patterns}: "
            "keep one of them and move the others to another folder"
        )
    files = places[0][1] if places else []
    if not files:
        raise RequestError(
            f"no {split}-*.parquet in {str(root)!r} or its data/: "
            "pass the folder that holds the shards"
        )
    for total, uploads in _by_total(files, split).items():
        missing = sorted(set(range(total)) - uploads.keys())
        if missing:
            raise RequestError(
                f"{len(missing)} of {total} {split} shards are missing in "
                f"{str(files[0].parent)!r} (the first is number {missing[0]}): download them"
            )
    return files


def _by_total(files: Sequence[Path], split: str) -> dict[int, dict[int, Path]]:
    """Return the shards of each number by total and number; empty if the names have no numbers.

    The id that the hub once appended to the name differs between the shards of one upload, so only
    totals and numbers tell uploads apart.

    Raises:
        RequestError: The shards are of several uploads, or others are between numbered ones.
    """

    def several(first: Path, other: Path) -> RequestError:
        return RequestError(
            f"{str(first.parent)!r} has {split} shards of several uploads (for example "
            f"{first.name!r} and {other.name!r}): keep those of one and move the others to "
            "another folder"
        )

    by_total: dict[int, dict[int, Path]] = {}
    unnumbered = []
    for file in files:
        match = SHARD_NUMBER.search(file.name)
        if match is None:
            unnumbered.append(file)
            continue
        numbered = by_total.setdefault(int(match[2]), {})
        if (other := numbered.setdefault(int(match[1]), file)) is not file:
            raise several(other, file)
    first = [next(iter(numbered.values())) for numbered in by_total.values()]
    if len(first + unnumbered[:1]) > 1 and first:
        raise several(*(first + unnumbered)[:2])
    return by_total


def _check_labels(root: Path, split: str, labels: Sequence[int | str]) -> None:
    """Raise RequestError if images have a label that means "no class"."""
    without = [label for label in labels if label == "" or (isinstance(label, int) and label < 0)]
    if without:
        raise RequestError(
            f"{len(without)} of {len(labels)} images of the split {split!r} in {str(root)!r} have "
            f"no class (label {without[0]!r}): pass a split whose images all have labels"
        )


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
        RequestError: The splits have labels of different types, a label has no class, or the shards
            number their classes differently.
    """
    if len({type(split.labels[0]) for split in splits}) > 1:
        raise RequestError(
            f"labels of the shards in {str(root)!r} are numbers in one split and text in the "
            "other: use one type"
        )
    rows = [np.array(split.labels) for split in splits]
    distinct = sorted({label for labels in rows for label in np.unique(labels).tolist()})
    wnids = _wnids(root, rows, stems)
    if set(wnids) == set(distinct):
        names = sorted(wnids.values())
        number = {label: names.index(wnid) for label, wnid in wnids.items()}
    elif isinstance(distinct[0], int) and (label_names := _label_names(splits)):
        names, number = _unique(label_names), {label: label for label in distinct}
        if distinct[-1] >= len(label_names):
            raise RequestError(
                f"label {distinct[-1]} in {str(root)!r} is not one of its {len(label_names)} "
                "classes: pass a set whose images all have labels"
            )
    else:
        names, number = (
            _unique([str(label) for label in distinct]),
            {label: i for i, label in enumerate(distinct)},
        )
    return names, [
        np.array([number[label] for label in labels.tolist()], dtype=np.int64) for labels in rows
    ]


def _label_names(splits: Sequence[Shards]) -> list[str] | None:
    """Return the hub's names of the class numbers; None if no shard has them.

    Raises:
        RequestError: Two shards number the classes differently.
    """
    named = [
        (file, names)
        for split in splits
        for file, names in zip(split.files, split.label_names, strict=True)
        if names
    ]
    if not named:
        return None
    first_file, first = named[0]
    for file, names in named[1:]:
        if names != first:
            pairs = enumerate(zip_longest(first, names))
            label, (one, other) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
            raise RequestError(
                f"class {label} is {one!r} in {str(first_file)!r} and {other!r} in {file.name!r}: "
                "use the shards of one upload"
            )
    return first


def _unique(names: Sequence[str]) -> list[str]:
    """Return the names with the number of the class appended to each that occurs repeatedly.

    Two names with the same folder name count as the same name.
    """
    unique = list(names)
    while True:
        counts = Counter(map(_folder, unique))
        if len(counts) == len(unique):
            return unique
        unique = [
            f"{name} {number}" if counts[_folder(name)] > 1 else name
            for number, name in enumerate(unique)
        ]


def _folder(name: str) -> str:
    return name.replace("/", "_")


def _wnids(
    root: Path, rows: list[np.ndarray], stems: list[list[tuple[str, str | None]]]
) -> dict[int | str, str]:
    """Return the wnid of each label that has one.

    The result is empty if a label has several wnids or several labels share one.

    Raises:
        RequestError: Labels and wnids belong together in each split, but not across the splits.
    """
    splits = []
    for labels, split_stems in zip(rows, stems, strict=True):
        pairs = zip(labels.tolist(), (wnid for _, wnid in split_stems), strict=True)
        splits.append({(label, wnid) for label, wnid in pairs if wnid})
    together = set().union(*splits)
    if _is_one_to_one(together):
        return dict(together)
    if all(map(_is_one_to_one, splits)):
        first, other = map(dict, splits)
        shared = sorted(label for label in first.keys() & other.keys())
        label = next((label for label in shared if first[label] != other[label]), None)
        if label is None:
            # Their labels are different, but they share a wnid.
            return {}
        raise RequestError(
            f"label {label!r} in {str(root)!r} is class {first[label]!r} by the paths of one split "
            f"and {other[label]!r} by those of the other: use the shards of one upload"
        )
    return {}


def _is_one_to_one(pairs: set[tuple[int | str, str]]) -> bool:
    labels, wnids = {label for label, _ in pairs}, {wnid for _, wnid in pairs}
    return len(labels) == len(wnids) == len(pairs)


def _part(
    split: Shards, stems: list[tuple[str, str | None]], classes: list[str], labels: np.ndarray
) -> ParquetPart:
    files = [name for name, _ in stems]
    folders = [_folder(classes[label]) for label in labels]
    names = [f"{folder}/{file}" for folder, file in zip(folders, files, strict=True)]
    if not all(files) or len(set(names)) < len(names):
        suffix = split.suffix
        names = [
            f"{folder}/{row:08d}{suffix}" for row, folder in zip(split.rows, folders, strict=True)
        ]
    order = np.array(
        sorted(range(len(names)), key=lambda index: names[index].split("/")), dtype=np.int64
    )
    rows = split.rows[order]
    reader = RowGroups(split, rows)
    groups = np.searchsorted(split.starts, rows, "right") - 1
    return ParquetPart(
        [names[index] for index in order],
        labels[order],
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
