"""Petals: a synthetic image set made by code, for the demo and the tests.

What it is: 24 classes = 4 hues (a coarse cue) x 2 outlines, disc or four petals (a middle one) x 3 fills, solid, stripes
or checks (a fine one: 7-11 px a period at the native 64 px). Each picture draws its own size, place, tilt, shade,
background, bars and noise. 2880 training and 960 validation pictures take a few seconds of numpy and need no download.

What it is not: there are no photographs in it, and its accuracies say nothing of ImageNet. That top-1 falls below a
certain resolution is put there by the period of the fills; never present that knee as the paper's Figure 2.

A picture depends on (version, split, seed, index) alone, so a longer split begins with the shorter one. Every edge is
soft and every random number exact, so processors that differ in a float's last bit differ by at most one grey level.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

VERSION = 1  # bump whenever the pictures change
NATIVE = 64

HUES = ("red", "green", "blue", "violet")
OUTLINES = ("disc", "petals")
FILLS = ("solid", "stripes", "checks")
CLASS_NAMES: tuple[str, ...] = tuple(f"{h}-{o}-{f}" for h in HUES for o in OUTLINES for f in FILLS)
NUM_CLASSES = len(CLASS_NAMES)

_HUE_TURNS = (0.0, 0.33, 0.60, 0.81)  # of the colour circle
_PERIOD = (7.0, 11.0)  # pixels at NATIVE
_LOBE = 0.38  # how far the petals reach beyond and fall short of their middle radius
_TILT = math.radians(20)
_CHUNK = 120  # pictures drawn together; a chunk has its own random stream
_TRIES = 8  # at a cache that other processes may be making or mending
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # what a rename onto another's cache says
_ARRAYS = ("train_images", "train_labels", "val_images", "val_labels")

Split = Literal["train", "val"]
Floats = NDArray[np.floating[Any]]


class PetalsArrays(NamedTuple):
    """Images uint8 (N, 64, 64, 3), labels int64 (N,); read-only when they come from the cache."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    val_images: NDArray[np.uint8]
    val_labels: NDArray[np.int64]


def fingerprint(seed: int = 0, train: int = 2880, val: int = 960) -> str:
    """Name the set by what decides it: generator, version, seed and sizes; never a path, never pixels."""
    return f"petals-v{VERSION}-seed{seed}-{train}-{val}"


def load(
    cache: str | os.PathLike[str] | None = None, *, seed: int = 0, train: int = 2880, val: int = 960
) -> PetalsArrays:
    """Return both splits, memory-mapped read-only from `cache`; they are drawn on first use.

    `cache` defaults to $TINYNET_CACHE, else $XDG_CACHE_HOME/tinynet-search, else ~/.cache/tinynet-search. Any number of
    processes may call this at once. A damaged cache is drawn anew. Raises OSError where the folder cannot be written.
    """
    home = _default_cache() if cache is None else Path(cache)
    folder = home / fingerprint(seed, train, val)
    for _ in range(_TRIES):
        if (arrays := _open(folder, train, val)) is not None:
            return arrays
        _publish(
            folder, PetalsArrays(*make_split("train", train, seed), *make_split("val", val, seed))
        )
    raise OSError(f"the image cache {folder} cannot be read back after it was written")


