"""The built-in image set: balanced classes, reproducible images, and the cache.

The cache must survive damage and concurrent writers.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from trainables.data.petals import images as petals
from trainables.data.petals.images import NATIVE, NUM_CLASSES, Split, fingerprint, load, make_split

pytestmark = pytest.mark.quick

SIZES = {"train": 48, "val": 24}


@pytest.mark.parametrize(("split", "count"), [("train", 2880), ("val", 960)])
def test_classes_are_exactly_balanced(split: Split, count: int) -> None:
    images, labels = make_split(split, count, seed=0)
    assert images.shape == (count, NATIVE, NATIVE, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert (
        np.bincount(labels, minlength=NUM_CLASSES).tolist() == [count // NUM_CLASSES] * NUM_CLASSES
    )


def test_classes_have_distinct_names() -> None:
    assert len(set(petals.CLASS_NAMES)) == NUM_CLASSES == 24
    assert "red-disc-stripes" in petals.CLASS_NAMES


def test_longer_split_of_the_same_seed_begins_with_the_shorter() -> None:
    short, long = make_split("train", 130, seed=3), make_split("train", 240, seed=3)
    for few, many in zip(short, long, strict=True):
        np.testing.assert_array_equal(few, many[:130])


@pytest.mark.parametrize(("split", "seed"), [("val", 0), ("train", 1)])
def test_splits_and_seeds_draw_different_pictures(split: Split, seed: int) -> None:
    train, other = make_split("train", 48, seed=0)[0], make_split(split, 48, seed)[0]
    assert not any((picture == other).all(axis=(1, 2, 3)).any() for picture in train)


@pytest.mark.parametrize(("count", "seed"), [(-1, 0), (24, -1)])
def test_negative_sizes_and_seeds_are_errors(count: int, seed: int) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        make_split("train", count, seed)


def test_rounding_changes_a_pixel_by_at_most_one_grey_level() -> None:
    single, _ = petals._draw_chunk("train", 0, 0, 48)
    double, _ = petals._draw_chunk("train", 0, 0, 48, np.float64)
    assert np.abs(single.astype(int) - double.astype(int)).max() <= 1


def test_cache_returns_the_drawn_images(tmp_path: Path) -> None:
    first, again = load(tmp_path, seed=5, **SIZES), load(tmp_path, seed=5, **SIZES)
    drawn = (*make_split("train", SIZES["train"], 5), *make_split("val", SIZES["val"], 5))
    for a, b, expected in zip(first, again, drawn, strict=True):
        np.testing.assert_array_equal(a, expected)
        np.testing.assert_array_equal(b, expected)
        assert not b.flags.writeable
    assert [entry.name for entry in tmp_path.iterdir()] == [fingerprint(5, **SIZES)]


def test_cached_images_are_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path, **SIZES)
    monkeypatch.setattr(petals, "make_split", lambda *_: pytest.fail("drawn again"))
    load(tmp_path, **SIZES)


@pytest.mark.parametrize("variable", ["TINYNET_CACHE", "XDG_CACHE_HOME"])
def test_environment_variable_sets_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("TINYNET_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    load(train=SIZES["train"], val=SIZES["val"])
    home = tmp_path if variable == "TINYNET_CACHE" else tmp_path / "tinynet-search"
    assert (home / fingerprint(0, **SIZES)).is_dir()


@pytest.mark.parametrize(
    "damage", ["truncated", "missing", "not an array", "empty", "wrong size", "a file"]
)
def test_damaged_cache_is_drawn_again(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / fingerprint(0, **SIZES)
    expected = np.array(load(tmp_path, **SIZES).train_images)
    _damage(folder, damage)
    np.testing.assert_array_equal(load(tmp_path, **SIZES).train_images, expected)
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


def test_concurrent_writers_all_get_a_valid_cache(tmp_path: Path) -> None:
    folder = tmp_path / fingerprint(0, **SIZES)
    expected = make_split("train", SIZES["train"], 0)[0]
    for damage in (None, "missing", "truncated"):
        if damage:
            _damage(folder, damage)
        with ThreadPoolExecutor(8) as pool:
            for arrays in pool.map(lambda _: load(tmp_path, **SIZES), range(16)):
                np.testing.assert_array_equal(arrays.train_images, expected)
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


def _damage(folder: Path, damage: str) -> None:
    images = folder / "train_images.npy"
    data = images.read_bytes()
    images.unlink()
    if damage == "truncated":
        images.write_bytes(data[: len(data) // 2])
    elif damage == "not an array":
        images.write_bytes(b"not an array")
    elif damage == "empty":
        images.touch()
    elif damage == "wrong size":
        np.save(images, np.zeros((3, NATIVE, NATIVE, 3), np.uint8))
    elif damage == "a file":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.write_text("")
