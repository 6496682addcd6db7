"""Trees of real JPEG files made from the built-in pictures, for reading benchmarks.

``train_data`` and the GPU checks call it.

Small files are the pictures as they are, 64 x 64. Photos are 500 x 375, ImageNet's usual shape, at
quality 90 and about 100 kB like ImageNet's files. A photo is a picture enlarged to 375 x 375 and
repeated to the right (smooth areas and edges), with a slow change of brightness, and with noise for
the grain of a photograph. Decoding takes as long as it does for a photograph of that size.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from trainables.data.petals.images import CLASS_NAMES, Split, make_split

WIDTH, HEIGHT, QUALITY, GRAIN = 500, 375, 90, 18.0


def make_tree(root: Path, train: int, val: int, *, photos: bool) -> None:
    """Write ``root/train`` and ``root/val``, each with one folder per class.

    Args:
        train: number of training images, at least 24.
        val: number of validation images, at least 24.
        photos: whether to write photos of 500 x 375 instead of pictures of 64 x 64.
    """
    random = np.random.default_rng(0)
    counts: dict[Split, int] = {"train": train, "val": val}
    for split, count in counts.items():
        pictures, labels = make_split(split, count, 0)
        for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            folder = root / split / CLASS_NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            image = photo(picture, random) if photos else picture
            Image.fromarray(image).save(folder / f"{i:05d}.jpg", quality=QUALITY)


def photo(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A photo, uint8 (HEIGHT, WIDTH, 3), from a square picture, uint8 (side, side, 3)."""
    large = np.asarray(
        Image.fromarray(picture).resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC), np.float32
    )
    wide = np.tile(large, (1, 2, 1))[:, :WIDTH]
    light = 1 + 0.2 * np.sin(np.linspace(*random.uniform(0, 6, 2), num=WIDTH))[None, :, None]
    grain = random.normal(0, GRAIN, (HEIGHT, WIDTH, 1)).astype(np.float32)
    return (wide * light + grain).clip(0, 255).astype(np.uint8)
