"""``tinynet data imagenet100``: the same subset from every form of ImageNet, whatever stops it, and what it refuses."""

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
from trainables.data.detect import detected
from trainables.data.sources.encoded import EncodedData
from trainables.data.subset.selection import Selection, draw

ASKED = ("--num-classes", "3", "--images-per-class", "5")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.write(tmp_path_factory.mktemp("imagenet") / "tree", "tree")


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def make(capsys: pytest.CaptureFixture[str], tree: Path) -> Callable[..., Said]:
    """The command in this process; from the tree where no other source is given."""

    def made(out: Path, *arguments: object, source: Path = tree) -> Said:
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
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return made


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def drawn(
    tree: Path, seed: int, per_class: int, classes: int | list[str]
) -> tuple[Selection, set[str]]:
    data = open_data(detected(str(tree)))
    assert isinstance(data, EncodedData)
    selection = draw(data, seed, per_class, classes)
    return selection, {data.train.names[int(i)] for i in selection.chosen["train"]}


def test_what_is_written(tmp_path: Path, tree: Path, make: Callable[..., Said]) -> None:
    said = make(tmp_path / "out", *ASKED, "--seed", 3, "--json")
    assert said.code == 0
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
    document = json.loads(said.out)
    assert (document["written"], document["kept"]) == (24, 0)
    data = open_data({"name": "imagefolder", "path": str(tmp_path / "out")})
    assert (data.train_size, data.val_size, data.class_names) == (15, 9, classes)


@pytest.mark.parametrize("form", [form for form in fake.FORMS if form != "parquet binary"])
def test_same_from_every_form(tmp_path: Path, make: Callable[..., Said], form: str) -> None:
    assert make(tmp_path / "expected", *ASKED).code == 0
    source = fake.write(tmp_path / "source", form)
    said = make(tmp_path / "out", *ASKED, "--workers", 3, source=source)
    assert said.code == 0
    assert "copying 24 images" in said.err
    assert "24 of 24 images" in said.err
    assert said.out.endswith(
        f"next: tinynet data pack --data {tmp_path / 'out'} --out {tmp_path / 'out'}-packed\n"
    )
    expected, written = files(tmp_path / "expected"), files(tmp_path / "out")
    assert expected.pop("imagenet100.json")
    assert written.pop("imagenet100.json")
    assert written == expected


def test_drawing_is_what_its_text_says(tree: Path) -> None:
    """Written out again from the words in imagenet100.json, so that anyone can."""

    def lowest(key: list[int], things: list[str], count: int) -> list[str]:
        numbers = np.random.default_rng(key).random(len(things))
        return sorted(
            sorted(things, key=dict(zip(things, numbers, strict=True)).__getitem__)[:count]
        )

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


def test_more_of_the_same_seed_holds_what_fewer_does(tree: Path) -> None:
    small, few = drawn(tree, 5, 3, 2)
    large, many = drawn(tree, 5, 6, 4)
    assert set(small.classes) < set(large.classes)
    assert few < many
    assert drawn(tree, 6, 6, 4)[1] != many
    assert drawn(tree, 5, 3, small.classes)[1] == few


