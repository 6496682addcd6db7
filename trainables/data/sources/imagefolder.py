"""ImageFolder trees: ``<path>/train/<class>/<image>`` and ``<path>/val/<class>/<image>``.

Opened by ``open_data`` for the data name ``imagefolder``; the other sources use its helpers.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.sources.encoded import EncodedData, Part

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})


class ImageFolderData(EncodedData):
    """An ImageFolder tree.

    The classes are the folders of ``train`` in sorted order; ``val`` must have the same classes.

    Raises:
        RequestError: A folder is missing or has no images, there are fewer than two classes, or the
            classes of the two splits differ.
    """

    def __init__(self, path: str, train: str = "train", val: str = "val") -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise RequestError(
                f"data folder {str(root)!r} does not exist: "
                f"pass the folder that holds {train}/ and {val}/"
            )
        parts = [scan(root, part) for part in (train, val)]
        classes = sorted({file.parts[0] for file, _ in parts[0]})
        if len(classes) < 2:
            raise RequestError(
                f"data folder {str(root / train)!r} has {len(classes)} class: "
                "an ImageFolder tree needs two or more class folders"
            )
        check_classes(
            classes,
            {file.parts[0] for file, _ in parts[1]},
            f"{train}/ and {val}/ of {str(root)!r}",
        )
        number = {name: i for i, name in enumerate(classes)}
        train_part, val_part = (
            _part(root / split, files, number)
            for split, files in zip((train, val), parts, strict=True)
        )
        super().__init__(classes, train_part, val_part, fingerprint("imagefolder", parts))


def check_classes(train: Iterable[str], val: Iterable[str], where: str) -> None:
    """Check that both splits have the same classes.

    Raises:
        RequestError: They differ; the message names the first class that is in one split only.
    """
    unmatched = sorted(set(train) ^ set(val))
    if unmatched:
        raise RequestError(
            f"class {unmatched[0]!r} is in only one of {where}: both must have the same classes"
        )


def _part(base: Path, images: list[tuple[Path, int]], number: dict[str, int]) -> Part:
    names = [file.as_posix() for file, _ in images]
    labels = np.array([number[file.parts[0]] for file, _ in images], dtype=np.int64)
    files = Files(base, names)
    return Part(
        names,
        labels,
        np.array([size for _, size in images], dtype=np.int64),
        files.read,
        files.place,
    )


def scan(root: Path, part: str) -> list[tuple[Path, int]]:
    """Return (class/.../file, size in bytes) of each image of a split, sorted.

    Raises:
        RequestError: The folder of the split is missing or has no images.
    """
    base = root / part
    if not base.is_dir():
        raise RequestError(
            f"data folder {str(root)!r} has no {part}/: "
            "it must hold train/ and val/ with one folder per class in each"
        )
    files = sorted(
        (file.relative_to(base), file.stat().st_size)
        for file in base.glob("*/**/*")
        if file.suffix.lower() in EXTENSIONS
    )
    if not files:
        raise RequestError(
            f"data folder {str(base)!r} has no images ({', '.join(sorted(EXTENSIONS))}) "
            "in class folders"
        )
    return files


def fingerprint(kind: str, parts: Sequence[Sequence[tuple[PurePath, int]]]) -> str:
    """Return the fingerprint of (class/.../file, size in bytes) of each image of each split.

    It depends on the order.
    """
    digest = hashlib.sha256()
    for files in parts:
        for file, size in files:
            digest.update(f"{file.as_posix()} {size}\n".encode())
        digest.update(b"--\n")
    return f"{kind}-{digest.hexdigest()[:16]}"


class Files:
    """Reads files by index; picklable for loader processes."""

    def __init__(self, base: Path, names: list[str]) -> None:
        self._base, self._names = base, names

    def read(self, index: int) -> bytes:
        return (self._base / self._names[index]).read_bytes()

    def place(self, index: int) -> str:
        return str(self._base / self._names[index])
