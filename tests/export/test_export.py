"""``tinynet export``: files that other runtimes read, compared with torch, and rebuilt from their folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from search_spaces import get_space
from search_spaces.weights import Source
from tests.trainables.helpers import tiny_spec
from tinynet_search.cli.main import run
from tinynet_search.export import document, formats, images, load_exported, subject
from tinynet_search.export.document import TrainedBy
from trainables.data import open_data
from trainables.recipe import get_recipe
from trainables.spec import Alone, TrialSpec
from trainables.trial import run_trial

MINI, RDW = "efficientnet_mini", "0.4,0.4,0.5"
NETWORK = get_space(MINI).network((0.4, 0.4, 0.5))


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(3)
    return NETWORK.build().eval()


@pytest.fixture(scope="module")
def weights(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("weights") / "mini.pth"
    torch.save(module.state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def spec() -> TrialSpec:
    return tiny_spec((0.6, 0.4, 0.7), epochs=2)


@pytest.fixture(scope="module")
def trial(spec: TrialSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a trial left."""
    root = tmp_path_factory.mktemp("searches")
    assert run_trial(spec, str(root), Alone()).status == "finished"
    return root / spec.folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["export", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def exported(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = call(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def example(batch: int, pixels: int = NETWORK.resolution) -> Tensor:
    return torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(batch))


def outputs(module: nn.Module, batch: int = 2, pixels: int = NETWORK.resolution) -> Tensor:
    with torch.inference_mode():
        return module(example(batch, pixels))


def test_onnx_takes_any_batch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, module: nn.Module, weights: str
) -> None:
    import onnx

    done = exported(
        capsys, RDW, "--space", MINI, "--weights", weights, "--format", "onnx", "--out", tmp_path
    )
    (name,) = done["written"]
    assert name == "efficientnet_mini-r0.4-d0.4-w0.5.onnx"
    assert done["files"][name]["largest_difference"] <= 1e-5 * done["files"][name]["largest_output"]
    session = formats.session(tmp_path / name)
    for batch in (1, 2, 5, 32):
        np.testing.assert_allclose(
            session(example(batch).numpy()), outputs(module, batch).numpy(), atol=1e-5
        )
    graph = onnx.load(tmp_path / name).graph
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
        12,
        12,
    ]
    assert [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == [
        "batch",
        24,
    ]
    assert str(Path.cwd()).encode() not in (tmp_path / name).read_bytes()


def test_pt2_takes_any_batch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, module: nn.Module, weights: str
) -> None:
    done = exported(
        capsys, RDW, "--space", MINI, "--weights", weights, "--format", "pt2", "--out", tmp_path
    )
    (name,) = done["written"]
    with (tmp_path / name).open("rb") as file:
        program = torch.export.load(file).module()
    for batch in (1, 2, 5, 32):
        torch.testing.assert_close(program(example(batch)), outputs(module, batch))
    assert str(Path.cwd()).encode() not in (tmp_path / name).read_bytes()


@pytest.mark.quick
def test_safetensors_come_back_to_the_bit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, module: nn.Module, weights: str
) -> None:
    code, out, err = call(
        capsys,
        RDW,
        "--space",
        MINI,
        "--weights",
        weights,
        "--format",
        "safetensors",
        "--out",
        tmp_path,
    )
    assert (code, err) == (0, "")
    assert "weights.safetensors" in out
    assert "weights from mini.pth" in out
    network, rebuilt = load_exported(tmp_path)
    assert network == NETWORK
    assert torch.equal(outputs(rebuilt), outputs(module))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["files"]["weights.safetensors"]["sha256"] == config["weights_sha256"]
    assert (config["network"]["macs"], config["network"]["params"]) == (
        NETWORK.macs,
        NETWORK.params,
    )
    assert config["preprocessing"]["centre_crop"] == 12
    assert str(tmp_path) not in json.dumps(config)


