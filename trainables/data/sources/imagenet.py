"""ImageNet in its published forms: the original tar files, Kaggle's folders, or a flat ``val``.

Opened by ``open_data`` for the data name ``imagenet``. The name of an image is
``<wnid>/<original file name>`` in all forms.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.ignored import IgnoredCounter, IgnoredFiles
from trainables.data.sources.devkit import DEVKIT, KAGGLE, META, TRUTH, Truth, validation_truth
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.sources.folders import list_classes, list_flat
from trainables.data.sources.imagefolder import Files, check_classes, fingerprint
from trainables.data.sources.tars import TarRanges, members, nested
from trainables.data.sources.tars import images as tar_images

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
KAGGLE_TREE = "ILSVRC/Data/CLS-LOC"


class SplitListing(NamedTuple):
    """The images of a split.

    Attributes:
        images: (``wnid/file``, location, size in bytes) of each image.
        reader: creates the reader of the images from their names, locations and sizes.
        ignored: the files that are not read.
    """

    images: list[tuple[str, Any, int]]
    reader: Callable[[Sequence[str], Sequence[Any], np.ndarray], Any]
    ignored: Iterable[IgnoredFiles]


class ImageNetData(EncodedData):
    """The original files in one folder, read in place.

    The folder holds ``ILSVRC2012_img_train.tar`` or ``train/<wnid>/``, and
    ``ILSVRC2012_img_val.tar`` or a flat ``val/``. The classes of the validation images come from
    the development kit (``ILSVRC2012_devkit_t12.tar.gz``, or its two files) or from Kaggle's
    ``LOC_val_solution.csv`` next to ``ILSVRC/Data/CLS-LOC/``. Class names are the sorted wnids, the
    order of timm and torchvision.

    Opening reads all tar headers, 1.3 million for ImageNet, in every process. Pack a set that is
    read often. Hidden files and files that are not images are ignored, in tar files too.

    Raises:
        RequestError: A file is missing or damaged, an image has no known class or is there twice, a
            class has no images, or the classes of the two splits differ.
    """

    def __init__(self, path: str) -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise RequestError(
                f"data folder {str(root)!r} does not exist: "
                "pass the folder that holds ImageNet's files"
            )
        truth = validation_truth(root)
        if truth is None:
            raise RequestError(
                f"the classes of ImageNet's validation images are not in {str(root)!r}: "
                f"put {DEVKIT}, {TRUTH} with {META}, or {KAGGLE} there"
            )
        tree = root / KAGGLE_TREE if (root / KAGGLE_TREE).is_dir() else root
        splits = [_train(root, tree), _val(root, tree, truth)]
        for split in splits:
            split.images.sort(key=lambda image: image[0].split("/"))
        classes = [
            sorted({name.partition("/")[0] for name, _, _ in split.images}) for split in splits
        ]
        if len(classes[0]) < 2:
            raise RequestError(
                f"the training images in {str(root)!r} have {len(classes[0])} class: "
                "expected two or more"
            )
        check_classes(
            classes[0], classes[1], f"the training and validation images of {str(root)!r}"
        )
        number = {name: i for i, name in enumerate(classes[0])}
        parts = [_part(split, number) for split in splits]
        content = [[(name, size) for name, _, size in split.images] for split in splits]
        ignored = IgnoredCounter()
        for split in splits:
            ignored.update(split.ignored)
        super().__init__(
            classes[0], parts[0], parts[1], fingerprint("imagenet", content), ignored.files
        )


def _part(split: SplitListing, number: dict[str, int]) -> Part:
    names = [name for name, _, _ in split.images]
    labels = np.array([number[name.partition("/")[0]] for name in names], dtype=np.int64)
    sizes = np.array([size for _, _, size in split.images], dtype=np.int64)
    reader = split.reader(names, [place for _, place, _ in split.images], sizes)
    return Part(names, labels, sizes, reader.read, reader.place)


def _train(root: Path, tree: Path) -> SplitListing:
    tar = root / TRAIN_TAR
    if not tar.is_file():
        if not (tree / "train").is_dir():
            raise RequestError(
                f"no training images in {str(root)!r}: "
                f"put {TRAIN_TAR} or train/ with one folder per class there"
            )
        listing = list_classes(tree, "train")
        images = [(name, name, size) for name, size in listing.images]
        return _in_folder(tree / "train", images, listing.ignored)
    ignored = IgnoredCounter()
    images = []
    for inner, files in nested(tar, ignored):
        wnid = PurePosixPath(inner).stem
        inside = tar_images(tar, files, ignored, f"{inner}/")
        if not inside:
            raise RequestError(
                f"class {wnid!r} has no images in {inner!r} of {str(tar)!r}: download it again"
            )
        images += [
            (f"{wnid}/{PurePosixPath(member.name).name}", member.offset, member.size)
            for member in inside
        ]
    return _in_tar(tar, images, ignored)


def _val(root: Path, tree: Path, truth: Truth) -> SplitListing:
    def full_name(file: str) -> str:
        """Return ``wnid/file`` of a validation image."""
        wnid = truth.wnids.get(PurePosixPath(file).stem)
        if wnid is None:
            raise RequestError(
                f"the class of validation image {file!r} is not in {str(truth.place)!r}: "
                "use the files of one release"
            )
        return f"{wnid}/{PurePosixPath(file).name}"

    tar, folder = root / VAL_TAR, tree / "val"
    if tar.is_file():
        ignored = IgnoredCounter()
        images = [
            (full_name(member.name), member.offset, member.size)
            for member in tar_images(tar, members(tar), ignored)
        ]
        return _in_tar(tar, images, ignored)
    if not folder.is_dir():
        raise RequestError(f"no validation images in {str(root)!r}: put {VAL_TAR} or val/ there")
    flat = list_flat(folder)
    if not flat.images:
        raise RequestError(
            f"validation folder {str(folder)!r} holds no images: "
            "set data.name to imagefolder if it has one folder per class"
        )
    images = [(full_name(name), name, size) for name, size in flat.images]
    return _in_folder(folder, images, flat.ignored)


def _in_tar(
    tar: Path, images: list[tuple[str, int, int]], ignored: Iterable[IgnoredFiles]
) -> SplitListing:
    """Return the images of a tar file.

    Raises:
        RequestError: Two members have the same name; a set has each image once.
    """
    counts = Counter(name for name, _, _ in images)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise RequestError(
            f"{len(repeated)} images are more than once in {str(tar)!r} "
            f"(for example {repeated[0]!r}): download it again"
        )
    return SplitListing(
        images,
        lambda names, offsets, sizes: TarRanges(
            tar, names, np.array(offsets, dtype=np.int64), sizes
        ),
        ignored,
    )


def _in_folder(
    folder: Path, images: list[tuple[str, str, int]], ignored: Iterable[IgnoredFiles]
) -> SplitListing:
    return SplitListing(images, lambda names, files, sizes: Files(folder, list(files)), ignored)
