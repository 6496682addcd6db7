"""What is an image of a set: formats, links, hidden files, and what is reported as ignored."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search_spaces import RequestError
from tests.data import fake_imagenet as fake
from tinynet_search.cli.data_notes import data_notes
from tinynet_search.cli.main import run
from trainables.data import ignored as reasons
from trainables.data import open_data, open_data_cached
from trainables.data.detect import detect_data
from trainables.data.ignored import IgnoredFiles
from trainables.data.packed.dataset import PackedData
from trainables.data.sources.encoded import EncodedData, UnreadableImageError
from trainables.data.sources.image_files import IMAGE_SUFFIXES, is_hidden_path, is_image

pytestmark = pytest.mark.quick

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(100)
# Formats that Pillow opens without an external program, other than raster images: documents,
# layered files, vector graphics, videos, brushes, news photographs and scientific arrays.
NOT_RASTER = {"BUFR", "EPS", "FITS", "FLI", "GBR", "GRIB", "HDF5", "IPTC", "MPEG", "PSD", "WMF"}


def picture(form: str, gray: int = 0) -> bytes:
    file = io.BytesIO()
    mode = "1" if form == "MSP" else "RGB"
    Image.new(mode, (16, 16), 1 if form == "MSP" else (gray, 90, 30)).save(file, form)
    return file.getvalue()


def make_tree(root: Path, classes: tuple[str, ...] = ("a", "b")) -> Path:
    for split, count in (("train", 3), ("val", 2)):
        for number, name in enumerate(classes):
            for k in range(count):
                write(root / split / name / f"{k}.png", picture("PNG", 40 * number + k))
    return root


def write(file: Path, data: bytes = b"") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def opened(root: Path) -> EncodedData:
    data = open_data(detect_data(str(root)))
    assert isinstance(data, EncodedData)
    return data


def test_suffixes_are_those_of_pillows_raster_formats() -> None:
    expected = {
        suffix
        for suffix, form in Image.registered_extensions().items()
        if (form in Image.OPEN and form not in NOT_RASTER) or form == "MPO"
    }
    assert expected == IMAGE_SUFFIXES


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("GIF", "x.gif"),
        ("JPEG", "x.jfif"),
        ("JPEG", "x.JPE"),
        ("PPM", "x.pgm"),
        ("PPM", "x.pnm"),
        ("JPEG2000", "x.jp2"),
        ("AVIF", "x.avif"),
        ("TGA", "x.tga"),
        ("ICO", "x.ico"),
        ("PNG", "x"),
        ("JPEG", "x.1"),
        ("JPEG", "photo of 3.5 m"),
        ("GIF", "x"),
        ("BMP", "x"),
        ("WEBP", "x"),
        ("TIFF", "x"),
        ("PPM", "x"),
        ("JPEG2000", "x"),
        ("AVIF", "x"),
        ("QOI", "x"),
        ("DDS", "x"),
    ],
)
def test_images_of_every_format_are_read(tmp_path: Path, form: str, name: str) -> None:
    root = make_tree(tmp_path, ("a", "b"))
    for split in ("train", "val"):
        write(root / split / "c" / name, picture(form))
    data = opened(root)
    assert (data.class_names, data.train_size, data.val_size) == (["a", "b", "c"], 7, 5)
    assert data.ignored == ()
    pixels = np.asarray(data.train.image(6), int)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels - [0, 90, 30]).max() < 6


def test_first_frame_of_a_gif_and_deep_greyscale(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    red.save(root / "train" / "a" / "0.gif", save_all=True, append_images=[blue])
    write(root / "train" / "a" / "1.pgm", b"P5 2 1 65535\n" + bytes([255, 255, 0, 1]))
    data = opened(root)
    assert list(data.train.names[:4]) == ["a/0.gif", "a/0.png", "a/1.pgm", "a/1.png"]
    assert np.asarray(data.train.image(0))[0, 0].tolist() == [255, 0, 0]
    with pytest.raises(UnreadableImageError, match="expected 8 bits per colour, got 16 or 32"):
        data.train.image(2)


def test_other_files_are_no_images() -> None:
    for name, head in (
        ("notes", b"BMW and Audi are brands of cars"),
        ("notes", b"P1 of the plan"),
        ("sound", b"RIFF\x00\x00\x00\x00WAVE"),
        ("raw.nef", b"MM\0*\0\0\0\x08"),
        ("notes.txt", b"\xff\xd8\xff"),
        ("empty", b""),
        *((f"x.jpg.{suffix}", b"\xff\xd8\xff") for suffix in ("bak", "tmp", "part", "crdownload")),
    ):
        assert not is_image(name, lambda head=head: head), name


def test_fingerprint_of_a_plain_tree_is_stable(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "a-b", "b"):
            write(tmp_path / split / name / "x.png", b"12345")
            write(tmp_path / split / name / "deep" / "y.JPG", b"123")
    assert opened(tmp_path).fingerprint == "imagefolder-24642d1bff9b22a1"


def test_links_are_followed(tmp_path: Path) -> None:
    root, elsewhere = make_tree(tmp_path / "set"), tmp_path / "elsewhere"
    write(elsewhere / "deep" / "9.png", picture("PNG", 9))
    for split in ("train", "val"):
        make_tree(tmp_path / "other", ("c",))
        (root / split / "c").symlink_to(tmp_path / "other" / split / "c")
    (root / "train" / "a" / "more").symlink_to(elsewhere)
    (root / "train" / "b" / "file.png").symlink_to(elsewhere / "deep" / "9.png")
    (elsewhere / "deep" / "link").symlink_to(tmp_path / "other" / "val" / "c")
    data = opened(root)
    assert data.ignored == ()
    assert list(data.train.names) == [
        *("a/0.png", "a/1.png", "a/2.png"),
        *("a/more/deep/9.png", "a/more/deep/link/0.png", "a/more/deep/link/1.png"),
        *("b/0.png", "b/1.png", "b/2.png", "b/file.png"),
        *("c/0.png", "c/1.png", "c/2.png"),
    ]
    assert data.train.read(9) == (elsewhere / "deep" / "9.png").read_bytes()


def test_loops_and_broken_links_are_ignored(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "set")
    folder = root / "train" / "a"
    names = opened(root).train.names
    (folder / "up").symlink_to(root / "train")
    (folder / "root").symlink_to(root)
    (folder / "top").symlink_to("/")
    (folder / "self").symlink_to(folder)
    (folder / "twice").symlink_to(root / "train" / "b")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    (folder / "me.png").symlink_to(folder / "me.png")
    os.mkfifo(folder / "pipe.png")
    data = opened(root)
    assert data.train.names == names
    assert data.ignored == (
        IgnoredFiles(reasons.BROKEN_LINK, 2, "train/a/gone.png"),
        IgnoredFiles(reasons.REPEATED_FOLDER, 5, "train/a/root"),
        IgnoredFiles(reasons.SPECIAL_FILE, 1, "train/a/pipe.png"),
    )


def test_a_folder_behind_several_links_is_read_once_by_name(tmp_path: Path) -> None:
    """The order of the entries on the disk does not decide which class has the images."""
    root, pool = make_tree(tmp_path / "set"), tmp_path / "pool"
    write(pool / "0.png", picture("PNG", 9))
    write(pool / "inner" / "1.png", picture("PNG", 9))
    for name, target in (("b/z", pool), ("b/c", pool / "inner"), ("a/y", pool), ("a/z", pool)):
        (root / "train" / name).symlink_to(target)
    (root / "train" / "a" / "first").symlink_to(pool / "inner")
    data = opened(root)
    linked = [name for name in data.train.names if name.count("/") > 1]
    assert linked == ["a/first/1.png", "a/y/0.png"]
    assert data.ignored == (IgnoredFiles(reasons.REPEATED_FOLDER, 4, "train/a/y/inner"),)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """A name of another encoding becomes valid text, so that every file can record it."""
    name = os.fsdecode(b"caf\xe9")
    try:
        root = make_tree(tmp_path / "set", (name, "b"))
    except OSError:
        pytest.skip("the file system has only UTF-8 names")
    data = opened(root)
    assert list(data.class_names) == ["b", r"caf\xe9"]
    assert data.train.names[-1] == r"caf\xe9/2.png"
    assert data.train.read(5) == (root / "train" / name / "2.png").read_bytes()


def test_links_that_break_after_planning_are_a_failure_of_the_machine(tmp_path: Path) -> None:
    """Their targets may exist on another node, so a trial must not record changed data."""
    root = make_tree(tmp_path / "set")
    target = write(tmp_path / "mount" / "9.png", picture("PNG"))
    (root / "train" / "a" / "9.png").symlink_to(target)
    settings = {"name": "imagefolder", "path": str(root)}
    planned = open_data(settings).fingerprint
    assert open_data_cached(settings, planned).train_size == 7
    target.unlink()
    with pytest.raises(RequestError, match=r"have broken links \(1, .*: make the targets"):
        open_data_cached({**settings, "train": "train"}, planned)


@pytest.mark.parametrize(
    "path",
    [
        "a/._0.png",
        "a/.hidden.png",
        "a/.ipynb_checkpoints/0-checkpoint.png",
        "a/.AppleDouble/0.png",
        "a/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
        "__MACOSX/a/0.png",
        ".ipynb_checkpoints/0-checkpoint.png",
        ".cat/0.png",
        "a/Thumbs.db",
        "a/0.png~",
    ],
)
def test_hidden_files_are_no_images_or_classes(tmp_path: Path, path: str) -> None:
    root = make_tree(tmp_path)
    plain = opened(root)
    for split in ("train", "val"):
        write(root / split / path, picture("PNG"))
    data = opened(root)
    assert (data.class_names, data.fingerprint) == (plain.class_names, plain.fingerprint)
    (ignored,) = data.ignored
    assert ignored.number == 2
    assert ignored.reason in (reasons.HIDDEN_FILE, reasons.HIDDEN_FOLDER)
    assert f"train/{path}".startswith(ignored.example)
    assert is_hidden_path(path)


def _empty(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "c").mkdir()


def _without_images(name: str) -> Callable[[Path], object]:
    return lambda root: [write(root / split / "c" / name, b"x") for split in ("train", "val")]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_empty, r"class 'c' has no images in '.*train': the folder is empty: add images"),
        (_without_images("x.heic"), r"'c' has no images .*, only files that are not images \(1"),
        (_without_images("._x.png"), r"'c' has no images .*, only hidden files \(1, for example"),
        (
            lambda root: [(root / s / "c").symlink_to("/nowhere") for s in ("train", "val")],
            r"'c' has no images .*, only broken links \(1, for example 'train/c'\)",
        ),
        (
            lambda root: [(root / s / "c").symlink_to(root / s / "a") for s in ("train", "val")],
            r"'c' has no images .*, only folders that are read already",
        ),
        (
            lambda root: [write(root / s / n / "x") for s in ("train", "val") for n in "cd"],
            r"'c' has no images .* \(2 classes have none\)",
        ),
        (
            lambda root: [(file).unlink() for file in root.glob("val/b/*")],
            r"class 'b' has no images in '.*val'",
        ),
        (
            lambda root: [file.unlink() for file in root.glob("train/*/*.png")],
            "train' has no images in class folders",
        ),
    ],
)
def test_class_without_images_is_an_error(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    root = make_tree(tmp_path)
    damage(root)
    with pytest.raises(RequestError, match=message) as error:
        opened(root)
    assert "\n" not in str(error.value)


def _add(file: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    file.addfile(info, io.BytesIO(data))


def _inner(*names: str, form: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as file:
        for name in names:
            info = tarfile.TarInfo(name)
            data = APPLE_DOUBLE if "/._" in f"/{name}" else picture("JPEG")
            info.size, info.pax_headers = len(data), {"SCHILY.xattr.com.apple.provenance": "x"}
            file.addfile(info, io.BytesIO(data))
    return content.getvalue()


def test_hidden_members_of_tar_files_are_ignored(tmp_path: Path) -> None:
    """macOS adds ``._*`` members and extended headers to the tar files that it creates."""
    plain = opened(fake.write(tmp_path / "plain", "tars"))
    root = fake.write(tmp_path / "set", "tars")
    wnid = fake.WNIDS[0]
    names = [f"{wnid}_1.JPEG", f"._{wnid}_1.JPEG", f"__MACOSX/{wnid}_2.JPEG", "readme.txt"]
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "a") as tar:
        _add(tar, f"./._{wnid}.tar", APPLE_DOUBLE)
        _add(tar, f"./{wnid}.tar", _inner(*names))
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "a") as tar:
        _add(tar, "._ILSVRC2012_val_00000001.JPEG", APPLE_DOUBLE)
    data = opened(root)
    assert set(data.train.names) - set(plain.train.names) == {f"{wnid}/{wnid}_1.JPEG"}
    assert (data.train_size, data.val_size) == (plain.train_size + 1, plain.val_size)
    assert data.train.image(list(data.train.names).index(f"{wnid}/{wnid}_1.JPEG")).size == (16, 16)
    assert data.ignored == (
        IgnoredFiles(reasons.NOT_AN_IMAGE, 1, f"ILSVRC2012_img_train.tar/./{wnid}.tar/readme.txt"),
        IgnoredFiles(reasons.HIDDEN_FILE, 4, f"ILSVRC2012_img_train.tar/./._{wnid}.tar"),
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (("n01440764_1.txt", "._n01440764_1.JPEG"), "class 'n99999999' has no images in"),
        (("a/x.JPEG", "b/x.JPEG"), "1 images are more than once in"),
    ],
)
def test_tar_file_of_a_class_without_images_or_with_repeated_ones(
    tmp_path: Path, members: tuple[str, ...], message: str
) -> None:
    root = fake.write(tmp_path / "set", "tars")
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "a") as tar:
        _add(tar, "n99999999.tar", _inner(*members))
    with pytest.raises(RequestError, match=message):
        opened(root)


def test_links_and_other_files_in_tar_files_are_counted(tmp_path: Path) -> None:
    root = fake.write(tmp_path / "set", "tars")
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "a") as tar:
        link = tarfile.TarInfo("ILSVRC2012_val_00000099.JPEG")
        link.type, link.linkname = tarfile.LNKTYPE, "ILSVRC2012_val_00000001.JPEG"
        tar.addfile(link)
        _add(tar, "checksums", b"0123456789abcdef")
    assert opened(root).ignored == (
        IgnoredFiles(reasons.NOT_AN_IMAGE, 1, "ILSVRC2012_img_val.tar/checksums"),
        IgnoredFiles(reasons.TAR_LINK, 1, "ILSVRC2012_img_val.tar/ILSVRC2012_val_00000099.JPEG"),
    )


def test_flat_validation_folder_with_hidden_files(tmp_path: Path) -> None:
    """A hidden folder does not make a flat folder one of classes."""
    root = fake.write(tmp_path / "set", "flat")
    plain = opened(root).fingerprint
    write(root / "val" / ".ipynb_checkpoints" / "x-checkpoint.JPEG", picture("JPEG"))
    write(root / "val" / "._ILSVRC2012_val_00000001.JPEG", APPLE_DOUBLE)
    write(root / "val" / "README")
    (root / "val" / "gone.JPEG").symlink_to("/nowhere")
    assert detect_data(str(root))["name"] == "imagenet"
    data = opened(root)
    assert data.fingerprint == plain
    assert {files.reason for files in data.ignored} == {
        reasons.BROKEN_LINK,
        reasons.HIDDEN_FILE,
        reasons.HIDDEN_FOLDER,
        reasons.NOT_AN_IMAGE,
    }


def test_commands_report_ignored_files_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(tmp_path / "set")
    write(root / "train" / "a" / "._0.png", APPLE_DOUBLE)
    write(root / "val" / "notes.txt")
    note = (
        f"note: data {str(root)!r}: 2 ignored: files outside of class folders (1, for example "
        "'val/notes.txt'), hidden files (1, for example 'train/a/._0.png')"
    )
    pack = ["data", "pack", "--data", root, "--out", tmp_path / "out", "--short-side", 16, "--yes"]
    draw = ["data", "imagenet100", "--imagenet", root, "--out", tmp_path / "subset"]
    size = ["--num-classes", 2, "--images-per-class", 3]
    for command in ([*pack, "--workers", 1], [*draw, *size]):
        assert run(list(map(str, command))) == 0
        assert capsys.readouterr().err.splitlines().count(note) == 1
    with data_notes():  # a search opens its data for the plan and for its trials
        for _ in range(2):
            opened(root)
    assert capsys.readouterr().err.splitlines() == [note]
    written = {path.name for path in (tmp_path / "subset").rglob("*") if path.is_file()}
    assert not {name for name in written if name.startswith(".")}
    assert PackedData(str(tmp_path / "out")).train_size == 6
