"""Detection of the kind of image set in a folder.

Called by the commands that take a data folder instead of a configuration.
"""

from pathlib import Path

from search_spaces.errors import RequestError
from trainables.data.packed.shards import RECORD_FILE, RERUN_HINT, SETTINGS_FILE
from trainables.data.sources.devkit import DEVKIT
from trainables.data.sources.folders import has_folders
from trainables.data.sources.imagenet import KAGGLE_TREE, TRAIN_TAR, VAL_TAR
from trainables.data.sources.parquet import shards

SUPPORTED_LAYOUTS = (
    f"{RECORD_FILE}, train-*.parquet, train/ and val/ with one folder per class in each, "
    f"{TRAIN_TAR} with {VAL_TAR} and {DEVKIT}, or {KAGGLE_TREE}/"
)


def detect_data(path: str) -> dict[str, str]:
    """Return the ``[data]`` settings ``name`` and ``path`` of the image set in a folder.

    It reads no image and no long list.

    Raises:
        RequestError: The folder does not exist, has no supported layout, or holds an unfinished
            packed set.
    """
    root = Path(path).expanduser()
    if root.is_file():
        raise RequestError(f"data {str(root)!r} is a file: pass a folder with {SUPPORTED_LAYOUTS}")
    if not root.is_dir():
        raise RequestError(
            f"data folder {str(root)!r} does not exist: pass a folder with {SUPPORTED_LAYOUTS}"
        )
    return {"name": _kind(root), "path": path}


def _kind(root: Path) -> str:
    if (root / RECORD_FILE).is_file():
        return "packed"
    if shards(root, "train"):
        return "parquet"
    if (root / TRAIN_TAR).is_file() or (root / VAL_TAR).is_file() or (root / KAGGLE_TREE).is_dir():
        return "imagenet"
    if (root / "train").is_dir() and (root / "val").is_dir():
        return "imagefolder" if has_folders(root / "val") else "imagenet"
    if (root / SETTINGS_FILE).is_file() and any(root.glob("*.u8*")):
        raise RequestError(f"the packed set {str(root)!r} is not finished: {RERUN_HINT}")
    raise RequestError(f"no image set in {str(root)!r}: expected {SUPPORTED_LAYOUTS}")
