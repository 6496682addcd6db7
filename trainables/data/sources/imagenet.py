"""ImageNet as it is handed out: the original tar files, Kaggle's folders, or a tree whose ``val`` is flat.

Whatever the form, an image is named ``<wnid>/<original file name>``, so the same images have the same names.
"""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.sources.devkit import DEVKIT, KAGGLE, META, TRUTH, Truth, validation_truth
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.sources.imagefolder import EXTENSIONS, Files, check_classes, fingerprint, scan
from trainables.data.sources.tars import TarRanges, members, nested

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
KAGGLE_TREE = "ILSVRC/Data/CLS-LOC"


class Listed(NamedTuple):
    """Images of a split: (``wnid/file``, where it lies, bytes) each, and how those are read by number."""

    images: list[tuple[str, Any, int]]
    reader: Callable[[Sequence[str], Sequence[Any], np.ndarray], Any]


class ImageNetData(EncodedData):
    """The original files in one folder, read where they lie.

    ``ILSVRC2012_img_train.tar`` or ``train/<wnid>/``; ``ILSVRC2012_img_val.tar`` or a flat ``val/``; and for the
    classes of the validation images the development kit (``ILSVRC2012_devkit_t12.tar.gz``, or its two files) or Kaggle's
    ``LOC_val_solution.csv`` beside ``ILSVRC/Data/CLS-LOC/``. Class names are the sorted wnids, timm's and torchvision's
    order.

    Opening reads every tar header, 1.3 million of them on ImageNet, in every process: pack a set that is read often.

    Raises:
        RequestError: a file is missing or damaged, an image has no known class, the splits' classes differ.
    """

    def __init__(self, path: str) -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise RequestError(
                f"data folder {str(root)!r} does not exist: give the folder that holds ImageNet's files"
            )
        truth = validation_truth(root)
        if truth is None:
            known = f"{DEVKIT}, {TRUTH} with {META}, or {KAGGLE}"
            raise RequestError(
                f"the classes of ImageNet's validation images are not in {str(root)!r}: put {known} there"
            )
        tree = root / KAGGLE_TREE if (root / KAGGLE_TREE).is_dir() else root
        listed = [_train(root, tree), _val(root, tree, truth)]
        for split in listed:
            split.images.sort(key=lambda image: image[0].split("/"))
        classes = [
            sorted({name.partition("/")[0] for name, _, _ in split.images}) for split in listed
        ]
        if len(classes[0]) < 2:
            raise RequestError(
                f"the training images in {str(root)!r} are of {len(classes[0])} class: two classes or more are needed"
            )
        check_classes(
            classes[0], classes[1], f"the training and validation images of {str(root)!r}"
        )
        number = {name: i for i, name in enumerate(classes[0])}
        parts = [_part(split, number) for split in listed]
        content = [
            [(PurePosixPath(name), size) for name, _, size in split.images] for split in listed
        ]
        super().__init__(classes[0], parts[0], parts[1], fingerprint("imagenet", content))


def _part(split: Listed, number: dict[str, int]) -> Part:
    names = [name for name, _, _ in split.images]
    labels = np.array([number[name.partition("/")[0]] for name in names], dtype=np.int64)
    sizes = np.array([size for _, _, size in split.images], dtype=np.int64)
    reader = split.reader(names, [place for _, place, _ in split.images], sizes)
    return Part(names, labels, sizes, reader.read, reader.place)


def _train(root: Path, tree: Path) -> Listed:
    tar = root / TRAIN_TAR
    if not tar.is_file():
        if not (tree / "train").is_dir():
            raise RequestError(
                f"no training images in {str(root)!r}: put {TRAIN_TAR} or train/ with a folder a class there"
            )
        files = [(file.as_posix(), size) for file, size in scan(tree, "train")]
        return _in_folder(tree / "train", [(name, name, size) for name, size in files])
    images = [
        (
            f"{PurePosixPath(wnid).stem}/{PurePosixPath(member.name).name}",
            member.offset,
            member.size,
        )
        for wnid, files in nested(tar)
        for member in files
        if _is_image(member.name)
    ]
    return _in_tar(tar, images)


def _val(root: Path, tree: Path, truth: Truth) -> Listed:
    def named(file: str) -> str:
        wnid = truth.wnids.get(PurePosixPath(file).stem)
        if wnid is None:
            raise RequestError(
                f"the class of validation image {file!r} is not in {str(truth.place)!r}: they do not belong together"
            )
        return f"{wnid}/{PurePosixPath(file).name}"

    tar, folder = root / VAL_TAR, tree / "val"
    if tar.is_file():
        return _in_tar(
            tar,
            [
                (named(member.name), member.offset, member.size)
                for member in members(tar)
                if _is_image(member.name)
            ],
        )
    if not folder.is_dir():
        raise RequestError(f"no validation images in {str(root)!r}: put {VAL_TAR} or val/ there")
    flat = [(file.name, file.stat().st_size) for file in folder.iterdir() if _is_image(file.name)]
    if not flat:
        raise RequestError(
            f"validation folder {str(folder)!r} holds no images; where it has a folder a class, data.name is imagefolder"
        )
    return _in_folder(folder, [(named(name), name, size) for name, size in flat])


def _in_tar(tar: Path, images: list[tuple[str, Any, int]]) -> Listed:
    return Listed(
        images,
        lambda names, offsets, sizes: TarRanges(
            tar, names, np.array(offsets, dtype=np.int64), sizes
        ),
    )


def _in_folder(folder: Path, images: list[tuple[str, Any, int]]) -> Listed:
    return Listed(images, lambda names, files, sizes: Files(folder, list(files)))


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS
