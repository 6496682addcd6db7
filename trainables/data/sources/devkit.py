"""The classes of ImageNet's validation images: the development kit's ground truth, or Kaggle's table."""

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
# Where the unpacked kit's two files may lie.
UNPACKED = ("ILSVRC2012_devkit_t12/data", "data", "")
WNID = re.compile(r"n\d{8}")


class Truth(NamedTuple):
    """Class (wnid) of each validation image, by the image's name without its ending."""

    wnids: Mapping[str, str]
    place: Path


def validation_truth(root: Path) -> Truth | None:
    """What is known of the validation images in a folder; None where it holds neither kit nor table.

    Raises:
        RequestError: what is there cannot be read.
    """
    sources: list[tuple[Path, Callable[[Path], dict[str, str]]]] = [
        (root / KAGGLE, _kaggle),
        (root / DEVKIT, _packed_kit),
    ]
    sources += [(root / folder / TRUTH, _unpacked_kit) for folder in UNPACKED]
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
                    f"{str(place)!r} cannot be read ({error}): fetch it again"
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
        found = {
            Path(member.name).name: member
            for member in tar
            if Path(member.name).name in (TRUTH, META) and member.isfile()
        }
        truth, meta = (tar.extractfile(found[name]) for name in (TRUTH, META))
        assert truth is not None and meta is not None  # both are plain files
        return _truth(truth.read().decode(), meta.read())


def _unpacked_kit(truth: Path) -> dict[str, str]:
    return _truth(truth.read_text(), truth.with_name(META).read_bytes())


def _truth(text: str, meta: bytes) -> dict[str, str]:
    """Line n of the text is the ILSVRC2012_ID of validation image n; meta.mat has the wnid of each."""
    wnids = _wnids(meta)
    return {f"ILSVRC2012_val_{i:08d}": wnids[int(line)] for i, line in enumerate(text.split(), 1)}


def _wnids(meta: bytes) -> dict[int, str]:
    from scipy.io import loadmat

    synsets: Any = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets.reshape(-1)}
