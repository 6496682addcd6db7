"""``tinynet data imagenet100``: the same subset from each form of ImageNet and after interruptions.

Invalid requests give a one-line error.
"""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from search_spaces import RequestError
from tests.data import fake_imagenet as fake
from tinynet_search.cli.main import run
from trainables.data import open_data
from trainables.data.detect import detect_data
from trainables.data.sources.encoded import EncodedData
from trainables.data.subset.selection import Selection, draw

SIZE_OPTIONS = ("--num-classes", "3", "--images-per-class", "5")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.write(tmp_path_factory.mktemp("imagenet") / "tree", "tree")


class CommandResult(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def make(capsys: pytest.CaptureFixture[str], tree: Path) -> Callable[..., CommandResult]:
    """Return a function that runs the command in this process, by default on the tree."""

    def run_command(out: Path, *arguments: object, source: Path = tree) -> CommandResult:
        code = run(
            [
                "data",
                "imagenet100",
                "--imagenet",
                str(source),
                "--out",
                str(out),
                *map(str, arguments),
            ]
        )
        captured = capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run_command


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def drawn(
    tree: Path, seed: int, per_class: int, classes: int | list[str]
) -> tuple[Selection, set[str]]:
    data = open_data(detect_data(str(tree)))
    assert isinstance(data, EncodedData)
    selection = draw(data, seed, per_class, classes)
    return selection, {data.train.names[int(i)] for i in selection.chosen["train"]}


def test_written_files(tmp_path: Path, tree: Path, make: Callable[..., CommandResult]) -> None:
    result = make(tmp_path / "out", *SIZE_OPTIONS, "--seed", 3, "--json")
    assert result.code == 0
    written = files(tmp_path / "out")
    classes = written.pop("classes.txt").decode().split()
    listing, record = written.pop("files.csv"), json.loads(written.pop("imagenet100.json"))
    assert len(classes) == 3
    assert set(classes) < set(fake.WNIDS)
    rows = list(csv.DictReader(listing.decode().splitlines()))
    assert list(rows[0]) == ["split", "class", "file", "bytes", "sha256"]
    assert {f"{row['split']}/{row['class']}/{row['file']}" for row in rows} == set(written)
    assert all(
        row["sha256"] == hashlib.sha256(written["/".join(list(row.values())[:3])]).hexdigest()
        for row in rows
    )
    for name, data in written.items():
        split, _, rest = name.partition("/")
        assert fake.images()[split][rest] == data
    for name in classes:
        assert sum(file.startswith(f"train/{name}/") for file in written) == 5
        assert sum(file.startswith(f"val/{name}/") for file in written) == fake.VAL
    assert (record["classes"], record["train"], record["val"]) == (3, 15, 9)
    assert (record["drawn_from"], record["seed"], record["images_per_class"]) == ("seed", 3, 5)
    assert record["files_sha256"] == hashlib.sha256(listing).hexdigest()
    assert record["bytes"] == sum(map(len, written.values()))
    assert record["source"] == "imagefolder"
    assert str(tmp_path) not in json.dumps(record)
    document = json.loads(result.out)
    assert (document["written"], document["kept"]) == (24, 0)
    data = open_data({"name": "imagefolder", "path": str(tmp_path / "out")})
    assert (data.train_size, data.val_size, data.class_names) == (15, 9, classes)


@pytest.mark.parametrize("form", [form for form in fake.FORMS if form != "parquet binary"])
def test_every_form_gives_the_same_subset(
    tmp_path: Path, make: Callable[..., CommandResult], form: str
) -> None:
    assert make(tmp_path / "expected", *SIZE_OPTIONS).code == 0
    source = fake.write(tmp_path / "source", form)
    result = make(tmp_path / "out", *SIZE_OPTIONS, "--workers", 3, source=source)
    assert result.code == 0
    assert "copying 24 images" in result.err
    assert "24 of 24 images" in result.err
    assert result.out.endswith(
        f"tinynet data pack --data {tmp_path / 'out'} --out {tmp_path / 'out'}-packed\n"
    )
    expected, written = files(tmp_path / "expected"), files(tmp_path / "out")
    assert expected.pop("imagenet100.json")
    assert written.pop("imagenet100.json")
    assert written == expected


def test_drawing_follows_its_description(tree: Path) -> None:
    """The test implements the description in imagenet100.json independently."""

    def lowest(key: list[int], items: list[str], count: int) -> list[str]:
        numbers = np.random.default_rng(key).random(len(items))
        return sorted(sorted(items, key=dict(zip(items, numbers, strict=True)).__getitem__)[:count])

    for seed in (0, 1):
        selection, names = drawn(tree, seed, 4, 2)
        assert selection.classes == lowest([1, seed, 0], sorted(fake.WNIDS), 2)
        expected = []
        for wnid in selection.classes:
            key = int.from_bytes(hashlib.sha256(wnid.encode()).digest()[:8], "big")
            expected += lowest(
                [1, seed, 1, key],
                sorted(name for name in fake.images()["train"] if name.startswith(wnid)),
                4,
            )
        assert names == set(expected)


def test_larger_subset_of_a_seed_contains_the_smaller_one(tree: Path) -> None:
    small, few = drawn(tree, 5, 3, 2)
    large, many = drawn(tree, 5, 6, 4)
    assert set(small.classes) < set(large.classes)
    assert few < many
    assert drawn(tree, 6, 6, 4)[1] != many
    assert drawn(tree, 5, 3, small.classes)[1] == few


def test_class_list(tmp_path: Path, make: Callable[..., CommandResult]) -> None:
    published = tmp_path / "classes.txt"
    published.write_text(
        "# from a paper\n\nn03954731 plane\nn01440764,tench, Tinca tinca  # a fish\r\n n07745940\n"
        "n03954731\n"
    )
    assert make(tmp_path / "out", "--classes", published, "--images-per-class", 2).code == 0
    assert (tmp_path / "out" / "classes.txt").read_text().split() == [
        "n01440764",
        "n03954731",
        "n07745940",
    ]
    assert (
        json.loads((tmp_path / "out" / "imagenet100.json").read_text())["drawn_from"] == "classes"
    )


def test_file_list(tmp_path: Path, make: Callable[..., CommandResult]) -> None:
    """A published files.csv gives the same files from another form.

    An image with a listed name and different content is an error.
    """
    make(tmp_path / "first", *SIZE_OPTIONS, "--seed", 8)
    published = tmp_path / "first" / "files.csv"
    tars = fake.write(tmp_path / "tars", "tars")
    assert make(tmp_path / "second", "--list", published, source=tars).code == 0
    for name in ("files.csv", "classes.txt"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    other = fake.write(tmp_path / "other", "tree")
    changed = next(name for name in files(tmp_path / "first") if name.startswith("val/"))
    (other / changed).write_bytes((other / changed).read_bytes() + b"\0")
    result = make(tmp_path / "third", "--list", published, source=other)
    assert (result.code, result.out) == (2, "")
    assert f"is not the listed {changed!r} (its SHA-256 differs)" in result.err
    (other / changed).unlink()
    assert "1 val images of" in make(tmp_path / "fourth", "--list", published, source=other).err


KILLED = """
import os, signal, sys
from pathlib import Path
left = int(sys.argv.pop(1))
original = Path.replace
def replace(half, target):
    global left
    if "train/" in str(target) or "val/" in str(target):
        left -= 1
        if not left:  # leave this file half written
            os.truncate(half, half.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    return original(half, target)
Path.replace = replace
from tinynet_search.cli.main import main
main()
"""


@pytest.mark.parametrize("form", ["tree", "parquet"])
def test_resumes_after_a_kill(
    tmp_path: Path, make: Callable[..., CommandResult], form: str
) -> None:
    source = fake.write(tmp_path / "source", form)
    assert make(tmp_path / "expected", *SIZE_OPTIONS, source=source).code == 0
    out = tmp_path / "out"
    command = [
        "data",
        "imagenet100",
        "--imagenet",
        source,
        "--out",
        out,
        *SIZE_OPTIONS,
        "--workers",
        "2",
    ]
    for left in (9, 7):
        process = subprocess.run(
            [sys.executable, "-c", KILLED, str(left), *map(str, command)],
            capture_output=True,
            text=True,
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert not (out / "imagenet100.json").exists()
        complete = {
            name: data for name, data in files(out).items() if name.startswith(("train/", "val/"))
        }
        assert complete
        assert complete.items() < files(tmp_path / "expected").items()
    journal = (out / ".building" / "files.csv").read_text().splitlines()
    journalled = {"/".join(line.split(",")[:3]) for line in journal}
    # Each of the two kills may lose the row of the file that the other thread has just written.
    assert len(journalled) >= 8 - 1 + 6 - 1
    before = {name: (out / name).stat().st_mtime_ns for name in journalled}
    with (out / ".building" / "files.csv").open("a") as file:
        file.write("train,n01440764,truncated")
    result = make(out, *SIZE_OPTIONS, source=source)
    assert result.code == 0
    assert f"{24 - len(journalled)} images written, {len(journalled)} existed" in result.out
    assert {name: (out / name).stat().st_mtime_ns for name in journalled} == before
    assert files(out) == files(tmp_path / "expected")


def test_complete_subset_is_unchanged_and_lost_files_are_copied_again(
    tmp_path: Path, make: Callable[..., CommandResult]
) -> None:
    out = tmp_path / "out"
    make(out, *SIZE_OPTIONS)
    before = files(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    result = make(out, *SIZE_OPTIONS)
    assert result.code == 0
    assert "already complete, nothing changed" in result.out
    assert result.err == ""
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    lost, truncated = (out / name for name in sorted(name for name in before if "/" in name)[3:5])
    lost.unlink()
    os.truncate(truncated, 10)
    assert "2 images written, 22 existed" in make(out, *SIZE_OPTIONS).out
    assert files(out) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--num-classes", "7", "--images-per-class", "5"),
            "expected 7 or more classes, got 6: pass --num-classes 6 or fewer",
        ),
        ((), "expected 100 or more classes, got 6"),
        (
            ("--num-classes", "3"),
            "expected 500 or more training images, got 9: pass --images-per-class 9 or fewer",
        ),
        (("--num-classes", "1"), "--num-classes"),
        (("--seed", "-1"), "--seed"),
        (
            ("--classes", "unknown.txt"),
            "2 of 3 classes of 'unknown.txt' are not in the images: 'n99999999', 'cat'",
        ),
        (("--classes", "one.txt"), "has 1 class"),
        (("--classes", "nowhere.txt"), "cannot be read"),
        (("--classes", "unknown.txt", "--num-classes", "2"), "remove --num-classes"),
        (("--list", "one.txt"), "is not a list of files (line 1)"),
        (("--list", "invalid.csv"), "is not a list of files (line 2)"),
        (("--list", "twice.csv"), "lists 'train/n01440764/a.JPEG' 2 times: list each file once"),
        (("--list", "nowhere.csv"), "cannot be read"),
        (("--list", "one.txt", "--seed", "1"), "remove --seed"),
        (("--imagenet", "empty"), "expected packed.json"),
        (("--imagenet", "nowhere"), "does not exist"),
        (("--imagenet", "packed"), "is a packed set"),
        ((*SIZE_OPTIONS, "--out", "one.txt"), "holds other files"),
        ((*SIZE_OPTIONS, "--out", "one.txt/below"), "cannot be created"),
        (
            (*SIZE_OPTIONS, "--out", "packed"),
            "holds other files: pass an empty or new folder as --out",
        ),
    ],
)
def test_invalid_request_gives_one_line_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., CommandResult],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unknown.txt").write_text("n01440764\nn99999999\ncat\n")
    Path("one.txt").write_text("n01440764\n")
    Path("invalid.csv").write_text("split,class,file,bytes,sha256\ntrain,n01440764,a.JPEG,12,abc\n")
    row = f"train,n01440764,a.JPEG,12,{'0' * 64}\n"
    Path("twice.csv").write_text(f"split,class,file,bytes,sha256\n{row}{row}")
    Path("empty").mkdir()
    Path("packed").mkdir()
    Path("packed/packed.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    result = make(Path("out"), *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.splitlines()[-1].startswith("tinynet: ")
    assert "Traceback" not in result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_with_another_set_or_other_files_is_an_error(
    tmp_path: Path, make: Callable[..., CommandResult]
) -> None:
    out = tmp_path / "out"
    make(out, *SIZE_OPTIONS)
    for arguments, message in (
        (
            (*SIZE_OPTIONS, "--seed", 1),
            "holds a different set (expected seed 1, got 0): pass another --out",
        ),
        (("--num-classes", 4, "--images-per-class", 5), "(expected classes 4, got 3)"),
        (("--list", out / "files.csv"), "(expected drawn_from list, got seed)"),
    ):
        result = make(out, *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert message in result.err
    extra = out / "train" / (out / "classes.txt").read_text().split()[0] / "extra.JPEG"
    extra.write_bytes(b"extra")
    assert "1 of the files in" in make(out, *SIZE_OPTIONS).err
    extra.unlink()
    listing = out / "files.csv"
    listing.write_text(listing.read_text().replace("a", "b"))
    assert "was changed after it was written" in make(out, *SIZE_OPTIONS).err


@pytest.mark.parametrize(
    "damage", ["{", "[]", {"seed": "0"}, {"drawn_from": "elsewhere"}, {"files_sha256": None}]
)
def test_damaged_record_gives_one_line_error(
    tmp_path: Path, make: Callable[..., CommandResult], damage: str | dict[str, object]
) -> None:
    out = tmp_path / "out"
    make(out, *SIZE_OPTIONS)
    file = out / "imagenet100.json"
    record = json.loads(file.read_text())
    document = json.loads(make(out, *SIZE_OPTIONS, "--json").out)
    assert {key: document[key] for key in record} == record
    file.write_text(damage if isinstance(damage, str) else json.dumps(record | damage))
    result = make(out, *SIZE_OPTIONS)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "holds other files: pass an empty or new folder as --out" in result.err


def test_full_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., CommandResult]
) -> None:
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(free=24 * 4096))
    result = make(tmp_path / "out", *SIZE_OPTIONS)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "not enough disk space" in result.err
    assert not (tmp_path / "out").exists()


