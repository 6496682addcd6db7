"""The interface of image data sets, and functions that open a data set by its name.

Called by trials, trainings, evaluation, export and the command line.
"""

import importlib
import inspect
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from search_spaces.errors import RequestError, unknown
from trainables.data.ignored import BROKEN_LINK, IgnoredFiles, summary
from trainables.spec import Setting, Settings

if TYPE_CHECKING:
    import torch

    from trainables.recipe import Recipe

# timm's and the paper's normalisation of RGB values in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Module and class or function of each data set, imported on first use.
DATA_SETS = {
    "petals": ("petals.arrays", "petals"),
    "imagefolder": ("sources.imagefolder", "ImageFolderData"),
    "imagenet": ("sources.imagenet", "ImageNetData"),
    "parquet": ("sources.parquet", "ParquetData"),
    "packed": ("packed.dataset", "PackedData"),
}

_log = logging.getLogger(__name__)


class MicroBatch(NamedTuple):
    """Image indices and the seed of their augmentation and of the network's dropout.

    The same micro-batch gives the same input on every machine.
    """

    indices: np.ndarray
    seed: int


Batch = tuple["torch.Tensor", "torch.Tensor"]


class Reading(NamedTuple):
    """How a loader reads images.

    Attributes:
        workers: number of worker processes or threads; 0 reads in the calling process.
        pinned: whether batches are page-locked for a GPU.
    """

    workers: int = 0
    pinned: bool = False


IN_PROCESS = Reading()


class Loader(Protocol):
    """Batches of images at one resolution, ready for a network of that resolution."""

    def train(self, batches: Sequence[MicroBatch]) -> Iterator[Batch]:
        """Yield one batch per micro-batch.

        Images are augmented, normalised float32 (n, 3, pixels, pixels); labels are int64 (n,).
        """
        ...

    def val(self, batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Yield the validation images of each index array, without augmentation."""
        ...


class ImageData(Protocol):
    """A labelled data set with a training and a validation split.

    Attributes:
        fingerprint: identifies the content by relative names and sizes, or by generator, version
            and seed. It never contains a path.
        largest_pixels: the resolution above which evaluation enlarges images that were shrunk
            before; None if no image was shrunk.
        ignored: the files and folders of the set that are not read, by reason.
    """

    class_names: Sequence[str]
    train_size: int
    val_size: int
    fingerprint: str
    largest_pixels: int | None = None
    ignored: Sequence[IgnoredFiles] = ()

    def loader(
        self,
        resolution: int,
        recipe: "Recipe",
        device: "torch.device",
        reading: Reading = IN_PROCESS,
    ) -> Loader: ...

    def swap_splits(self) -> "ImageData":
        """The same set with the two splits swapped.

        Its ``val`` loader reads the training images without augmentation.
        """
        ...


# The data set opened last. Trial processes are reused, and listing ImageNet takes a while.
_cache: dict[str, ImageData] = {}


def absolute_folders(settings: Settings) -> dict[str, Setting]:
    """Return the settings with absolute folders.

    Trials run in another working directory than the command that started the search.
    """
    resolved = dict(settings)
    for key in ("path", "cache"):
        folder = resolved.get(key)
        if isinstance(folder, str):
            resolved[key] = str(Path(folder).expanduser().absolute())
    return resolved


def open_data(settings: Settings) -> ImageData:
    """Open the data set that ``[data]`` configures.

    The name is one of ``petals`` (built in), ``imagefolder`` (a tree with ``train`` and ``val``),
    ``imagenet`` (its original files, or Kaggle's), ``parquet`` (shards of the Hugging Face hub) and
    ``packed`` (the output of ``tinynet data pack``).

    Files that are not read are reported as one warning of this module's logger.

    Raises:
        RequestError: The name or a setting is unknown, a folder is missing, there are fewer than
            two classes, or the classes of the two splits differ.
    """
    data = _open(settings)
    if note := ignored_note(data, str(settings.get("path", ""))):
        _log.warning(note)
    return data


def ignored_note(data: ImageData, path: str) -> str | None:
    """Return one line that counts the files that are not read; None if all are read."""
    if not data.ignored:
        return None
    number = sum(files.number for files in data.ignored)
    return f"data {path!r}: {number} ignored: {summary(data.ignored)}"


def _open(settings: Settings) -> ImageData:
    options = dict(settings)
    name = str(options.pop("name", "petals"))
    if name not in DATA_SETS:
        raise unknown("data", name, DATA_SETS)
    module, attribute = DATA_SETS[name]
    create = getattr(importlib.import_module(f"trainables.data.{module}"), attribute)
    known = inspect.signature(create).parameters
    for key in options:
        if key not in known:
            raise unknown(f"setting of data {name!r}", key, known)
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in options:
            raise RequestError(
                f"data.{key} of {name!r} is missing: set it to the folder of the images"
            )
        if parameter.annotation in (str, str | None) and not isinstance(options.get(key, ""), str):
            raise RequestError(f"data.{key} of {name!r} must be text, got {options[key]!r}")
    return create(**options)


def open_data_cached(settings: Settings, fingerprint: str | None = None) -> ImageData:
    """Return the data set of ``settings``, opened once per process.

    It is opened again if the one in memory has a different fingerprint than ``fingerprint``. A set
    whose fingerprint is known was reported when it was first opened, and is opened quietly.

    Raises:
        RequestError: As for ``open_data``, or the set differs and has broken links: their targets
            may exist on another machine.
    """
    key = json.dumps(settings, sort_keys=True)
    if key not in _cache or fingerprint not in (None, _cache[key].fingerprint):
        _cache.clear()
        data = open_data(settings) if fingerprint is None else _open(settings)
        _check_links(data, fingerprint)
        _cache[key] = data
    return _cache[key]


def _check_links(data: ImageData, fingerprint: str | None) -> None:
    broken = [files for files in data.ignored if files.reason == BROKEN_LINK]
    if broken and fingerprint not in (None, data.fingerprint):
        raise RequestError(
            f"the data are not the expected ones and have {summary(broken)}: "
            "make the targets of the links available on this machine"
        )
