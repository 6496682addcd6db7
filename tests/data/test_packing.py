"""Packing: shards, interruption, unreadable images, invalid requests and damaged stores."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from search_spaces import RequestError
from tests.data.test_augment import picture
from tinynet_search.cli.main import run
from trainables.data import open_data
from trainables.data.detect import detect_data
from trainables.data.packed.dataset import PackedData
from trainables.data.packed.loader import Regions
from trainables.data.packed.packing import DiskCost, Packing, check_disk_space
from trainables.data.packed.shards import short_side
from trainables.data.packed.workers import PackingError, UnreadableImagesError, shrink
from trainables.data.sources.encoded import EncodedData
from trainables.data.sources.imagefolder import ImageFolderData

SIZES = ((60, 80), (80, 60), (50, 50), (24, 40))


def make_photos(root: Path, train: int = 16, val: int = 4, scale: int = 1) -> Path:
    """Write smooth JPEGs of four sizes in two classes."""
    for part, count in (("train", train), ("val", val)):
        for c, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                height, width = SIZES[k % len(SIZES)]
                pixels = (
                    picture(height * scale, width * scale, seed=2 * k + c).permute(1, 2, 0).numpy()
                )
                Image.fromarray(pixels).save(folder / f"{k:03d}.jpg", quality=95)
    return root


def packed(
    tree: Path, out: Path, short: int = 40, shard_images: int | None = 6, workers: int = 1
) -> PackedData:
    Packing(ImageFolderData(str(tree)), out, short, shard_images).pack(workers, "fail")
    return PackedData(str(out))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "tree")


def test_pixels_labels_and_sizes_equal_the_source(tree: Path, tmp_path: Path) -> None:
    """Images are shrunk to a short side of 40; smaller ones are unchanged.

    The order is that of the source, and the arrays are memory-mapped and read-only.
    """
    source, data = ImageFolderData(str(tree)), packed(tree, tmp_path / "out")
    assert (data.class_names, data.train_size, data.val_size, data.largest_pixels) == (
        ["cat", "dog"],
        32,
        8,
        35,
    )
    for part, stored in ((source.train, data.train), (source.val, data.val)):
        assert np.array_equal(stored.labels, part.labels)
        regions = Regions(stored)
        assert all(
            isinstance(pixels, np.memmap) and not pixels.flags.writeable for pixels in regions.maps
        )
        for i in range(len(part.labels)):
            expected = np.asarray(shrink(part.image(i), 40))
            pixels = regions.view(i, np.array([0, 0, *stored.sizes[i]])).permute(1, 2, 0).numpy()
            assert np.array_equal(pixels, expected)
            assert np.shares_memory(pixels, regions.maps[stored.shards[i]])
    assert sorted(set(map(tuple, data.train.sizes.tolist()))) == [
        (24, 40),
        (40, 40),
        (40, 53),
        (53, 40),
    ]
    assert (data.swap_splits().train_size, data.swap_splits().val_size) == (8, 32)
    opened = open_data(detect_data(str(tmp_path / "out")))
    assert (type(opened), opened.fingerprint) == (PackedData, data.fingerprint)


def test_images_are_read_in_storage_order(tree: Path, tmp_path: Path) -> None:
    """A source with its own storage order (row groups) gives the same images and labels."""
    source = ImageFolderData(str(tree))
    order, read_order = np.random.default_rng(0).permutation(32), []
    object.__setattr__(source.train, "order", order)
    read = source.train.read
    object.__setattr__(source.train, "read", lambda i: [read_order.append(i), read(i)][1])
    Packing(source, tmp_path / "out", 40, 6).pack(1, "fail")
    assert read_order == order.tolist()
    one, other = PackedData(str(tmp_path / "out")).train, packed(tree, tmp_path / "plain").train
    assert np.array_equal(one.labels, other.labels)
    for i in range(32):
        region = np.array([0, 0, *one.sizes[i]])
        assert Regions(one).view(i, region).equal(Regions(other).view(i, region))


def test_fingerprint_depends_on_source_and_short_side_not_on_the_path(
    tree: Path, tmp_path: Path
) -> None:
    one = packed(tree, tmp_path / "one")
    assert (
        packed(tree, tmp_path / "other", workers=2, shard_images=9).fingerprint == one.fingerprint
    )
    assert packed(tree, tmp_path / "small", short=32).fingerprint != one.fingerprint


SCRIPT = """
import sys
from pathlib import Path
from trainables.data.sources.imagefolder import ImageFolderData
from trainables.data.packed.packing import Packing
if __name__ == "__main__":
    Packing(ImageFolderData(sys.argv[1]), Path(sys.argv[2]), 40, 6).pack(2, "fail")
