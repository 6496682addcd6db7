"""Parquet shards: uploads that are mixed, labels without a class, and names of classes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from search_spaces import RequestError
from tests.data.test_listing import APPLE_DOUBLE, picture
from tinynet_search.cli.main import run
from trainables.data import ignored as reasons
from trainables.data.ignored import IgnoredFiles
from trainables.data.sources.parquet import ParquetData

pytestmark = pytest.mark.quick

ID = "a09b74b3ef9c3b56"
OTHER_ID = "0c1d2e3f40516273"


def write(
    file: Path,
    labels: Sequence[int | str],
    names: Sequence[str] = (),
    paths: Mapping[int, str] | None = None,
) -> None:
    """Write a shard with one image per label.

    Args:
        names: the hub's label names.
        paths: the paths of some rows; the others have none.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    paths = paths or {}
    images = [{"bytes": picture("PNG", row), "path": paths.get(row)} for row in range(len(labels))]
    table = pa.table({"image": images, "label": labels})
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        info = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(table, file)


def write_set(root: Path, train: Sequence[str] = ("train-00000-of-00001.parquet",)) -> Path:
    for name in train:
        write(root / name, [0, 1, 0])
    write(root / "validation-00000-of-00001.parquet", [0, 1])
    return root


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            (
                f"train-00000-of-00001-{ID}.parquet",
                f"train-00000-of-00002-{OTHER_ID}.parquet",
                f"train-00001-of-00002-{OTHER_ID}.parquet",
            ),
            rf"of several uploads \(for example 'train-00000-of-00001-{ID}.parquet' and "
            rf"'train-00000-of-00002-{OTHER_ID}.parquet'\): keep those of one",
        ),
        (
            (f"train-00000-of-00001-{ID}.parquet", f"train-00000-of-00001-{OTHER_ID}.parquet"),
            f"of several uploads .*'train-00000-of-00001-{OTHER_ID}.parquet' and ",
        ),
        (
            ("train-00000-of-00001.parquet", "train-all.parquet"),
            "of several uploads .*'train-all.parquet'",
        ),
        (
            ("train-00000-of-00001.parquet", "train.parquet"),
            r"are there twice, as train-\*.parquet \(1\) and train.parquet \(1\): keep one",
        ),
        (
            ("train-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"),
            r"are there twice, as train-\*.parquet \(1\) and data/train-\*.parquet \(1\)",
        ),
        (("train.parquet", "train/0000.parquet"), "are there twice"),
    ],
)
def test_shards_of_several_uploads_are_an_error(
    tmp_path: Path, train: tuple[str, ...], message: str
) -> None:
    write_set(tmp_path, train)
    with pytest.raises(RequestError, match=message) as error:
        ParquetData(str(tmp_path))
    assert "\n" not in str(error.value)


def test_validation_shards_of_two_names_are_an_error(tmp_path: Path) -> None:
    write_set(tmp_path)
    write(tmp_path / "val-00000-of-00001.parquet", [0, 1])
    with pytest.raises(RequestError, match=r"the val images in .* are there twice"):
        ParquetData(str(tmp_path))


@pytest.mark.parametrize(
    "train",
    [
        # The hub's older uploads have one id per shard.
        (f"train-00000-of-00002-{ID}.parquet", f"train-00001-of-00002-{OTHER_ID}.parquet"),
        ("train-a.parquet", "train-b.parquet"),
        ("train/0000.parquet", "train/0001.parquet"),
    ],
)
def test_shards_of_one_upload_are_read_once(tmp_path: Path, train: tuple[str, ...]) -> None:
    data = ParquetData(str(write_set(tmp_path, train)))
    assert (data.train_size, data.val_size) == (6, 2)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (
            [0, 1, -1, -1],
            (),
            r"2 of 4 images of the split 'validation' in .* have no class \(label -1\)",
        ),
        ([-1, -1], ("cat", "dog"), "2 of 2 images of the split 'validation'"),
        ([0, 2], ("cat", "dog"), "label 2 in .* is not one of its 2 classes"),
    ],
)
def test_labels_without_a_class_are_an_error(
    tmp_path: Path, labels: list[int], names: tuple[str, ...], message: str
) -> None:
    write(tmp_path / "train.parquet", [0, 1], names)
    write(tmp_path / "validation.parquet", labels, names)
    with pytest.raises(RequestError, match=message):
        ParquetData(str(tmp_path), val="validation")