def test_class_list(tmp_path: Path, make: Callable[..., Said]) -> None:
    published = tmp_path / "classes.txt"
    published.write_text(
        "# of somebody's paper\n\nn03954731 plane\nn01440764,tench, Tinca tinca  # a fish\r\n n07745940\nn03954731\n"
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


def test_file_list(tmp_path: Path, make: Callable[..., Said]) -> None:
    """A published files.csv makes the same files from another form; another image under a listed name is refused."""
    make(tmp_path / "first", *ASKED, "--seed", 8)
    published = tmp_path / "first" / "files.csv"
    tars = fake.write(tmp_path / "tars", "tars")
    assert make(tmp_path / "second", "--list", published, source=tars).code == 0
    for name in ("files.csv", "classes.txt"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    other = fake.write(tmp_path / "other", "tree")
    changed = next(name for name in files(tmp_path / "first") if name.startswith("val/"))
    (other / changed).write_bytes((other / changed).read_bytes() + b"\0")
    said = make(tmp_path / "third", "--list", published, source=other)
    assert (said.code, said.out) == (2, "")
    assert f"is not the listed {changed!r} (its SHA-256 differs)" in said.err
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
        if not left:  # in the middle of writing this one
            os.truncate(half, half.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    return original(half, target)
Path.replace = replace
from tinynet_search.cli.main import main
main()
"""


@pytest.mark.parametrize("form", ["tree", "parquet"])
def test_killed_and_run_again(tmp_path: Path, make: Callable[..., Said], form: str) -> None:
    source = fake.write(tmp_path / "source", form)
    assert make(tmp_path / "expected", *ASKED, source=source).code == 0
    out = tmp_path / "out"
    command = ["data", "imagenet100", "--imagenet", source, "--out", out, *ASKED, "--workers", "2"]
    for left in (9, 7):
        process = subprocess.run(
            [sys.executable, "-c", KILLED, str(left), *map(str, command)],
            capture_output=True,
            text=True,
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert not (out / "imagenet100.json").exists()
        whole = {
            name: data for name, data in files(out).items() if name.startswith(("train/", "val/"))
        }
        assert whole
        assert whole.items() < files(tmp_path / "expected").items()
    journal = (out / ".building" / "files.csv").read_text().splitlines()
    journalled = {"/".join(line.split(",")[:3]) for line in journal}
    assert (
        len(journalled) >= 8 - 1 + 6 - 1
    )  # each of the two kills may forget what the other thread has just written
    before = {name: (out / name).stat().st_mtime_ns for name in journalled}
    with (out / ".building" / "files.csv").open("a") as file:
        file.write("train,n01440764,torn")
    said = make(out, *ASKED, source=source)
    assert said.code == 0
    assert f"{24 - len(journalled)} images written, {len(journalled)} were there" in said.out
    assert {name: (out / name).stat().st_mtime_ns for name in journalled} == before
    assert files(out) == files(tmp_path / "expected")


def test_finished_changes_nothing_and_mends_what_was_lost(
    tmp_path: Path, make: Callable[..., Said]
) -> None:
    out = tmp_path / "out"
    make(out, *ASKED)
    before = files(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    said = make(out, *ASKED)
    assert said.code == 0
    assert "already complete, nothing changed" in said.out
    assert said.err == ""
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    lost, cut = (out / name for name in sorted(name for name in before if "/" in name)[3:5])
    lost.unlink()
    os.truncate(cut, 10)
    assert "2 images written, 22 were there" in make(out, *ASKED).out
    assert files(out) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--num-classes", "7", "--images-per-class", "5"),
            "there are 6 classes and 7 are wanted: pass --num-classes 6 or fewer",
        ),
        ((), "there are 6 classes and 100 are wanted"),
        (
            ("--num-classes", "3"),
            "has 9 training images and 500 are wanted: pass --images-per-class 9 or fewer",
        ),
        (("--num-classes", "1"), "--num-classes"),
        (("--seed", "-1"), "--seed"),
        (
            ("--classes", "strange.txt"),
            "2 of 3 classes of 'strange.txt' are not in the images: 'n99999999', 'cat'",
        ),
        (("--classes", "one.txt"), "names 1 class"),
        (("--classes", "nowhere.txt"), "cannot be read"),
        (("--classes", "strange.txt", "--num-classes", "2"), "give no --num-classes"),
        (("--list", "one.txt"), "is no list of files (line 1)"),
        (("--list", "torn.csv"), "is no list of files (line 2)"),
        (("--list", "nowhere.csv"), "cannot be read"),
        (("--list", "one.txt", "--seed", "1"), "give no --seed"),
        (("--imagenet", "empty"), "looked for packed.json"),
        (("--imagenet", "nowhere"), "does not exist"),
        (("--imagenet", "packed"), "is a packed set"),
        ((*ASKED, "--out", "one.txt"), "holds other files"),
        ((*ASKED, "--out", "one.txt/below"), "cannot be made"),
        ((*ASKED, "--out", "packed"), "holds other files: give --out an empty folder"),
    ],
)
def test_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., Said],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("strange.txt").write_text("n01440764\nn99999999\ncat\n")
    Path("one.txt").write_text("n01440764\n")
    Path("torn.csv").write_text("split,class,file,bytes,sha256\ntrain,n01440764,a.JPEG,12,abc\n")
    Path("empty").mkdir()
    Path("packed").mkdir()
    Path("packed/packed.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    said = make(Path("out"), *arguments)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert said.err.splitlines()[-1].startswith("tinynet: ")
    assert "Traceback" not in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_another_set_or_other_files_there(tmp_path: Path, make: Callable[..., Said]) -> None:
    out = tmp_path / "out"
    make(out, *ASKED)
    for arguments, message in (
        ((*ASKED, "--seed", 1), "holds another set (seed 0, not 1): give another --out"),
        (("--num-classes", 4, "--images-per-class", 5), "(classes 3, not 4)"),
        (("--list", out / "files.csv"), "(drawn_from seed, not list)"),
    ):
        said = make(out, *arguments)
        assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
        assert message in said.err
    stranger = out / "train" / (out / "classes.txt").read_text().split()[0] / "mine.JPEG"
    stranger.write_bytes(b"mine")
    assert "1 of the files in" in make(out, *ASKED).err
    stranger.unlink()
    listing = out / "files.csv"
    listing.write_text(listing.read_text().replace("a", "b"))
    assert "was changed since it was written" in make(out, *ASKED).err


@pytest.mark.parametrize(
    "damage", ["{", "[]", {"seed": "0"}, {"drawn_from": "elsewhere"}, {"files_sha256": None}]
)
def test_a_damaged_record_is_refused_in_one_line(
    tmp_path: Path, make: Callable[..., Said], damage: str | dict[str, object]
) -> None:
    out = tmp_path / "out"
    make(out, *ASKED)
    file = out / "imagenet100.json"
    record = json.loads(file.read_text())
    document = json.loads(make(out, *ASKED, "--json").out)
    assert {key: document[key] for key in record} == record
    file.write_text(damage if isinstance(damage, str) else json.dumps(record | damage))
    said = make(out, *ASKED)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "holds other files: give --out an empty folder or a new one" in said.err


def test_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Said]
) -> None:
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(free=24 * 4096))
    said = make(tmp_path / "out", *ASKED)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "make room" in said.err
    assert not (tmp_path / "out").exists()


def test_unreadable_source_fails_and_goes_on(tmp_path: Path, make: Callable[..., Said]) -> None:
    """A failure of the storage is the work's (1), keeps what was copied, and the same command goes on."""
    source = fake.write(tmp_path / "source", "tree")
    make(tmp_path / "expected", *ASKED, source=source)
    name = sorted(name for name in files(tmp_path / "expected") if name.startswith("val/"))[-1]
    data = (source / name).read_bytes()
    (source / name).unlink()
    (source / name).symlink_to(source)
    # Still listed: a folder with an image's name.
    said = make(tmp_path / "out", *ASKED, source=source)
    assert (said.code, said.out) == (1, "")
    assert "the same command goes on" in said.err
    (source / name).unlink()
    (source / name).write_bytes(data)
    assert "1 images written, 23 were there" in make(tmp_path / "out", *ASKED, source=source).out
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_second_run_at_once_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Said]
) -> None:
    from trainables.data.subset import build as subset

    out, inner = tmp_path / "out", []
    original = subset._copies

    def with_another(*arguments: object) -> object:
        monkeypatch.setattr(subset, "_copies", original)
        inner.append(make(out, *ASKED))
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(subset, "_copies", with_another)
    assert make(out, *ASKED).code == 0
    assert inner[0].code == 2
    assert "another run is writing" in inner[0].err


@pytest.mark.parametrize(
    "path", ["n01440764/../../../away.JPEG", "n01440764/..", "n01440764", "n01440764/a\nb.JPEG"]
)
def test_names_that_lead_elsewhere(tmp_path: Path, tree: Path, path: str) -> None:
    from dataclasses import replace

    from trainables.data.subset.build import build

    data = open_data(detected(str(tree)))
    assert isinstance(data, EncodedData)
    data.train = replace(data.train, names=[path, *data.train.names[1:]])
    selection = draw(data, 0, fake.TRAIN, 6)
    with pytest.raises(RequestError, match="no name that can be a file below its class"):
        build(data, selection, tmp_path / "out", {}, 1, NotImplemented)
    assert list(tmp_path.iterdir()) == []
