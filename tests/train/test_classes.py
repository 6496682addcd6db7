"""Tests that class names follow a network from its data to every file, and are compared by name."""

import contextlib
import io
import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from search_spaces import RequestError
from search_spaces.published import imagenet_classes
from search_spaces.weights import Source, locate
from tests.data.test_imagefolder import make_tree
from tests.tracking.helpers import SQLALCHEMY
from tests.train.helpers import MINI, NETWORK, RDW, assert_rejected, call, train_json
from tinynet_search.cli.main import run
from tinynet_search.export import load_exported
from tinynet_search.export.subject import class_names_of, find_subject, matched_classes
from trainables.classes import classes_in, match_classes
from trainables.data import open_data

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)

NAMES = ["n00000001", "n00000002", "n00000003"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder tree whose three classes have the colours red, green and blue."""
    return make_tree(tmp_path_factory.mktemp("data") / "tree", tuple(NAMES))


@pytest.fixture(scope="module")
def job(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of a training on ``tree`` that recognises every validation image."""
    storage = tmp_path_factory.mktemp("searches")
    settings = ("recipe.batch=8", "recipe.micro_batch=8", "recipe.lr=0.004", "recipe.lr_batch=8")
    command = ["train", "--rdw", "0.75,0.4,0.5", "--space", MINI, "--recipe", "short"]
    command += ["--data", str(tree), "--storage", str(storage), "--name", "colours"]
    command += [
        "--epochs",
        "8",
        "--json",
    ]
    command += [part for setting in settings for part in ("--set", setting)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run(command) == 0
    return json.loads(out.getvalue())


def renamed(tree: Path, out: Path, name: Callable[[int], str | None]) -> Path:
    """A copy of a tree with other class folders; a class whose name is None is left out."""
    for split in ("train", "val"):
        for number, old in enumerate(NAMES):
            new = name(number)
            if new is not None:
                shutil.copytree(tree / split / old, out / split / new)
    return out


def evaluation(weights: str, data: Path) -> tuple[str, ...]:
    return ("train", "--eval-only", "--weights", weights, "--data", str(data))


def test_every_file_records_the_classes(
    job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(job["weights"])
    assert json.loads((folder / "config.json").read_text())["class_names"] == NAMES
    document = json.loads((folder.parents[1] / "job.json").read_text())
    assert document["images"]["class_names"] == NAMES
    for kind in ("onnx", "pt2", "safetensors"):
        code, _, err = call(capsys, "export", str(folder), "--format", kind, "--out", str(tmp_path))
        assert (code, err) == (0, "")
    assert json.loads((tmp_path / "config.json").read_text())["class_names"] == NAMES
    (onnx_file,), (pt2_file,) = tmp_path.glob("*.onnx"), tmp_path.glob("*.pt2")
    properties = {item.key: item.value for item in onnx.load(onnx_file).metadata_props}
    assert classes_in(properties) == NAMES
    extra = {"class_names": ""}
    torch.export.load(pt2_file, extra_files=extra)
    assert classes_in(extra) == NAMES


def test_same_images_under_other_class_names_are_rejected(
    job: dict[str, Any], tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same images in the same folders give 100 %; in folders 0, 1, 2 they are rejected."""
    same = train_json(capsys, *evaluation(job["weights"], tree))
    assert (same["top1"], same["classes"]) == (
        100.0,
        {"compared": 3, "outputs": 3, "note": None},
    )
    other = renamed(tree, tmp_path / "numbers", str)
    words = "class '0' of the data is not a class of weights"
    assert_rejected(capsys, words, *evaluation(job["weights"], other))
    export = ("export", job["weights"], "--format", "onnx", "--int8", "--data-path", str(other))
    assert_rejected(capsys, words, *export, "--out", str(tmp_path / "out"))
    # The weights file alone also records the classes.
    shutil.copy(Path(job["weights"]) / "weights.safetensors", tmp_path / "copied.safetensors")
    network = ("--rdw", "0.75,0.4,0.5", "--space", MINI)
    alone = evaluation(str(tmp_path / "copied.safetensors"), other)
    assert_rejected(capsys, words, *alone, *network)


def test_classes_of_a_file_without_names_are_assumed(
    job: dict[str, Any], tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plain.pth"
    torch.save(load_exported(job["weights"])[1].state_dict(), file)
    network = ("--rdw", "0.75,0.4,0.5", "--space", MINI)
    code, out, err = call(capsys, *evaluation(str(file), tree), *network)
    assert (code, "do not record their classes" in err) == (0, True)
    assert "100.00" in out


def test_classes_in_another_order_are_matched_by_name(
    job: dict[str, Any], tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards of the hub have the classes in the order of their metadata."""
    order = [NAMES[2], NAMES[0], NAMES[1]]
    features = {"label": {"names": order, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for split in ("train", "val"):
        files = sorted((tree / split).glob("*/*"))
        columns = {
            "image": [file.read_bytes() for file in files],
            "label": [order.index(file.parent.name) for file in files],
        }
        table = pa.table(columns).replace_schema_metadata(metadata)
        parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    assert list(open_data({"name": "parquet", "path": str(tmp_path)}).class_names) == order
    figures = train_json(capsys, *evaluation(job["weights"], tmp_path))
    assert figures["top1"] == 100.0
    assert "reordered by class name" in figures["classes"]["note"]
    export = ("export", job["weights"], "--format", "onnx", "--int8", "--data-path", str(tmp_path))
    code, out, err = call(capsys, *export, "--out", str(tmp_path / "out"), "--json")
    assert (code, "reordered by class name" in err) == (0, True)
    assert json.loads(out)["int8"]["top1"]["float32"] == 100.0


def test_some_of_the_classes_are_compared(
    job: dict[str, Any], tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = renamed(tree, tmp_path / "part", lambda k: NAMES[k] if k != 1 else None)
    figures = train_json(capsys, *evaluation(job["weights"], part))
    assert (figures["top1"], figures["classes"]["compared"]) == (100.0, 2)
    code, _, err = call(capsys, *evaluation(job["weights"], part))
    assert (code, "the data's 2 classes are compared, of 3" in err) == (0, True)


@pytest.mark.parametrize("as_file", [False, True])
def test_imagenet_weights_are_evaluated_on_a_part_of_imagenet(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    as_file: bool,
) -> None:
    """Published weights, or a file with 1000 outputs, on folders that are three of its wnids."""
    import timm
    from timm.models import get_pretrained_cfg

    wnids = [imagenet_classes()[number] for number in (7, 130, 992)]
    tree = make_tree(tmp_path / "tree", tuple(wnids), count=1)
    torch.manual_seed(0)
    module = timm.create_model("tinynet_e", num_classes=1000).eval()
    file = tmp_path / "model.safetensors"
    save_file(module.state_dict(), file)
    published = None if as_file else get_pretrained_cfg("tinynet_e.in1k")
    source = Source(file, "tinynet_e.in1k", published)
    monkeypatch.setattr("tinynet_search.train.evaluate.locate", lambda text: source)
    figures = train_json(capsys, *evaluation("tinynet_e.in1k", tree), "tinynet_e")
    weights = "weights 'tinynet_e.in1k'"
    assumed = f"{weights} do not record their classes: assuming those of ImageNet in its order; "
    assert figures["classes"] == {
        "compared": 3,
        "outputs": 1000,
        "note": (assumed if as_file else "")
        + f"only the outputs of the data's 3 classes are compared, of 1000 classes of {weights}",
    }
    expected = _top1(module, tree, wnids, figures["preprocessing"])
    assert figures["top1"] == pytest.approx(expected)
    other = make_tree(tmp_path / "other", (wnids[0], "mountain"), count=1)
    words = "class 'mountain' of the data is not a class" if not as_file else "are for 1000 classes"
    assert_rejected(capsys, words, *evaluation("tinynet_e.in1k", other), "tinynet_e")


def test_int8_and_evaluation_assume_the_classes_of_imagenet_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    tree = make_tree(tmp_path / "tree", ("n01440764", "n01443537"), count=1)
    file = tmp_path / "plain.pth"
    torch.save(timm.create_model("tinynet_e").state_dict(), file)
    command = ("export", "tinynet_e", "--weights", str(file), "--format", "onnx", "--int8")
    out = tmp_path / "out"
    code, _, err = call(capsys, *command, "--data-path", str(tree), "--out", str(out))
    assert (code, err.count("data's 2 classes are compared, of 1000 classes")) == (0, 1), err
    assert json.loads((out / "config.json").read_text())["class_names"] is None


def test_training_checkpoint_of_timm_does_not_state_its_classes(tmp_path: Path) -> None:
    """Its 1000 outputs may be other classes than those of ImageNet."""
    import timm

    file = tmp_path / "last.pth.tar"
    state = timm.create_model("tinynet_e").state_dict()
    options = Namespace(model="tinynet_e")
    torch.save({"arch": "tinynet_e", "args": options, "state_dict": state}, file)
    source, subject = locate(file), find_subject("tinynet_e")
    assert source.published is not None
    assert class_names_of(subject, source) is None
    own = matched_classes(subject, source, [f"class {k}" for k in range(1000)])
    assert own.columns is None and "assuming the order of the data" in str(own.note)
    part = matched_classes(subject, source, ["n01443537", "n01440764"])
    assert part.columns is not None and part.columns.tolist() == [1, 0]
    assert "assuming those of ImageNet in its order; only the outputs of" in str(part.note)
    whole = matched_classes(subject, source, imagenet_classes())
    assert whole.columns is None and str(whole.note).endswith("those of ImageNet in its order")


def test_folder_in_the_format_of_the_hub_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm
    from timm.models import save_for_hf

    module = timm.create_model("tinynet_e", num_classes=2)
    save_for_hf(module, str(tmp_path), safe_serialization=True)
    words = f"pass its file as --weights {tmp_path / 'model.safetensors'}"
    assert_rejected(capsys, words, *evaluation(str(tmp_path), tmp_path))


def test_class_names_in_two_unicode_forms_are_equal() -> None:
    """A folder that was copied from macOS has the accents as separate characters."""
    names = ["caf\u00e9", "the"]
    assert match_classes("weights", 2, names, ["cafe\u0301", "the"]).columns is None
    match = match_classes("weights", 2, names, ["the", "cafe\u0301"])
    assert match.columns is not None and match.columns.tolist() == [1, 0]


def test_class_of_a_parquet_set_is_equal_to_its_folder_in_a_subset() -> None:
    """``tinynet data imagenet100`` writes the images of the class ``a/b`` to the folder ``a_b``."""
    match = match_classes("weights", 2, ["a/b", "c"], ["a_b"])
    assert match.columns is not None and match.columns.tolist() == [0]
    with pytest.raises(RequestError, match="'a_b' is the name of several"):
        match_classes("weights", 3, ["a/b", "a_b", "c"], ["a_b"])


def _top1(module: torch.nn.Module, tree: Path, wnids: list[str], steps: dict[str, Any]) -> float:
    """Top-1 in percent among the columns of the wnids, computed with Pillow and torch alone."""
    columns = [imagenet_classes().index(wnid) for wnid in wnids]
    correct = []
    for file in sorted((tree / "val").glob("*/*")):
        image, side = Image.open(file).convert("RGB"), steps["resize_short_side"]
        scale = side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = ((edge - steps["size"]) // 2 for edge in image.size)
        pixels = np.asarray(image.crop((left, top, left + steps["size"], top + steps["size"])))
        inputs = (pixels / 255.0 - steps["mean"]) / steps["std"]
        batch = torch.from_numpy(inputs.transpose(2, 0, 1)[None]).float()
        with torch.inference_mode():
            choice = int(module(batch)[0, columns].argmax())
        correct.append(wnids[choice] == file.parent.name)
    return 100 * float(np.mean(correct))


def test_damaged_class_names_are_rejected(
    job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(job["weights"], tmp_path / "trial")
    config = json.loads((folder / "config.json").read_text())
    cases = (
        (NAMES[:2], "is damaged: it has 2 class names for 3 classes"),
        (None, "class_names"),
        ("abc", "class_names"),
        ([1, 2, 3], "class_names"),
    )
    for names, words in cases:
        (folder / "config.json").write_text(json.dumps({**config, "class_names": names}))
        assert_rejected(
            capsys, words, "export", str(folder), "--format", "onnx", "--out", str(tmp_path)
        )


def test_an_export_is_extended_only_with_the_same_classes(
    job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial, out = shutil.copytree(job["weights"], tmp_path / "trial"), str(tmp_path / "out")
    assert call(capsys, "export", str(trial), "--format", "pt2", "--out", out)[0] == 0
    config = json.loads((trial / "config.json").read_text())
    (trial / "config.json").write_text(json.dumps({**config, "class_names": NAMES[::-1]}))
    assert_rejected(capsys, "(class_names)", "export", str(trial), "--format", "onnx", "--out", out)


def test_unnamed_weights_have_the_number_of_classes_of_the_data(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from search_spaces import get_space

    r, d, w = (float(value) for value in RDW.split(","))
    file = tmp_path / "ten.pth"
    torch.save(get_space(MINI).network((r, d, w), 10).build().state_dict(), file)
    assert_rejected(
        capsys, "are for 10 classes, but the data has 3", *evaluation(str(file), tree), *NETWORK
    )
