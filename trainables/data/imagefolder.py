"""Any ImageFolder tree: ``<path>/train/<class>/<image>`` and ``<path>/val/<class>/<image>``."""

import errno
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.errors import RequestError
from trainables.data import ImageData, Loader

if TYPE_CHECKING:
    import torch

    from trainables.recipe import Recipe

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})


class UnreadableImageError(RuntimeError):
    """An image that cannot be decoded; the message names the file."""


class ImageFolderData(ImageData):
    """Classes are the folders of ``train`` in sorted order; ``val`` must hold the same classes."""

    def __init__(self, path: str, train: str = "train", val: str = "val") -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise RequestError(f"data folder {str(root)!r} does not exist: give the folder that holds {train}/ and {val}/")
        parts = [_scan(root, part) for part in (train, val)]
        self.class_names: Sequence[str] = sorted({file.parts[0] for file, _ in parts[0]})
        if len(self.class_names) < 2:
            raise RequestError(
                f"data folder {str(root / train)!r} has {len(self.class_names)} class: an ImageFolder tree needs two class folders or more"
            )
        strange = sorted({file.parts[0] for file, _ in parts[1]} ^ set(self.class_names))
        if strange:
            here = f"{train}/ and {val}/ of {str(root)!r}"
            raise RequestError(f"class {strange[0]!r} is in only one of {here}: both must hold the same classes")
        number = {name: i for i, name in enumerate(self.class_names)}
        self._files = [[root / part / file for file, _ in files] for part, files in zip((train, val), parts, strict=True)]
        self._labels = [np.array([number[file.parts[0]] for file, _ in files], dtype=np.int64) for files in parts]
        self.train_size, self.val_size = len(self._files[0]), len(self._files[1])
        self.fingerprint = _fingerprint(parts)

    def loader(self, resolution: int, recipe: "Recipe", device: "torch.device") -> Loader:
        from trainables.data.per_image import PerImageLoader, Split

        train, val = (Split(_Opener(files), labels) for files, labels in zip(self._files, self._labels, strict=True))
        return PerImageLoader(train, val, resolution, recipe, device)


def _scan(root: Path, part: str) -> list[tuple[Path, int]]:
    """(class/.../file, bytes) of every image, sorted."""
    base = root / part
    if not base.is_dir():
        raise RequestError(f"data folder {str(root)!r} has no {part}/: it must hold train/ and val/, one folder a class in each")
    found = ((file.relative_to(base), file.stat().st_size) for file in base.glob("*/**/*") if file.suffix.lower() in EXTENSIONS)
    files = sorted(found)
    if not files:
        raise RequestError(f"data folder {str(base)!r} holds no images ({', '.join(sorted(EXTENSIONS))}) in class folders")
    return files


def _fingerprint(parts: list[list[tuple[Path, int]]]) -> str:
    digest = hashlib.sha256()
    for files in parts:
        for file, size in files:
            digest.update(f"{file.as_posix()} {size}\n".encode())
        digest.update(b"--\n")
    return f"imagefolder-{digest.hexdigest()[:16]}"


class _Opener:
    """Opens images by number; picklable, so that loader processes can have it."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def __call__(self, index: int) -> Any:
        from PIL import Image

        try:
            with Image.open(self._files[index]) as image:
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                raise  # the storage's fault (stale handle, too many files, ...), not the image's
            raise UnreadableImageError(f"image {str(self._files[index])!r} cannot be read: {error}") from error
