"""Image data by name: the built-in set and everybody's own, behind one seam."""

import importlib
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from search_spaces.errors import RequestError, unknown
from trainables.spec import Setting, Settings

if TYPE_CHECKING:
    import torch

    from trainables.recipe import Recipe

# timm's and the paper's normalisation, of RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Data by name: module and what to call there, loaded when it is asked for.
MAKERS = {
    "petals": ("petals.arrays", "petals"),
    "imagefolder": ("sources.imagefolder", "ImageFolderData"),
    "imagenet": ("sources.imagenet", "ImageNetData"),
    "parquet": ("sources.parquet", "ParquetData"),
    "packed": ("packed.dataset", "PackedData"),
}


class MicroBatch(NamedTuple):
    """Which images, and the seed of their augmentation (and of the network's dropout): the same wherever it runs."""

    indices: np.ndarray
    seed: int


Batch = tuple["torch.Tensor", "torch.Tensor"]


class Reading(NamedTuple):
    """How a loader gets at images: worker processes (or threads), and page-locked batches for a GPU."""

    workers: int = 0
    pinned: bool = False


IN_PROCESS = Reading()


class Loader(Protocol):
    """Images of one resolution, as a network of that resolution takes them."""

    def train(self, batches: Sequence[MicroBatch]) -> Iterator[Batch]:
        """Augmented float32 images (n, 3, pixels, pixels), normalised, and int64 labels (n,), for each micro-batch."""
        ...

    def val(self, batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Validation images of the given indices, without augmentation."""
        ...


class ImageData(Protocol):
    """A labelled set with a training and a validation part.

    Attributes:
        fingerprint: names the content: relative names and sizes, or generator, version and seed; never a path.
        largest_pixels: the resolution above which evaluation enlarges what was shrunk before; None where nothing was.
    """

    class_names: Sequence[str]
    train_size: int
    val_size: int
    fingerprint: str
    largest_pixels: int | None = None

    def loader(
        self,
        resolution: int,
        recipe: "Recipe",
        device: "torch.device",
        reading: Reading = IN_PROCESS,
    ) -> Loader: ...

    def swapped(self) -> "ImageData":
        """The same set with its training images in the place of the others: for whoever wants them as evaluation sees them."""
        ...


# The last data that were opened: trial processes are reused, and a listing of ImageNet takes a while.
_open: dict[str, ImageData] = {}


def absolute(settings: Settings) -> dict[str, Setting]:
    """The settings with their folders absolute: trials run elsewhere than where the search was asked for."""
    made = dict(settings)
    for key in ("path", "cache"):
        folder = made.get(key)
        if isinstance(folder, str):
            made[key] = str(Path(folder).expanduser().absolute())
    return made


def open_data(settings: Settings) -> ImageData:
    """The data that ``[data]`` names.

    ``petals`` (built in), ``imagefolder`` (a tree with ``train`` and ``val``), ``imagenet`` (its original files, or
    Kaggle's), ``parquet`` (the Hugging Face hub's shards) or ``packed`` (what ``tinynet data pack`` makes of any of them).

    Raises:
        RequestError: unknown name or setting, a missing folder, fewer than two classes, classes that differ.
    """
    options = dict(settings)
    name = str(options.pop("name", "petals"))
    if name not in MAKERS:
        raise unknown("data", name, MAKERS)
    module, maker = MAKERS[name]
    make = getattr(importlib.import_module(f"trainables.data.{module}"), maker)
    known = inspect.signature(make).parameters
    for key in options:
        if key not in known:
            raise unknown(f"setting of data {name!r}", key, known)
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in options:
            raise RequestError(f"data.{key} of {name!r} is missing: it says where the images are")
        if parameter.annotation in (str, str | None) and not isinstance(options.get(key, ""), str):
            raise RequestError(f"data.{key} of {name!r} must be text (it is {options[key]!r})")
    return make(**options)


def opened_data(settings: Settings, fingerprint: str | None = None) -> ImageData:
    """The data of settings, opened once a process; anew where they had another fingerprint then."""
    key = json.dumps(settings, sort_keys=True)
    if key not in _open or fingerprint not in (None, _open[key].fingerprint):
        _open.clear()
        _open[key] = open_data(settings)
    return _open[key]