def test_run_after_a_storage_failure_resumes(
    tmp_path: Path, make: Callable[..., CommandResult]
) -> None:
    """A storage failure exits with code 1 and keeps the copied files.

    The same command resumes the copy.
    """
    source = fake.write(tmp_path / "source", "tree")
    make(tmp_path / "expected", *SIZE_OPTIONS, source=source)
    name = sorted(name for name in files(tmp_path / "expected") if name.startswith("val/"))[-1]
    data = (source / name).read_bytes()
    (source / name).unlink()
    (source / name).symlink_to("/proc/self/mem")  # a regular file whose first byte gives EIO
    result = make(tmp_path / "out", *SIZE_OPTIONS, source=source)
    assert (result.code, result.out) == (1, "")
    assert "the same command" in result.err
    (source / name).unlink()
    (source / name).write_bytes(data)
    assert (
        "1 images written, 23 existed" in make(tmp_path / "out", *SIZE_OPTIONS, source=source).out
    )
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_concurrent_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., CommandResult]
) -> None:
    from trainables.data.subset import build as subset

    out, inner = tmp_path / "out", []
    original = subset._copy_images

    def with_second_run(*arguments: object) -> object:
        monkeypatch.setattr(subset, "_copy_images", original)
        inner.append(make(out, *SIZE_OPTIONS))
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(subset, "_copy_images", with_second_run)
    assert make(out, *SIZE_OPTIONS).code == 0
    assert inner[0].code == 2
    assert "another run is writing" in inner[0].err


@pytest.mark.parametrize(
    "path", ["n01440764/../../../outside.JPEG", "n01440764/..", "n01440764", "n01440764/a\nb.JPEG"]
)
def test_names_outside_their_class_are_an_error(tmp_path: Path, tree: Path, path: str) -> None:
    from dataclasses import replace

    from trainables.data.subset.build import build

    data = open_data(detect_data(str(tree)))
    assert isinstance(data, EncodedData)
    data.train = replace(data.train, names=[path, *data.train.names[1:]])
    selection = draw(data, 0, fake.TRAIN, 6)
    with pytest.raises(RequestError, match="expected the path of a file below its class"):
        build(data, selection, tmp_path / "out", {}, 1, NotImplemented)
    assert list(tmp_path.iterdir()) == []