def test_formats_share_a_folder_and_an_export_is_exported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: str
) -> None:
    first = tmp_path / "first"
    exported(
        capsys,
        RDW,
        "--space",
        MINI,
        "--weights",
        weights,
        "--format",
        "safetensors",
        "--out",
        first,
    )
    done = exported(capsys, first, "--format", "pt2", "--out", first)
    assert sorted(done["files"]) == ["efficientnet_mini-r0.4-d0.4-w0.5.pt2", "weights.safetensors"]
    assert sorted(p.name for p in first.iterdir()) == ["config.json", *sorted(done["files"])]
    again = exported(
        capsys, first / "config.json", "--format", "safetensors", "--out", tmp_path / "second"
    )
    before = json.loads((first / "config.json").read_text())
    assert {**again, "files": 0} == {
        **before,
        "files": 0,
        "folder": str(tmp_path / "second"),
        "written": ["weights.safetensors"],
        "int8": None,
    }
    assert (first / "weights.safetensors").read_bytes() == (
        tmp_path / "second" / "weights.safetensors"
    ).read_bytes()


def test_a_trial_brings_weights_and_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trial: Path, spec: TrialSpec
) -> None:
    """The exported trial scores in ONNX Runtime what it scored in its training, quantised or not."""
    code, out, err = call(
        capsys, trial, "--format", "onnx", "--int8", "--calibration", "64", "--out", tmp_path
    )
    assert (code, err) == (0, "")
    assert "int8" in out
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["weights"]["from"] == f"trial {spec.run}"
    assert config["preprocessing"]["resize"] == [19, 19]
    small = config["files"][f"{MINI}-{spec.run}.int8.onnx"]
    cost = small["compared_with_float32"]
    assert cost["images"] == 48
    assert cost["top1"]["float32"] == pytest.approx(config["trained"]["metrics"]["top1"])
    assert cost["top1_change"] == pytest.approx(cost["top1"]["int8"] - cost["top1"]["float32"])
    assert abs(cost["top1_change"]) < 10
    assert cost["mean_difference"] < 0.1 * cost["largest_output"]
    assert small["quantised"]["calibration_images"] == 64
    assert small["bytes"] < 0.75 * config["files"][f"{MINI}-{spec.run}.onnx"]["bytes"]
    network, rebuilt = load_exported(trial)
    assert (tmp_path / f"{MINI}-{spec.run}.int8.onnx").is_file()
    session = formats.session(tmp_path / f"{MINI}-{spec.run}.onnx")
    pixels = network.resolution
    np.testing.assert_allclose(
        session(example(4, pixels).numpy()), outputs(rebuilt, 4, pixels).numpy(), atol=1e-4
    )


def test_int8_on_a_folder_of_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trial: Path
) -> None:
    data = open_data({"name": "petals", "train": 48, "val": 48})
    pictures: Any = data
    for part, (arrays, labels) in {"train": pictures._train, "val": pictures._val}.items():
        for number, (array, label) in enumerate(zip(arrays, labels, strict=True)):
            folder = tmp_path / "data" / part / f"{label:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / f"{number}.png")
    arguments = (
        "--format",
        "onnx",
        "--int8",
        "--data-path",
        tmp_path / "data",
        "--images",
        "30",
        "--out",
        tmp_path / "out",
    )
    cost = exported(capsys, trial, *arguments)["int8"]
    assert cost["images"] == 30
    assert cost["data"].startswith("imagefolder-")
    assert cost["agreement"] > 50
    (tmp_path / "data" / "val" / "00" / "0.png").write_bytes(b"no image")
    code, out, err = call(capsys, trial, *arguments[:-1], tmp_path / "other")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "0.png" in err
    assert not (tmp_path / "other").exists()


def test_published_weights_keep_timms_preprocessing() -> None:
    config: Any = timm.models.get_pretrained_cfg("efficientnet_b0.ra4_e3600_r224_in1k")  # pyright: ignore
    found = subject.find_subject("efficientnet_b0")
    recipe = images.evaluation_recipe(found, None)
    steps = images.preprocessing_of(found, Source(Path("x"), "x", config), recipe, None)
    assert (steps.mean, steps.crop_ratio, steps.resize_short_side) == ([0.5, 0.5, 0.5], 0.9, 248)
    steps = images.preprocessing_of(found, Source(Path("x"), "x"), recipe, None)
    assert (steps.mean, steps.resize_short_side) == ([0.485, 0.456, 0.406], 256)


