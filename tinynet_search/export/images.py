"""Loads calibration and validation images, and describes their preprocessing for config.json.

Called by the exporter and by evaluations. The images are those of the project's evaluation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from search_spaces import Network, RequestError
from search_spaces.weights import Source
from tinynet_search.export.document import Preprocessing
from tinynet_search.export.subject import Subject, matched_classes
from trainables.classes import ClassMatch
from trainables.data import IN_PROCESS, MEAN, STD, ImageData, Reading, open_data
from trainables.data.sources.encoded import UnreadableImageError
from trainables.recipe import Recipe, get_recipe
from trainables.spec import Settings

# Evaluation recipes of networks whose training is unknown, by data set.
RECIPES = {"petals": "short", "imagefolder": "efficientnet"}
BATCH = 32


@dataclass(frozen=True)
class Images:
    """Training images for calibration and labelled validation images, spread evenly over the set.

    Attributes:
        data: The data set.
        classes: The outputs of the network that are the data's classes.
        calibration: Calibration images, float32 (n, 3, pixels, pixels).
    """

    network: Network
    recipe: Recipe
    preprocessing: Preprocessing
    data: ImageData
    classes: ClassMatch
    calibration: np.ndarray

    def validation(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of float32 images and int64 labels."""
        return _images(self.data, count, self.network, self.recipe, self.preprocessing)


def open_images(
    subject: Subject,
    source: Source,
    settings: Settings | None,
    recipe: Recipe,
    preprocessing: Preprocessing,
    calibration: int,
) -> Images:
    """Open the images of the settings, or of the trial that trained the network.

    Raises:
        RequestError: No images exist, they cannot be read, or their classes are not those of the
            network.
    """
    settings = settings or _training_data(subject)
    if not settings or (settings.get("name") == "imagefolder" and "path" not in settings):
        raise RequestError(
            "--int8 needs calibration images: pass --data petals, "
            "or --data-path with a folder of train/ and val/"
        )
    data = open_data(settings)
    network = subject.network
    classes = matched_classes(subject, source, data.class_names)
    batches = [
        images
        for images, _ in _images(data.swap_splits(), calibration, network, recipe, preprocessing)
    ]
    return Images(network, recipe, preprocessing, data, classes, np.concatenate(batches))


def evaluation_recipe(subject: Subject, settings: Settings | None) -> Recipe:
    """The recipe that defines the evaluation: that of the trial, or the default for the data."""
    if subject.trained is not None:
        return subject.trained.recipe
    data = str(settings["name"]) if settings and "name" in settings else ""
    return get_recipe(RECIPES.get(data, RECIPES["imagefolder"]))


def preprocessing_of(
    subject: Subject, source: Source, recipe: Recipe, settings: Settings | None
) -> Preprocessing:
    """The conversion of an image to the network's input.

    Published weights use the normalisation and crop of timm, and weights of a trial those of this
    project. For other weights the preprocessing is unknown: that of this project is recorded and
    marked as assumed.
    """
    if subject.preprocessing is not None and source.published is None:
        return subject.preprocessing
    pixels, ratio = subject.network.resolution, recipe.eval_ratio
    mean, std = MEAN, STD
    if source.published is not None:
        ratio, mean, std = source.published.crop_pct, source.published.mean, source.published.std
    data = _training_data(subject) or settings or {}
    squashed = data.get("name") == "petals" and recipe.augment == "shift"
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


def _training_data(subject: Subject) -> Settings | None:
    """The data that the network was trained on, None if unknown."""
    return subject.trained.data if subject.trained is not None else None


def _images(
    data: ImageData, count: int, network: Network, recipe: Recipe, preprocessing: Preprocessing
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of validation images, spread evenly, because an ImageFolder is sorted by class."""
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
    batch_size: int = BATCH,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of validation images, preprocessed, with int64 labels.

    Args:
        chosen: Indices of the images.
        batch_size: Batch size.

    Yields:
        Images (n, 3, pixels, pixels) and labels (n,).

    Raises:
        RequestError: An image cannot be read.
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
            [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
        ):
            yield images if same else (images * std + mean - own_mean) / own_std, labels
    except (UnreadableImageError, OSError) as error:
        raise RequestError(f"the data cannot be read: {error}") from error
