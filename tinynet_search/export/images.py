"""Images for a network's file as the project's own evaluation gives them, and the same in words for config.json."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from search_spaces import Network, RequestError
from search_spaces.weights import Source
from tinynet_search.export.document import Preprocessing
from tinynet_search.export.subject import Subject
from trainables.data import IN_PROCESS, MEAN, STD, ImageData, Reading, open_data
from trainables.data.sources.encoded import UnreadableImageError
from trainables.recipe import Recipe, get_recipe
from trainables.spec import Settings

# How a network is evaluated of which nobody knows how it was trained.
RECIPES = {"petals": "short", "imagefolder": "efficientnet"}
BATCH = 32


@dataclass(frozen=True)
class Images:
    """Training images to calibrate with and labelled ones to evaluate on, evenly spread over the set.

    Attributes:
        data: the set; calibration: float32 (n, 3, pixels, pixels).
    """

    network: Network
    recipe: Recipe
    preprocessing: Preprocessing
    data: ImageData
    calibration: np.ndarray

    def validation(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of float32 images and int64 labels."""
        return _images(self.data, count, self.network, self.recipe, self.preprocessing)


def open_images(
    subject: Subject,
    settings: Settings | None,
    recipe: Recipe,
    preprocessing: Preprocessing,
    calibration: int,
) -> Images:
    """The images of the settings, or else of the trial that trained the network.

    Raises:
        RequestError: there are none, they cannot be read, or their classes are not the network's.
    """
    settings = settings or _seen(subject)
    if not settings or (settings.get("name") == "imagefolder" and "path" not in settings):
        raise RequestError(
            "--int8 needs images to calibrate with: give --data petals, or --data-path with a folder of train/ and val/"
        )
    data = open_data(settings)
    network = subject.network
    if len(data.class_names) != network.num_classes:
        raise RequestError(
            f"the data has {len(data.class_names)} classes and the network {network.num_classes}: give data of its classes"
        )
    batches = [
        images for images, _ in _images(data.swapped(), calibration, network, recipe, preprocessing)
    ]
    return Images(network, recipe, preprocessing, data, np.concatenate(batches))


def evaluation_recipe(subject: Subject, settings: Settings | None) -> Recipe:
    """The recipe whose evaluation the network is used with: its trial's, or what suits the data."""
    if subject.trained is not None:
        return subject.trained.recipe
    data = str(settings["name"]) if settings and "name" in settings else ""
    return get_recipe(RECIPES.get(data, RECIPES["imagefolder"]))


def preprocessing_of(
    subject: Subject, source: Source, recipe: Recipe, settings: Settings | None
) -> Preprocessing:
    """How an image becomes the network's input.

    Published weights keep the normalisation and the crop that timm names, a trial's have the project's. Of other weights
    nobody knows: the project's are written down and marked as assumed.
    """
    if subject.preprocessing is not None and source.published is None:
        return subject.preprocessing
    pixels, ratio = subject.network.resolution, recipe.eval_ratio
    mean, std = MEAN, STD
    if source.published is not None:
        ratio, mean, std = source.published.crop_pct, source.published.mean, source.published.std
    seen = _seen(subject) or settings or {}
    squashed = seen.get("name") == "petals" and recipe.augment == "shift"
    known = source.published is not None or source.path == subject.weights
    return Preprocessing(
        colour="RGB",
        resize=[pixels, pixels] if squashed else None,
        resize_short_side=None if squashed else int(pixels / ratio),
        interpolation="bilinear" if squashed else "bicubic",
        antialias=True,
        centre_crop=None if squashed else pixels,
        crop_ratio=ratio,
        scale="0 to 1",
        mean=list(mean),
        std=list(std),
        size=pixels,
        assumed=not known,
    )


def _seen(subject: Subject) -> Settings | None:
    """The data that the network was trained on, where that is known."""
    return subject.trained.data if subject.trained is not None else None


def _images(
    data: ImageData, count: int, network: Network, recipe: Recipe, preprocessing: Preprocessing
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of validation images, spread evenly: an ImageFolder lists its classes one after another."""
    count = min(count, data.val_size)
    chosen = np.arange(count) * data.val_size // count
    for images, labels in validation_batches(
        data, chosen, network, recipe, preprocessing, torch.device("cpu")
    ):
        yield np.ascontiguousarray(images.numpy()), labels.numpy()


def validation_batches(
    data: ImageData,
    chosen: np.ndarray,
    network: Network,
    recipe: Recipe,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    reading: Reading = IN_PROCESS,
    at_once: int = BATCH,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Validation images (n, 3, pixels, pixels) by their indices, as ``preprocessing`` gives them, and int64 labels.

    Raises:
        RequestError: an image cannot be read.
    """
    loader = data.loader(
        network.resolution, replace(recipe, eval_ratio=preprocessing.crop_ratio), device, reading
    )
    mean, std, own_mean, own_std = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in (MEAN, STD, preprocessing.mean, preprocessing.std)
    )
    same = torch.equal(mean, own_mean) and torch.equal(std, own_std)
    try:
        for images, labels in loader.val(
            [chosen[start : start + at_once] for start in range(0, len(chosen), at_once)]
        ):
            yield images if same else (images * std + mean - own_mean) / own_std, labels
    except (UnreadableImageError, OSError) as error:
        raise RequestError(f"the data cannot be read: {error}") from error