"""


def test_resumes_after_a_kill_to_the_same_bytes(tmp_path: Path) -> None:
    tree, out, script = (
        make_photos(tmp_path / "tree", 60, scale=8),
        tmp_path / "out",
        tmp_path / "packs.py",
    )
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tree), str(out)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    while len(list(out.glob("train-*.npy"))) < 4:
        assert process.poll() is None
        time.sleep(0.002)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers are alive after their parent"
        time.sleep(0.01)
    with pytest.raises(
        RequestError, match="is not finished: run the same tinynet data pack command again"
    ):
        PackedData(str(out))
    kept = {file: file.stat().st_mtime_ns for file in out.glob("*.npy")}
    assert 4 <= len(kept) < 22
    packed(tree, out)
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())
    packed(tree, tmp_path / "complete")
    assert contents(out) == contents(tmp_path / "complete")


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_killed_worker_gives_one_line_error(tree: Path, tmp_path: Path) -> None:
    def kill(_: object) -> None:
        for worker in multiprocessing.active_children()[:1]:
            os.kill(worker.pid or 0, signal.SIGKILL)

    packing = Packing(ImageFolderData(str(tree)), tmp_path / "out", 40, 1)
    with pytest.raises(PackingError, match="a worker process was killed"):
        packing.pack(2, "fail", kill)
    assert not list((tmp_path / "out").glob("packed.json"))
    packed(tree, tmp_path / "out", shard_images=1)


UNREADABLE = ["train/cat/003.jpg", "train/dog/001.jpg", "train/dog/007.jpg", "val/dog/000.jpg"]


def test_unreadable_images_are_all_listed_and_fail_or_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, out = make_photos(tmp_path / "tree"), tmp_path / "out"
    for k, name in enumerate(UNREADABLE):
        (tree / name).write_bytes(b"no image" if k % 2 else (tree / name).read_bytes()[:300])
    command = [
        "data",
        "pack",
        "--data",
        str(tree),
        "--out",
        str(out),
        "--short-side",
        "40",
        "--workers",
        "1",
        "--yes",
    ]
    assert run(command) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    listed = (out / "unreadable.txt").read_text().splitlines()
    assert message.startswith("tinynet: 4 images cannot be read: train/cat/003.jpg (")
    assert "--on-error skip" in message
    assert str(out / "unreadable.txt") in message
    assert [line.partition(" (")[0] for line in listed] == UNREADABLE
    assert run([*command, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["unreadable"], document["file"]) == (listed, str(out / "unreadable.txt"))
    with pytest.raises(RequestError, match="is not finished"):
        PackedData(str(out))
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.u8")}
    assert run([*command, "--on-error", "skip", "--json"]) == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob("*.u8")} == before
    record = json.loads(capsys.readouterr().out)
    assert record["skipped"] == UNREADABLE
    assert not (out / "unreadable.txt").exists()
    data = PackedData(str(out))
    assert (data.train_size, data.val_size, len(data.train.labels)) == (29, 7, 29)
    assert data.train.labels.tolist() == [0] * 15 + [1] * 14
    assert data.fingerprint == record["fingerprint"]
    assert run(command) == 2
    assert "was packed without 4 images" in capsys.readouterr().err
    assert PackedData(str(out)).fingerprint == data.fingerprint


def test_class_without_readable_images_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, out = make_photos(tmp_path / "tree"), tmp_path / "out"
    images = sorted((tree / "val" / "dog").iterdir())
    intact = [image.read_bytes() for image in images]
    for image in images:
        image.write_bytes(b"no image")
    command = ["data", "pack", "--data", tree, "--out", out, "--short-side", 40, "--workers", 1]
    skip = [*map(str, command), "--yes", "--on-error", "skip"]
    assert run(skip) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("tinynet: no image of class val/dog can be read: fix these images")
    with pytest.raises(RequestError, match="is not finished"):
        PackedData(str(out))
    images[0].write_bytes(intact[0])
    assert run(skip) == 0
    assert capsys.readouterr().out.startswith("packed 32 training and 5 validation images")
    (ignored,) = PackedData(str(out)).ignored
    assert (ignored.number, ignored.example) == (3, "val/dog/001.jpg")


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_repaired_image_rewrites_only_its_shard(
    tmp_path: Path, on_error: Literal["fail", "skip"]
) -> None:
    tree, out = make_photos(tmp_path / "tree"), tmp_path / "out"
    bad, other = tree / "train" / "cat" / "007.jpg", tree / "train" / "dog" / "001.jpg"
    intact = bad.read_bytes()
    bad.write_bytes(b"no image")
    with pytest.raises(UnreadableImagesError):
        packed(tree, out)
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.u8")}
    bad.write_bytes(intact)
    kept = other.read_bytes()
    other.write_bytes(kept + b"0")
    with pytest.raises(RequestError, match="holds a packing of different images"):
        packed(tree, out)
    other.write_bytes(kept)
    Packing(ImageFolderData(str(tree)), out, 40, 6).pack(1, on_error)
    assert {
        file.name for file in out.glob("*.u8") if file.stat().st_mtime_ns != before[file.name]
    } == {"train-00001.u8"}
    packed(tree, tmp_path / "complete")
    assert contents(out) == contents(tmp_path / "complete")


def test_unfinished_packing_or_file_is_not_data(tree: Path, tmp_path: Path) -> None:
    packed(tree, tmp_path / "out")
    (tmp_path / "out" / "packed.json").unlink()
    with pytest.raises(
        RequestError,
        match="out' is not finished: run the same tinynet data pack command again",
    ):
        detect_data(str(tmp_path / "out"))
    (tmp_path / "data.py").touch()
    with pytest.raises(RequestError, match=r"data.py' is a file: pass a folder with"):
        detect_data(str(tmp_path / "data.py"))


def test_complete_store_is_unchanged(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "data",
        "pack",
        "--data",
        str(tree),
        "--out",
        str(tmp_path / "out"),
        "--short-side",
        "40",
        "--workers",
        "1",
        "--yes",
    ]
    assert run([*command, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert (printed.out.splitlines()[0].partition(",")[0], printed.err) == (
        "32 training and 8 validation images",
        "",
    )
    assert run(command) == 0
    assert capsys.readouterr().out.startswith("packed 32 training")
    assert run(command) == 0
    assert capsys.readouterr().out.startswith("already packed, nothing changed: 32 training")


@pytest.mark.parametrize(
    "option",
    ["--largest-r=nan", "--largest-r=inf", "--largest-r=-1", "--largest-r=0", "--largest-r=1e308"],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_ratio_must_be_finite_and_positive(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, more: list[str]
) -> None:
    assert (
        run(["data", "pack", "--data", str(tree), "--out", str(tmp_path / "out"), option, *more])
        == 2
    )
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"tinynet: {option.replace('=', ' ').replace('1e308', '1e+308')} is ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--short-side", "32"], "with a different short side: expected 32, got 40"),
        (["--pixels", "35", "--largest-r", "1.2"], "--largest-r and --pixels set the same value"),
        (["--short-side", "4"], "--short-side 4 is out of range"),
        (["--pixels", "-3"], "--pixels -3 is out of range"),
        (["--pixels", "9" * 400], "is out of range"),
        (["--pixels", "7500"], "--pixels 7500 (a short side of 8572 pixels) is out of range"),
        (["--on-error", "stop"], "pass fail or skip"),
        (["--workers", "0"], "pass 1 or more"),
        (["--data", "nowhere"], "does not exist"),
        (["--data", "OUT", "--out", "OUT/again"], "a packed set cannot be packed again"),
        (["--out", "TREE"], "holds other files"),
        (["--out", "TREE/train/cat/000.jpg"], "is a file"),
    ],
)
def test_invalid_request_gives_an_error(
    tree: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    packed(tree, out, shard_images=None)
    replaced = [a.replace("OUT", str(out)).replace("TREE", str(tree)) for a in arguments]
    size = [] if "--pixels" in replaced else ["--short-side", "40"]
    assert run(["data", "pack", "--data", str(tree), "--out", str(out), *size, *replaced]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_changed_source_is_an_error(tmp_path: Path) -> None:
    tree, out = make_photos(tmp_path / "tree"), tmp_path / "out"
    packed(tree, out)
    (tree / "train" / "cat" / "003.jpg").unlink()
    with pytest.raises(RequestError, match="holds a packing of different images"):
        packed(tree, out)


def test_cost_is_exact_and_a_dry_run_writes_nothing(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = (
        tmp_path / "out",
        ["--space", "efficientnet_mini", "--largest-r", "1.1", "--json"],
    )
    assert run(["data", "pack", "--data", str(tree), "--out", str(out), "--dry-run", *options]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert (plan["short_side"], plan["exact"]) == (short_side(35), True) == (40, True)
    assert run(["data", "pack", "--data", str(tree), "--out", str(out), "--yes", *options]) == 0
    printed = capsys.readouterr()
    assert (
        json.loads(printed.out)["bytes"]
        == plan["whole"]
        == sum(file.stat().st_size for file in out.glob("*.u8"))
    )
    assert (
        "32 training and 8 validation images, short side 40 (evaluation up to 35 pixels)"
        in printed.err
    )
    with pytest.raises(RequestError, match=r"needs 10.5 GB and 9 GB are free"):
        check_disk_space(DiskCost(10**10, 10**10, 9 * 10**9, exact=False), "x")


@pytest.mark.parametrize("damage", ["short", "missing", "index", "record", "list", "field"])
def test_damage_is_detected_at_opening_and_repaired_by_the_same_command(
    tree: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "out"
    packed(tree, out)
    original = contents(out)
    pixels, index = out / "train-00001.u8", out / "train-00001.npy"
    if damage == "short":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "missing":
        pixels.unlink()
    elif damage == "index":
        rows = np.load(index)
        rows[0, 1] = 1 - rows[0, 1]
        np.save(index, rows)
    elif damage == "field":
        record = json.loads((out / "packed.json").read_text())
        (out / "packed.json").write_text(json.dumps(record | {"class_names": ["cat", 1]}))
    else:
        (out / "packed.json").write_text("{" if damage == "record" else "[]")
    with pytest.raises(RequestError, match="run the same tinynet data pack command again") as error:
        PackedData(str(out))
    assert "\n" not in str(error.value)
    packed(tree, out)
    assert contents(out) == original


@pytest.mark.parametrize("settings", ["{", "[]", "{}", '{"unreadable": []}'])
def test_damaged_settings_give_one_line_error(tree: Path, tmp_path: Path, settings: str) -> None:
    packed(tree, tmp_path / "out")
    (tmp_path / "out" / "settings.json").write_text(settings)
    with pytest.raises(RequestError, match=r"of different images .* got None") as error:
        packed(tree, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_missing_store_and_different_version_are_errors(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist: create it with tinynet data pack"):
        PackedData(str(tmp_path / "missing"))
    with pytest.raises(RequestError, match="is not a packed set"):
        PackedData(str(tree))
    packed(tree, tmp_path / "out")
    record = tmp_path / "out" / "packed.json"
    record.write_text(record.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(RequestError, match="another version"):
        PackedData(str(tmp_path / "out"))


def test_concurrent_packing_of_one_folder_is_an_error(tree: Path, tmp_path: Path) -> None:
    data: EncodedData = ImageFolderData(str(tree))
    packing = Packing(data, tmp_path / "out", 40, 6)

    def second(_: object) -> None:
        Packing(data, tmp_path / "out", 40, 6).pack(1, "fail")

    with pytest.raises(RequestError, match="another packing is running"):
        packing.pack(1, "fail", second)