def test_empty_text_label_and_mixed_types_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", ["cat", "dog", ""])
    write(tmp_path / "val.parquet", ["cat", "dog"])
    with pytest.raises(RequestError, match=r"1 of 3 .* no class \(label ''\)"):
        ParquetData(str(tmp_path))
    (tmp_path / "train.parquet").unlink()
    write(tmp_path / "train-0.parquet", ["0", "1"])
    write(tmp_path / "train-1.parquet", [0, 1])
    with pytest.raises(RequestError, match=r"has numbers in one of .* and text in the other"):
        ParquetData(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train.parquet": ("cat", "dog"), "val.parquet": ("dog", "cat")},
            "class 0 is 'cat' in '.*train.parquet' and 'dog' in 'val.parquet': use the shards of",
        ),
        (
            {"train-0.parquet": ("cat", "dog"), "train-1.parquet": ("cat", "dog", "fox")},
            "class 2 is None in '.*train-0.parquet' and 'fox' in 'train-1.parquet'",
        ),
    ],
)
def test_shards_that_number_classes_differently_are_an_error(
    tmp_path: Path, files: dict[str, tuple[str, ...]], message: str
) -> None:
    write(tmp_path / "val.parquet", [0, 1], ("cat", "dog"))
    for name, names in files.items():
        write(tmp_path / name, [0, 1], names)
    with pytest.raises(RequestError, match=message):
        ParquetData(str(tmp_path))


def test_wnids_that_contradict_the_labels_of_a_split_are_an_error(tmp_path: Path) -> None:
    cat, dog = "n02121808", "n02084071"
    write(tmp_path / "train.parquet", [0, 1], (), {0: f"{cat}_1.JPEG", 1: f"{dog}_1.JPEG"})
    write(tmp_path / "val.parquet", [0, 1], (), {0: f"x_{dog}.JPEG", 1: f"y_{cat}.JPEG"})
    with pytest.raises(RequestError, match=f"label 0 .* is class '{cat}' .* and '{dog}'"):
        ParquetData(str(tmp_path))


def test_repeated_names_of_classes_get_their_number(tmp_path: Path) -> None:
    """ImageNet has two classes named crane; both are kept, in a subset too."""
    root, out = tmp_path / "set", tmp_path / "out"
    names = ("crane", "dog", "crane", "a/b", "a_b")
    for split, labels in (("train", [0, 1, 2, 3, 4] * 2), ("val", [0, 1, 2, 3, 4])):
        paths = {row: f"{row}.png" for row in range(len(labels))}
        write(root / f"{split}.parquet", labels, names, paths)
    data = ParquetData(str(root))
    assert data.class_names == ["crane 0", "dog", "crane 2", "a/b 3", "a_b 4"]
    assert list(data.val.names) == [
        *("a_b 3/3.png", "a_b 4/4.png", "crane 0/0.png", "crane 2/2.png", "dog/1.png")
    ]
    command = ["data", "imagenet100", "--imagenet", str(root), "--out", str(out)]
    (tmp_path / "list.txt").write_text("crane 0\ncrane 2\n")
    options = ["--classes", str(tmp_path / "list.txt"), "--images-per-class", "2"]
    assert run([*command, *options]) == 0
    assert sorted(path.name for path in (out / "train").iterdir()) == ["crane 0", "crane 2"]


def test_rows_of_hidden_files_are_ignored(tmp_path: Path) -> None:
    paths = {0: "/home/x/.cache/0.png", 1: "1.png", 2: "._0.png", 3: "3.png"}
    write(tmp_path / "train.parquet", [0, 1, 0, 1], (), paths)
    write(tmp_path / "val.parquet", [0, 1])
    (tmp_path / "._train.parquet").write_bytes(APPLE_DOUBLE)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "._0.parquet").write_bytes(APPLE_DOUBLE)
    data = ParquetData(str(tmp_path))
    assert list(data.train.names) == ["0/0.png", "1/1.png", "1/3.png"]
    assert [data.train.read(i) for i in range(3)] == [picture("PNG", row) for row in (0, 1, 3)]
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.ignored == (IgnoredFiles(reasons.HIDDEN_FILE, 1, "._0.png"),)


def test_hidden_class_of_shards_does_not_vanish_from_a_subset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        write(tmp_path / f"{split}.parquet", [".net", "java"])
    command = ["data", "imagenet100", "--imagenet", tmp_path, "--out", tmp_path / "out"]
    assert run([*map(str, command), "--num-classes", "2", "--images-per-class", "1"]) == 2
    assert "would be a hidden file of the subset" in capsys.readouterr().err