def make_split(split: Split, count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw `count` pictures: uint8 (count, 64, 64, 3) and int64 labels (count,), every class equally often to within one.

    The two splits draw from different random streams of the same seed. Raises ValueError for a negative count or seed.
    """
    if count < 0 or seed < 0:
        raise ValueError(f"count and seed must not be negative, got {count} and {seed}")
    images = np.empty((count, NATIVE, NATIVE, 3), np.uint8)
    labels = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        images[part], labels[part] = _draw_chunk(split, seed, start // _CHUNK, part.stop - start)
    return images, labels


def _draw_chunk(
    split: Split, seed: int, index: int, count: int, dtype: type[np.floating[Any]] = np.float32
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng([VERSION, seed, ("train", "val").index(split), index])
    labels = _labels(rng)[:count]
    hue, outline, fill = np.unravel_index(labels, (len(HUES), len(OUTLINES), len(FILLS)))
    # All numbers of the chunk are drawn whatever the count is, so that a shorter split is a prefix of a longer one.
    dice = rng.random((_CHUNK, 24))[:count].astype(dtype)
    noise = rng.random((_CHUNK, NATIVE, NATIVE, 3), dtype=np.float32)[:count].astype(dtype)

    axis = (np.arange(NATIVE, dtype=dtype) + dtype(0.5)) - dtype(NATIVE / 2)
    x, y = axis[None, None, :], axis[None, :, None]
    scene = _background(x, y, dice[:, :14])
    mask, u, v = _object(x, y, dice[:, 14:18], outline)
    ink = _fill(u, v, dice[:, 18:21], fill)
    colour = _hsv(
        np.asarray(_HUE_TURNS, dtype)[hue] + _between(dice[:, 21], -0.035, 0.035),
        _between(dice[:, 22], 0.65, 1.0),
        _between(dice[:, 23], 0.85, 1.0),
    )
    picture = scene + mask[..., None] * (ink[..., None] * colour[:, None, None, :] - scene)
    picture += dtype(0.08) * (noise - dtype(0.5))
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8), labels


def _labels(rng: np.random.Generator) -> NDArray[np.int64]:
    """Give one chunk's labels: rounds of all classes, each shuffled, so that any prefix is balanced to within one."""
    classes = np.tile(np.arange(NUM_CLASSES, dtype=np.int64), (_CHUNK // NUM_CLASSES, 1))
    return rng.permuted(classes, axis=1).ravel()


def _background(x: Floats, y: Floats, dice: Floats) -> Floats:
    """Blend two dim colours along a random direction and lay two random bars on them: (n, 64, 64, 3)."""
    first = _hsv(dice[:, 0], _between(dice[:, 1], 0.1, 0.6), _between(dice[:, 2], 0.2, 0.5))
    second = _hsv(dice[:, 3], _between(dice[:, 4], 0.1, 0.6), _between(dice[:, 5], 0.2, 0.5))
    turn = _column(dice[:, 6]) * dice.dtype.type(2 * math.pi)
    ramp = np.clip((x * np.cos(turn) + y * np.sin(turn)) / NATIVE + dice.dtype.type(0.5), 0, 1)
    for k in (7, 10):
        turn = _column(dice[:, k]) * dice.dtype.type(math.pi)
        off = x * np.cos(turn) + y * np.sin(turn) - _column(_between(dice[:, k + 1], -28, 28))
        bar = _inside(_column(_between(dice[:, k + 2], 2, 5)) - np.abs(off))
        ramp = ramp + bar * (1 - 2 * ramp) * dice.dtype.type(0.8)
    return first[:, None, None, :] + ramp[..., None] * (second - first)[:, None, None, :]


def _object(
    x: Floats, y: Floats, dice: Floats, outline: NDArray[np.intp]
) -> tuple[Floats, Floats, Floats]:
    """Return the object's soft mask and its own tilted coordinates in pixels, each (n, 64, 64)."""
    half = _column(_between(dice[:, 0], 0.7, 1.0)) * dice.dtype.type(NATIVE / 2 - 1)
    room = dice.dtype.type(NATIVE / 2) - half
    left, up = (
        x - room * _column(_between(dice[:, 1], -1, 1)),
        y - room * _column(_between(dice[:, 2], -1, 1)),
    )
    tilt = _column(_between(dice[:, 3], -_TILT, _TILT))
    u, v = left * np.cos(tilt) + up * np.sin(tilt), left * np.sin(tilt) * -1 + up * np.cos(tilt)
    square = u * u + v * v + dice.dtype.type(1e-3)
    # cos(4 angle) as a polynomial; the disc has the petals' mean radius so that area alone does not tell them apart
    cos4 = 1 - 8 * (u * v / square) ** 2
    petals = _column((outline == 1).astype(dice.dtype))
    reach = half * (
        dice.dtype.type(0.72)
        + petals * (dice.dtype.type(_LOBE) * cos4 - dice.dtype.type(_LOBE - 0.28))
    )
    return _inside(reach - np.sqrt(square)), u, v


def _fill(u: Floats, v: Floats, dice: Floats, fill: NDArray[np.intp]) -> Floats:
    """Return the brightness inside the object, (n, 64, 64): flat, striped or chequered, all with the same mean."""
    wave = dice.dtype.type(2 * math.pi) / _column(_between(dice[:, 0], *_PERIOD))
    across = np.sin(u * wave + _column(dice[:, 1]) * dice.dtype.type(2 * math.pi))
    down = np.sin(v * wave + _column(dice[:, 2]) * dice.dtype.type(2 * math.pi))
    stripes, checks = (
        _column((fill == 1).astype(dice.dtype)),
        _column((fill == 2).astype(dice.dtype)),
    )
    pattern = stripes * across + checks * across * down * dice.dtype.type(1.5)
    return dice.dtype.type(0.65) + dice.dtype.type(0.35) * np.clip(2 * pattern, -1, 1)


def _hsv(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """Turn (n,) hue in turns, saturation and value into (n, 3) red, green and blue."""
    phase = (hue[:, None] + np.asarray([0, 2 / 3, 1 / 3], hue.dtype)) % 1
    ramp = np.clip(np.abs(phase * 6 - 3) - 1, 0, 1)
    return value[:, None] * (1 + saturation[:, None] * (ramp - 1))


def _inside(distance: Floats) -> Floats:
    """Return a mask that rises from 0 to 1 over two pixels about distance 0."""
    return np.clip(distance * distance.dtype.type(0.5) + distance.dtype.type(0.5), 0, 1)


def _between(unit: Floats, low: float, high: float) -> Floats:
    return unit.dtype.type(low) + unit * unit.dtype.type(high - low)


def _column(values: Floats) -> Floats:
    return values[:, None, None]


def _default_cache() -> Path:
    if own := os.environ.get("TINYNET_CACHE"):
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "tinynet-search"


def _open(folder: Path, train: int, val: int) -> PetalsArrays | None:
    """Map the cached arrays, or return None where one is missing, unreadable or of the wrong size."""
    try:
        arrays = PetalsArrays(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))
    except (OSError, ValueError, EOFError):
        return None
    frame = (NATIVE, NATIVE, 3)
    wanted = (
        ((train, *frame), np.uint8),
        ((train,), np.int64),
        ((val, *frame), np.uint8),
        ((val,), np.int64),
    )
    good = all(
        a.shape == shape and a.dtype == kind
        for a, (shape, kind) in zip(arrays, wanted, strict=True)
    )
    return arrays if good else None


def _publish(folder: Path, arrays: PetalsArrays) -> None:
    """Put the arrays in place in one step, unless another process was quicker with a good cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".petals-", dir=folder.parent))
    try:
        fresh = scratch / "fresh"
        fresh.mkdir()
        for name, array in zip(_ARRAYS, arrays, strict=True):
            np.save(fresh / f"{name}.npy", array)
        if _open(folder, len(arrays.train_labels), len(arrays.val_labels)) is None:
            # Aside whole, so that nobody opens a half-deleted cache; a process that loses a good one to this draws again.
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, scratch / "damaged")
        os.rename(fresh, folder)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
