"""ImageFolder trees: classes, the paper's transforms, and invalid trees."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces import RequestError
from tests.trainables.helpers import tiny_spec
from trainables.data import MicroBatch, open_data
from trainables.data.sources.encoded import UnreadableImageError, decode_image
from trainables.data.sources.imagefolder import ImageFolderData
from trainables.execution import Execution
from trainables.recipe import get_recipe
from trainables.spec import LocalReporter
from trainables.trial import run_trial


def make_tree(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for part, n in (("train", count), ("val", 6)):
        for i, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(n):
                pixels = rng.integers(0, 80, (40, 56, 3)) + 150 * np.eye(3, dtype=int)[i % 3]
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                    folder / f"{k:02d}.{'jpg' if k % 2 else 'png'}"
                )
    return root


def test_reads_and_trains(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    settings = {"name": "imagefolder", "path": str(tree)}
    data = open_data(settings)
    assert list(data.class_names) == ["cat", "dog"]
    assert (data.train_size, data.val_size) == (40, 12)
    spec = tiny_spec((0.75, 0.4, 0.5), data=settings, batch=8, micro_batch=8, epochs=8, lr=3e-3)
    result = run_trial(spec, str(tmp_path / "search"), LocalReporter())
    assert result.status == "finished"
    assert result.epochs[-1].top1_raw > 60


def test_fingerprint_depends_on_content_not_path(tmp_path: Path) -> None:
    one, other = make_tree(tmp_path / "one"), make_tree(tmp_path / "two")
    fingerprint = ImageFolderData(str(one)).fingerprint
    assert ImageFolderData(str(other)).fingerprint == fingerprint
    (other / "train" / "cat" / "00.png").write_bytes(b"longer or shorter")
    assert ImageFolderData(str(other)).fingerprint != fingerprint


def test_transforms_of_the_paper(tmp_path: Path) -> None:
    """The seed determines the pixels of training images.

    Evaluation resizes the short side to pixels / 0.875 and crops the centre.
    """
    data = ImageFolderData(str(make_tree(tmp_path)))
    loader = data.loader(
        24, get_recipe("efficientnet", randaugment="rand-m9-mstd0.5"), torch.device("cpu")
    )
    batches = [MicroBatch(np.arange(8), seed) for seed in (1, 1, 2)]
    images = [images for images, _ in loader.train(batches)]
    assert images[0].shape == (8, 3, 24, 24)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    ((val, labels),) = loader.val([np.array([0, 11])])
    assert labels.tolist() == [0, 1]
    with Image.open(tmp_path / "val" / "cat" / "00.png") as picture:
        short = int(24 / 0.875)
        scaled = picture.resize((int(short * 56 / 40), short), Image.Resampling.BICUBIC)
        left, top = round((scaled.width - 24) / 2), round((short - 24) / 2)
        expected = np.asarray(scaled.crop((left, top, left + 24, top + 24)), np.float32) / 255
    plain = val[0].permute(1, 2, 0).numpy() * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    assert np.abs(plain - expected).max() < 2 / 255


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tree: None, "does not exist"),
        (lambda tree: make_tree(tree, ("cat",)), "has 1 class"),
        (lambda tree: (tree / "train").mkdir(parents=True), "has no images"),
        (lambda tree: (tree / "val").mkdir(parents=True), "has no train/"),
        (
            lambda tree: make_tree(tree) and (tree / "val" / "dog").rename(tree / "val" / "fox"),
            "'dog' is in only one of",
        ),
    ],
)
def test_invalid_tree_gives_one_line_error(tmp_path: Path, damage: object, message: str) -> None:
    damage(tmp_path / "tree")  # type: ignore[operator]
    with pytest.raises(RequestError, match=message) as error:
        ImageFolderData(str(tmp_path / "tree"))
    assert "\n" not in str(error.value)


def test_unreadable_image_fails_the_trial_with_its_name(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    bad = tree / "train" / "cat" / "03.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    spec = tiny_spec(
        data={"name": "imagefolder", "path": str(tree)}, batch=8, micro_batch=8, epochs=1
    )
    result = run_trial(spec, str(tmp_path / "search"), LocalReporter())
    assert (result.status, result.reason) == ("failed", "unreadable data")
    assert "03.jpg" in (result.detail or "")


def test_loader_process_reports_unreadable_image_in_one_line(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    bad = tree / "train" / "cat" / "03.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    spec = tiny_spec(
        data={"name": "imagefolder", "path": str(tree)}, batch=8, micro_batch=8, epochs=1
    )
    result = run_trial(spec, str(tmp_path / "search"), LocalReporter(), Execution(loader_workers=1))
    assert (result.status, result.reason) == ("failed", "unreadable data")
    detail = result.detail or ""
    assert detail.startswith(f"image {str(bad)!r} cannot be read: ") and "\n" not in detail


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_jpegs_are_read(mode: str) -> None:
    image = decode_image(
        encoded(Image.new(mode, (6, 4), 128 if mode == "L" else (0, 255, 255, 0)), "JPEG"),
        "one.jpg",
    )
    assert (image.mode, image.size) == ("RGB", (6, 4))
    expected = (128, 128, 128) if mode == "L" else (255, 0, 0)
    assert np.abs(np.asarray(image, int) - expected).max() <= 3


def test_more_than_8_bits_per_colour_gives_an_error_with_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deep = encoded(Image.fromarray(np.full((4, 6), 3000, np.uint16)), "PNG")
    for data, reason in (
        (deep, "expected 8 bits per colour, got 16 bits per pixel"),
        (b"no image", "cannot identify image file"),
    ):
        with pytest.raises(UnreadableImageError) as error:
            decode_image(data, "cat/16.png")
        assert str(error.value) == f"image 'cat/16.png' cannot be read: {reason}"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(
        UnreadableImageError, match=r"image 'cat/huge.png' cannot be read: .*exceeds limit"
    ):
        decode_image(encoded(Image.new("RGB", (6, 4)), "PNG"), "cat/huge.png")


def encoded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def test_unknown_data_and_settings() -> None:
    with pytest.raises(RequestError, match="did you mean 'petals'"):
        open_data({"name": "petal"})
    with pytest.raises(RequestError, match="did you mean 'path'"):
        open_data({"name": "imagefolder", "pth": "x"})
    with pytest.raises(RequestError, match="expected an integer"):
        open_data({"name": "petals", "train": 3})