def test_a_file_that_disagrees_is_not_kept(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        nn.SiLU,
        "forward",
        lambda self, x: torch.relu(x) if torch.compiler.is_exporting() else nn.functional.silu(x),
    )
    code, out, err = call(
        capsys,
        RDW,
        "--space",
        MINI,
        "--weights",
        weights,
        "--format",
        "pt2",
        "--out",
        tmp_path / "out",
    )
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "disagrees with torch" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tinynet_e", "--format", "onxx"], "did you mean 'onnx'"),
        (["tinynet_f", "--format", "onnx"], "did you mean 'tinynet_e'"),
        (["tinynet_e", "--format", "onnx"], "give --weights FILE or --weights tinynet_e"),
        (["b0_w0.65", "--format", "onnx"], "give --weights FILE"),
        (
            ["tinynet_e", "--format", "onnx", "--weights", "nowhere.pth"],
            "'nowhere.pth' does not exist",
        ),
        (["tinynet_e", "--format", "onnx", "--space", MINI], "--space goes with r,d,w"),
        (["tinynet_e", "--format", "pt2", "--int8"], "--int8 goes with --format onnx"),
        (["tinynet_e", "--format", "onnx", "--data", "petals"], "go with --int8"),
        ([RDW, "--format", "onnx"], "give --space"),
        (["1,2", "--space", MINI, "--format", "onnx"], "is no r,d,w"),
        (["1,2,900", "--space", MINI, "--format", "onnx"], "is no multiplier"),
        ([RDW, "--space", "mini", "--format", "onnx"], "unknown space"),
        (
            [RDW, "--space", MINI, "--format", "onnx", "--weights", "WEIGHTS", "--classes", "10"],
            "are for 24 classes",
        ),
        (
            [RDW, "--space", MINI, "--format", "onnx", "--weights", "WEIGHTS", "--int8"],
            "--int8 needs images",
        ),
        (
            [
                RDW,
                "--space",
                MINI,
                "--format",
                "onnx",
                "--weights",
                "WEIGHTS",
                "--int8",
                "--data",
                "petal",
            ],
            "did you mean 'petals'",
        ),
        (
            [
                RDW,
                "--space",
                MINI,
                "--format",
                "onnx",
                "--weights",
                "WEIGHTS",
                "--int8",
                "--data-path",
                "none",
            ],
            "'none' does not exist",
        ),
        (
            ["0.4,0.4,0.6", "--space", MINI, "--format", "onnx", "--weights", "WEIGHTS"],
            "are another network's",
        ),
        (
            [RDW, "--space", MINI, "--format", "pt2", "--weights", "WEIGHTS", "--calibration", "0"],
            "greater than or equal to 1",
        ),
        ([".", "--format", "onnx"], "config.json"),
        (["./nowhere", "--format", "onnx"], "no folder './nowhere'"),
        (["TRIAL", "--format", "onnx", "--classes", "3"], "--classes goes with"),
        (["TRIAL", "--format", "onnx", "--space", "resnet50"], "leave --space out"),
    ],
)
def test_one_line_and_two(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
    trial: Path,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"WEIGHTS": weights, "TRIAL": str(trial)}
    refused(
        capsys, words, *[places.get(argument, argument) for argument in arguments], "--out", "out"
    )
    assert list(tmp_path.iterdir()) == []


def refused(capsys: pytest.CaptureFixture[str], words: str, *arguments: object) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_classes_of_the_data_are_the_networks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch.save(
        get_space(MINI).network((0.4, 0.4, 0.5), 10).build().state_dict(), tmp_path / "ten.pth"
    )
    arguments = (
        RDW,
        "--space",
        MINI,
        "--classes",
        "10",
        "--weights",
        tmp_path / "ten.pth",
        "--format",
        "onnx",
    )
    refused(
        capsys,
        "the data has 24 classes and the network 10",
        *arguments,
        "--int8",
        "--data",
        "petals",
        "--out",
        tmp_path / "out",
    )


