"""Any ImageFolder tree: ``<path>/train/<class>/<image>`` and ``<path>/val/<class>/<image>``."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.sources.encoded import EncodedData, Part

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})


class ImageFolderData(EncodedData):
    """Classes are the folders of ``train`` in sorted order; ``val`` must hold the same classes."""

    def __init__(self, path: str, train: str = "train", val: str = "val") -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise RequestError(
                f"data folder {str(root)!r} does not exist: give the folder that holds {train}/ and {val}/"
            )
        parts = [scan(root, part) for part in (train, val)]
        classes = sorted({file.parts[0] for file, _ in parts[0]})
        if len(classes) < 2:
            raise RequestError(
                f"data folder {str(root / train)!r} has {len(classes)} class: an ImageFolder tree needs two class folders or more"
            )
        check_classes(
            classes,
            {file.parts[0] for file, _ in parts[1]},
            f"{train}/ and {val}/ of {str(root)!r}",
        )
        number = {name: i for i, name in enumerate(classes)}
        files = [
            _part(root / part, found, number)
            for part, found in zip((train, val), parts, strict=True)
        ]
        super().__init__(classes, files[0], files[1], fingerprint("imagefolder", parts))


def check_classes(train: Iterable[str], val: Iterable[str], where: str) -> None:
    """Both splits must hold the same classes.

    Raises:
        RequestError: they do not; it names the first that is in only one.
    """
    strange = sorted(set(train) ^ set(val))
    if strange:
        raise RequestError(
            f"class {strange[0]!r} is in only one of {where}: both must hold the same classes"
        )


def _part(base: Path, found: list[tuple[Path, int]], number: dict[str, int]) -> Part:
    names = [file.as_posix() for file, _ in found]
    labels = np.array([number[file.parts[0]] for file, _ in found], dtype=np.int64)
    files = Files(base, names)
    return Part(
        names,
        labels,
        np.array([size for _, size in found], dtype=np.int64),
        files.read,
        files.place,
    )


def scan(root: Path, part: str) -> list[tuple[Path, int]]:
    """(class/.../file, bytes) of every image, sorted."""
    base = root / part
    if not base.is_dir():
        raise RequestError(
            f"data folder {str(root)!r} has no {part}/: it must hold train/ and val/, one folder a class in each"
        )
    found = (
        (file.relative_to(base), file.stat().st_size)
        for file in base.glob("*/**/*")
        if file.suffix.lower() in EXTENSIONS
    )
    files = sorted(found)
    if not files:
        raise RequestError(
            f"data folder {str(base)!r} holds no images ({', '.join(sorted(EXTENSIONS))}) in class folders"
        )
    return files


def fingerprint(kind: str, parts: Sequence[Sequence[tuple[PurePath, int]]]) -> str:
    """Of every part's (class/.../file, bytes), in their order."""
    digest = hashlib.sha256()
    for files in parts:
        for file, size in files:
            digest.update(f"{file.as_posix()} {size}\n".encode())
        digest.update(b"--\n")
    return f"{kind}-{digest.hexdigest()[:16]}"


class Files:
    """Files by number; picklable, so that loader processes can have it."""

    def __init__(self, base: Path, names: list[str]) -> None:
        self._base, self._names = base, names

    def read(self, index: int) -> bytes:
        return (self._base / self._names[index]).read_bytes()

    def place(self, index: int) -> str:
        return str(self._base / self._names[index])
