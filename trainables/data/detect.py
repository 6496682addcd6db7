"""Which kind of image set lies at a path."""

import os
from pathlib import Path

from search_spaces.errors import RequestError
from trainables.data.packed.shards import AGAIN, SETTINGS, WHOLE
from trainables.data.sources.devkit import DEVKIT
from trainables.data.sources.imagenet import KAGGLE_TREE, TRAIN_TAR, VAL_TAR
from trainables.data.sources.parquet import shards

LOOKED_FOR = f"{WHOLE}, train-*.parquet, train/ and val/ with a folder a class in each, {TRAIN_TAR} with {VAL_TAR} and {DEVKIT}, or {KAGGLE_TREE}/"


def detected(path: str) -> dict[str, str]:
    """The ``[data]`` settings of what lies at a path: ``name`` and ``path``. No image and no long list is read.

    Raises:
        RequestError: there is no such folder, nothing known in it, or a packing that is not finished.
    """
    root = Path(path).expanduser()
    if root.is_file():
        raise RequestError(f"data {str(root)!r} is a file: give a folder with {LOOKED_FOR}")
    if not root.is_dir():
        raise RequestError(
            f"data folder {str(root)!r} does not exist: give a folder with {LOOKED_FOR}"
        )
    return {"name": _kind(root), "path": path}


def _kind(root: Path) -> str:
    if (root / WHOLE).is_file():
        return "packed"
    if shards(root, "train"):
        return "parquet"
    if (root / TRAIN_TAR).is_file() or (root / VAL_TAR).is_file() or (root / KAGGLE_TREE).is_dir():
        return "imagenet"
    if (root / "train").is_dir() and (root / "val").is_dir():
        return "imagefolder" if _has_folders(root / "val") else "imagenet"
    if (root / SETTINGS).is_file() and any(root.glob("*.u8*")):
        raise RequestError(f"{str(root)!r} is a packing that is not finished: {AGAIN}")
    raise RequestError(f"no image set in {str(root)!r}: looked for {LOOKED_FOR}")


def _has_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_dir() for entry in entries)