def test_what_is_there_is_never_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: str, trial: Path
) -> None:
    base = (RDW, "--space", MINI, "--format", "safetensors", "--weights")
    out = tmp_path / "out"
    exported(capsys, *base, weights, "--out", out)
    exported(capsys, *base, weights, "--out", out)  # the same again
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    torch.save(NETWORK.build().state_dict(), tmp_path / "other.pth")
    refused(capsys, "other weights", *base, tmp_path / "other.pth", "--out", out)
    refused(capsys, "no export wrote it", trial, "--format", "safetensors", "--out", trial)
    refused(
        capsys, "is a file: --out takes a folder", *base, weights, "--out", tmp_path / "other.pth"
    )
    refused(capsys, "cannot be written", *base, weights, "--out", tmp_path / "other.pth" / "below")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "weights.safetensors").write_text("mine")
    refused(capsys, "no export wrote it", *base, weights, "--out", tmp_path / "own")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (tmp_path / "own" / "weights.safetensors").read_text() == "mine"


@pytest.fixture(scope="module")
def an_export(trial: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an export of the trial left."""
    out = tmp_path_factory.mktemp("exports") / "out"
    assert run(["export", str(trial), "--format", "safetensors", "--out", str(out)]) == 0
    return out


BOTH = ("trial", "an_export")


@pytest.mark.parametrize(
    ("left_by", "change", "words"),
    [
        *((left_by, {"space_version": 99}, "is of version 99") for left_by in BOTH),
        *((left_by, {"rdw": [1, 1]}, "or damaged (rdw.2: ") for left_by in BOTH),
        *((left_by, {"rdw": [0.6, 0.4, 0.6]}, "its figures are not those") for left_by in BOTH),
        *((left_by, {"network": {"macs": 1}}, "(network: resolution: ") for left_by in BOTH),
        *((left_by, {"rdw": [10**400, 1, 1]}, "or damaged") for left_by in BOTH),
        *((left_by, {"space": "os:path"}, "say --space os:path") for left_by in BOTH),
        *((left_by, {"space": "efficientnet_x"}, "unknown space") for left_by in BOTH),
        *((left_by, {"space": None}, "or damaged (space: ") for left_by in BOTH),
        ("trial", {"recipe": {"x": 1}}, "or damaged (recipe: unknown recipe setting 'x'"),
        ("trial", {"recipe": [1]}, "or damaged (recipe: "),
        ("trial", {"metrics": {"top1": "x"}}, "or damaged (metrics.top1"),
        ("an_export", {"schema": 2}, "or damaged (schema: "),
        ("an_export", {"weights": None}, "or damaged (weights: "),
        ("an_export", {"trained": {}}, "or damaged (trained.recipe: "),
        ("an_export", {"preprocessing": "abc"}, "or damaged (preprocessing: "),
        ("an_export", {"files": {"x": {"quantised": {}}}}, "or damaged (files.x.int8.format: "),
    ],
)
def test_a_configuration_is_checked(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    left_by: str,
    change: dict[str, Any],
    words: str,
) -> None:
    config = json.loads((request.getfixturevalue(left_by) / "config.json").read_text())
    capsys.readouterr()
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    refused(capsys, words, tmp_path, "--format", "onnx", "--out", tmp_path / "out")
    (tmp_path / "config.json").write_text("{")
    refused(capsys, "or damaged", tmp_path, "--format", "onnx", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [{"mean": [0.5, 0.5]}, {"std": [0.2, 0, 0.2]}, {"mean": [0, 0, 1e7]}, {"crop_ratio": 0.05}],
)
def test_a_preprocessing_that_prepares_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, an_export: Path, change: dict[str, Any]
) -> None:
    config = json.loads((an_export / "config.json").read_text())
    capsys.readouterr()
    damaged = {**config, "preprocessing": {**config["preprocessing"], **change}}
    (tmp_path / "config.json").write_text(json.dumps(damaged))
    (field,) = change
    words = f"or damaged (preprocessing.{field}"
    refused(capsys, words, tmp_path, "--format", "onnx", "--out", tmp_path / "out")


def test_a_name_in_a_file_leads_nowhere_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, an_export: Path
) -> None:
    source, out = tmp_path / "received", tmp_path / "out"
    source.mkdir()
    capsys.readouterr()
    (source / "weights.safetensors").write_bytes((an_export / "weights.safetensors").read_bytes())
    config = json.loads((an_export / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "name": f"{tmp_path}/../elsewhere"}))
    exported(capsys, source, "--format", "pt2", "--out", out)
    assert {path.parent for path in tmp_path.rglob("*.pt2")} == {out}


def test_a_configuration_comes_back_to_the_byte(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trial: Path, weights: str
) -> None:
    """Of a trial, quantised, and of a twist; with whole numbers where others have fractions."""
    config = json.loads((trial / "config.json").read_text())
    (tmp_path / "trial").mkdir()
    whole = {**config, "recipe": {**config["recipe"], "eval_ratio": 1, "warmup_epochs": 1}}
    (tmp_path / "trial" / "config.json").write_text(json.dumps(whole))
    (tmp_path / "trial" / "weights.safetensors").write_bytes(
        (trial / "weights.safetensors").read_bytes()
    )
    arguments = ("--format", "onnx", "--int8", "--images", "8", "--calibration", "8", "--out")
    exported(capsys, tmp_path / "trial", *arguments, tmp_path / "a")
    twist = (RDW, "--space", MINI, "--weights", weights, "--format", "safetensors", "--out")
    exported(capsys, *twist, tmp_path / "b")
    for out in (tmp_path / "a" / "config.json", tmp_path / "b" / "config.json"):
        read = document.read_config(out)
        assert isinstance(read, document.ExportConfig)
        assert json.dumps(read.to_json(), indent=1) == out.read_text()
    assert '"crop_ratio": 1,' in (tmp_path / "a" / "config.json").read_text()
    assert '"warmup_epochs": 1,' in (tmp_path / "a" / "config.json").read_text()


def test_a_damaged_export_is_no_export(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trial: Path
) -> None:
    exported(capsys, trial, "--format", "safetensors", "--out", tmp_path)
    file = tmp_path / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    refused(
        capsys,
        "is not the file that config.json lists",
        tmp_path,
        "--format",
        "onnx",
        "--out",
        tmp_path,
    )


def test_an_export_names_no_folder_of_the_machine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trial: Path
) -> None:
    (tmp_path / "trial").mkdir()
    config = json.loads((trial / "config.json").read_text())
    away = {**config, "data": {"name": "imagefolder", "path": str(tmp_path / "images")}}
    (tmp_path / "trial" / "config.json").write_text(json.dumps(away))
    (tmp_path / "trial" / "weights.safetensors").write_bytes(
        (trial / "weights.safetensors").read_bytes()
    )
    exported(capsys, tmp_path / "trial", "--format", "safetensors", "--out", tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()


def test_weights_that_are_no_numbers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, module: nn.Module
) -> None:
    torch.save(
        {name: tensor * float("nan") for name, tensor in module.state_dict().items()},
        tmp_path / "nan.pth",
    )
    asked = (
        RDW,
        "--space",
        MINI,
        "--weights",
        tmp_path / "nan.pth",
        "--format",
        "safetensors",
        "--out",
        tmp_path / "out",
    )
    code, _, err = call(capsys, *asked)
    assert code == 1 and "its weights hold NaN" in err and not (tmp_path / "out").exists()


def test_a_users_own_space_is_named_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, module: nn.Module, weights: str
) -> None:
    own = "tests.export.test_export:own_space"
    exported(
        capsys,
        RDW,
        "--space",
        own,
        "--weights",
        weights,
        "--format",
        "safetensors",
        "--out",
        tmp_path,
    )
    refused(capsys, "would be code to run", tmp_path, "--format", "safetensors", "--out", tmp_path)
    exported(capsys, tmp_path, "--space", own, "--format", "safetensors", "--out", tmp_path)
    assert torch.equal(outputs(load_exported(tmp_path, space=own)[1]), outputs(module))


def own_space() -> Any:
    return get_space(MINI)


@pytest.mark.quick
def test_a_training_that_has_not_ended_has_no_metrics() -> None:
    unfinished = TrainedBy(
        recipe=get_recipe("short"), data={"name": "petals"}, data_fingerprint="p", seed=0
    )
    assert "metrics" not in unfinished.model_dump()
    assert TrainedBy.from_json(unfinished.model_dump()) == unfinished
    ended = unfinished.model_copy(update={"metrics": {"top1": 1}})
    assert ended.model_dump()["metrics"] == {"top1": 1}
