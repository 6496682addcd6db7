"""The classes of ImageNet's validation images, from the development kit or Kaggle's table.

Called by ``ImageNetData``.
"""

import csv
import io
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from search_spaces.errors import RequestError

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
KAGGLE = "LOC_val_solution.csv"
# Folders that may hold the two files of the unpacked kit.
UNPACKED_FOLDERS = ("ILSVRC2012_devkit_t12/data", "data", "")
WNID = re.compile(r"n\d{8}")


class Truth(NamedTuple):
    """The class (wnid) of each validation image.

    Attributes:
        wnids: by the name of the image without its suffix.
        place: the file that they were read from.
    """

    wnids: Mapping[str, str]
    place: Path


def validation_truth(root: Path) -> Truth | None:
    """Read the classes of the validation images; None if the folder has neither kit nor table.

    Raises:
        RequestError: The kit or the table cannot be read.
    """
    sources: list[tuple[Path, Callable[[Path], dict[str, str]]]] = [
        (root / KAGGLE, _kaggle),
        (root / DEVKIT, _packed_kit),
    ]
    sources += [(root / folder / TRUTH, _unpacked_kit) for folder in UNPACKED_FOLDERS]
    for place, read in sources:
        if place.is_file():
            try:
                return Truth(read(place), place)
            except (
                OSError,
                KeyError,
                ValueError,
                EOFError,
                tarfile.TarError,
                NotImplementedError,
            ) as error:
                if isinstance(error, RequestError):
                    raise
                raise RequestError(
                    f"{str(place)!r} cannot be read ({error}): download it again"
                ) from error
    return None


def _kaggle(table: Path) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        return {
            row["ImageId"]: row["PredictionString"].split(maxsplit=1)[0]
            for row in csv.DictReader(file)
        }


def _packed_kit(kit: Path) -> dict[str, str]:
    with tarfile.open(kit) as tar:
        files = {
            Path(member.name).name: member
            for member in tar
            if Path(member.name).name in (TRUTH, META) and member.isfile()
        }
        truth, meta = (tar.extractfile(files[name]) for name in (TRUTH, META))
        assert truth is not None and meta is not None  # both are regular files
        return _truth(truth.read().decode(), meta.read())


def _unpacked_kit(truth: Path) -> dict[str, str]:
    return _truth(truth.read_text(), truth.with_name(META).read_bytes())


def _truth(text: str, meta: bytes) -> dict[str, str]:
    """Join the ground truth with meta.mat.

    Line n of ``text`` is the ILSVRC2012_ID of the class of validation image n, and ``meta`` maps
    the ids to wnids.
    """
    wnids = _wnids(meta)
    return {f"ILSVRC2012_val_{i:08d}": wnids[int(line)] for i, line in enumerate(text.split(), 1)}


def _wnids(meta: bytes) -> dict[int, str]:
    from scipy.io import loadmat

    synsets: Any = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets.reshape(-1)}
