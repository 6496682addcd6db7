"""Data sources: each form of ImageNet gives the same set; damaged or incomplete forms fail."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

from search_spaces import RequestError
from tests.data import fake_imagenet as fake
from trainables.data import MicroBatch, Reading, open_data
from trainables.data.detect import detect_data
from trainables.data.sources.encoded import EncodedData, Part, UnreadableImageError
from trainables.data.sources.parquet import ParquetData, ParquetPart
from trainables.recipe import get_recipe

pytestmark = pytest.mark.quick

NAMES = {"tree": "imagefolder", "tars": "imagenet", "kaggle": "imagenet", "flat": "imagenet"}


def opened(root: Path) -> EncodedData:
    data = open_data(detect_data(str(root)))
    assert isinstance(data, EncodedData)
    return data


def content(part: Part) -> dict[str, bytes]:
    return {name: part.read(i) for i, name in enumerate(part.names)}


@pytest.mark.parametrize("form", [form for form in fake.FORMS if form != "parquet binary"])
def test_every_form_gives_the_same_set(tmp_path: Path, form: str) -> None:
    root = fake.write(tmp_path / "set", form)
    assert detect_data(str(root)) == {"name": NAMES.get(form, "parquet"), "path": str(root)}
    data = opened(root)
    assert data.class_names == sorted(fake.WNIDS)
    for part, split in ((data.train, "train"), (data.val, "val")):
        expected = fake.images()[split]
        assert list(part.names) == sorted(expected)
        assert content(part) == expected
        assert [data.class_names[label] for label in part.labels] == [
            name.split("/")[0] for name in part.names
        ]
        if not isinstance(part, ParquetPart):
            assert part.sizes.tolist() == [len(expected[name]) for name in part.names]
        assert content(pickle.loads(pickle.dumps(part))) == expected
    assert opened(fake.write(tmp_path / "elsewhere", form)).fingerprint == data.fingerprint


@pytest.mark.parametrize("form", ["tars", "parquet"])
def test_loader_processes_read_the_same_images(tmp_path: Path, form: str) -> None:
    """Loader processes are forked after this process has opened the files.

    A spawned process gets them pickled.
    """
    data = opened(fake.write(tmp_path / "set", form))
    first = data.train.read(0)
    batches = [MicroBatch(np.arange(4) + 4 * k, k) for k in range(3)]
    runs = []
    for workers in (0, 2):
        loader = data.loader(32, get_recipe("efficientnet"), torch.device("cpu"), Reading(workers))
        runs.append([images for images, _ in loader.train(batches)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(data.train.read, (0,)) == first


def test_fingerprint_depends_on_content(tmp_path: Path) -> None:
    root = fake.write(tmp_path / "tars", "kaggle")
    before = opened(root).fingerprint
    file = next((root / "ILSVRC/Data/CLS-LOC/val").iterdir())
    file.write_bytes(file.read_bytes() + b"\0")
    assert opened(root).fingerprint != before


def test_train_tree_with_validation_tar(tmp_path: Path) -> None:
    """An unpacked training split works with a packed validation split."""
    root = fake.write(tmp_path / "tars", "tars")
    (root / "ILSVRC2012_img_train.tar").unlink()
    (fake.write(tmp_path / "tree", "tree") / "train").rename(root / "train")
    data = opened(root)
    assert (content(data.train), content(data.val)) == (
        fake.images()["train"],
        fake.images()["val"],
    )


def test_parquet_reads_each_row_group_once_in_storage_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(fake.write(tmp_path / "set", "parquet"))
    assert isinstance(data.train, ParquetPart)
    read: list[int] = []
    original = parquet.ParquetFile.read_row_group

    def counted(self: parquet.ParquetFile, group: int, **options: Any) -> Any:
        assert options["columns"] == ["image.bytes"]
        read.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    assert {
        data.train.names[i]: data.train.read(int(i)) for i in data.train.order
    } == fake.images()["train"]
    assert len(read) == 3 * 5  # shards of 18 images in groups of four
    mean = np.mean([len(image) for image in fake.images()["train"].values()])
    assert abs(data.train.sizes.mean() / mean - 1) < 0.05


def test_opening_parquet_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake.write(tmp_path / "set", "parquet")
    requested: list[list[str]] = []
    original = parquet.ParquetFile.read

    def recorded(self: parquet.ParquetFile, columns: list[str], **options: Any) -> Any:
        requested.append(columns)
        return original(self, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read", recorded)
    monkeypatch.delattr(parquet.ParquetFile, "read_row_group")
    opened(root)
    assert requested == [["label", "image.path"]] * 6


def test_parquet_classes(tmp_path: Path) -> None:
    """Class names fall back from wnids to the metadata, then to the labels.

    Images without file names are named by number.
    """
    words = [f"word {i}" for i in range(6)]
    for name, names, options in (
        ("named", words, {}),
        ("bare", list("012345"), {"metadata": False}),
    ):
        fake.write_parquet(tmp_path / name, file_names=False, **options)
        data = ParquetData(str(tmp_path / name))
        assert data.class_names == names
        assert sorted(content(data.train).values()) == sorted(fake.images()["train"].values())
        wnids = {image: name.split("/")[0] for name, image in fake.images()["val"].items()}
        assert [
            sorted(fake.WNIDS).index(wnids[data.val.read(i)]) for i in range(data.val_size)
        ] == data.val.labels.tolist()
        assert all(name.split("/")[1][8:] == ".jpg" for name in data.train.names)
    binary = opened(fake.write(tmp_path / "binary", "parquet binary"))
    assert binary.class_names == sorted(fake.WNIDS)
    assert sorted(content(binary.val).values()) == sorted(fake.images()["val"].values())


def test_damage_during_reading(tmp_path: Path) -> None:
    """A damaged image and a storage failure raise different errors."""
    tars = opened(fake.write(tmp_path / "tars", "tars"))
    tar = tmp_path / "tars" / "ILSVRC2012_img_val.tar"
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(OSError, match=r"ILSVRC2012_val_00000012.*is truncated"):
        tars.val.image(list(tars.val.names).index("n02119789/ILSVRC2012_val_00000012.JPEG"))
    tree = opened(fake.write(tmp_path / "tree", "tree"))
    (tmp_path / "tree" / "train" / tree.train.names[5]).unlink()
    with pytest.raises(UnreadableImageError, match=Path(tree.train.names[5]).name):
        tree.train.image(5)
    shards = opened(fake.write(tmp_path / "shards", "parquet"))
    for file in (tmp_path / "shards").rglob("*.parquet"):
        file.write_bytes(b"PAR1")
    with pytest.raises(OSError, match="row group"):
        shards.val.image(0)


def _truncate(file: str) -> Callable[[Path], None]:
    def truncate(root: Path) -> None:
        data = (root / file).read_bytes()
        (root / file).write_bytes(data[: len(data) * 2 // 3])

    return truncate


def _move_away(file: str) -> Callable[[Path], object]:
    return lambda root: (root / file).rename(root.parent / "moved")


TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
CLS = "ILSVRC/Data/CLS-LOC"


@pytest.mark.parametrize(
    ("form", "damage", "message"),
    [
        ("tars", _truncate("ILSVRC2012_img_train.tar"), "truncated, damaged or not a tar file"),
        ("tars", _truncate("ILSVRC2012_img_val.tar"), "img_val.tar' is truncated"),
        ("tars", _truncate("ILSVRC2012_devkit_t12.tar.gz"), "devkit_t12.tar.gz' cannot be read"),
        ("tars", _move_away("ILSVRC2012_devkit_t12.tar.gz"), "put ILSVRC2012_devkit_t12.tar.gz"),
        ("tars", _move_away("ILSVRC2012_img_val.tar"), "put ILSVRC2012_img_val.tar"),
        ("tars", _move_away("ILSVRC2012_img_train.tar"), "put ILSVRC2012_img_train.tar"),
        (
            "tars",
            lambda root: (root / "ILSVRC2012_img_val.tar").write_bytes(b"x" * 2000),
            "not a tar file",
        ),
        ("flat", _move_away("ILSVRC2012_devkit_t12/data/meta.mat"), "cannot be read"),
        ("flat", lambda root: (root / TRUTH).write_text("1\n2\n"), "use the files of one release"),
        ("flat", lambda root: (root / TRUTH).write_text("77\n" * 18), "cannot be read"),
        ("flat", lambda root: (root / TRUTH).write_text("1\n" * 18), "is in only one of"),
        (
            "kaggle",
            _move_away("LOC_val_solution.csv"),
            "classes of ImageNet's validation images are not in",
        ),
        (
            "kaggle",
            lambda root: (root / "LOC_val_solution.csv").write_text("a,b\n1,2\n"),
            "cannot be read",
        ),
        ("kaggle", _move_away(f"{CLS}/val"), "no validation images"),
        ("kaggle", _move_away(f"{CLS}/train"), "no training images"),
        (
            "parquet",
            _move_away("data/train-00001-of-00003.parquet"),
            "1 of 3 train shards are missing in",
        ),
        ("parquet", _truncate("data/validation-00001-of-00003.parquet"), "or is damaged"),
        (
            "parquet",
            lambda root: [file.unlink() for file in root.glob("data/val*")],
            r"no val-\*.parquet",
        ),
        ("tree", _move_away("train"), "expected packed.json"),
    ],
)
def test_damaged_form_gives_one_line_error(
    tmp_path: Path, form: str, damage: Callable[[Path], object], message: str
) -> None:
    root = fake.write(tmp_path / "set", form)
    damage(root)
    with pytest.raises(RequestError, match=message) as error:
        opened(root)
    assert "\n" not in str(error.value)


def test_invalid_columns_and_settings(tmp_path: Path) -> None:
    root = fake.write(tmp_path / "set", "parquet")
    for settings, message in (
        ({"image": "img"}, "set data.image to one of image, label"),
        ({"image": "label"}, "expected encoded images"),
        ({"label": "image"}, "expected class numbers or names"),
        ({"label": 3}, "must be text"),
        ({"lable": "label"}, "did you mean 'label'"),
        ({"val": "test"}, r"no test-\*.parquet"),
    ):
        with pytest.raises(RequestError, match=message):
            open_data({"name": "parquet", "path": str(root), **settings})
    for name in ("parquet", "imagenet"):
        with pytest.raises(RequestError, match="does not exist"):
            open_data({"name": name, "path": str(root / "nowhere")})
    with pytest.raises(RequestError, match="does not exist"):
        detect_data(str(root / "nowhere"))


@pytest.mark.parametrize(
    ("form", "unwanted"),
    [("tree", {"torch", "pyarrow", "scipy"}), ("kaggle", {"torch", "pyarrow", "scipy"})],
)
def test_opening_imports_only_what_it_needs(tmp_path: Path, form: str, unwanted: set[str]) -> None:
    root = fake.write(tmp_path / "set", form)
    imports = (
        "import sys; from trainables.data import open_data; "
        "from trainables.data.detect import detect_data"
    )
    script = f"{imports}; open_data(detect_data({str(root)!r})); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not unwanted & set(loaded)
