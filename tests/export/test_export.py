"""Tests of ``tinynet export``: files for other runtimes, compared with torch and loaded again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from search_spaces import get_space
from search_spaces.weights import Source
from tests.trainables.helpers import tiny_spec
from tinynet_search.cli.main import run
from tinynet_search.export import document, formats, images, load_exported, subject
from tinynet_search.export.document import TrainedBy
from trainables.data import open_data
from trainables.recipe import get_recipe
from trainables.spec import LocalReporter, TrialSpec
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
    """The folder of a finished trial."""
    root = tmp_path_factory.mktemp("searches")
    assert run_trial(spec, str(root), LocalReporter()).status == "finished"
    return root / spec.folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["export", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def export_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = call(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def example(batch: int, pixels: int = NETWORK.resolution) -> Tensor:
    return torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(batch))


def outputs(module: nn.Module, batch: int = 2, pixels: int = NETWORK.resolution) -> Tensor:
    with torch.inference_mode():
        return module(example(batch, pixels))


def test_onnx_accepts_any_batch_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, module: nn.Module, weights: str
) -> None:
    import onnx

    summary = export_json(
        capsys, RDW, "--space", MINI, "--weights", weights, "--format", "onnx", "--out", tmp_path
    )
    (name,) = summary["written"]
    assert name == "efficientnet_mini-r0.4-d0.4-w0.5.onnx"
    assert (
        summary["files"][name]["largest_difference"]
        <= 1e-5 * summary["files"][name]["largest_output"]
    )
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


def test_pt2_accepts_any_batch_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, module: nn.Module, weights: str
) -> None:
    summary = export_json(
        capsys, RDW, "--space", MINI, "--weights", weights, "--format", "pt2", "--out", tmp_path
    )
    (name,) = summary["written"]
    with (tmp_path / name).open("rb") as file:
        program = torch.export.load(file).module()
    for batch in (1, 2, 5, 32):
        torch.testing.assert_close(program(example(batch)), outputs(module, batch))
    assert str(Path.cwd()).encode() not in (tmp_path / name).read_bytes()


@pytest.mark.quick
def test_safetensors_round_trip_is_exact(
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


def test_formats_share_a_folder_and_an_export_can_be_exported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: str
) -> None:
    first = tmp_path / "first"
    export_json(
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
    summary = export_json(capsys, first, "--format", "pt2", "--out", first)
    assert sorted(summary["files"]) == [
        "efficientnet_mini-r0.4-d0.4-w0.5.pt2",
        "weights.safetensors",
    ]
    assert sorted(p.name for p in first.iterdir()) == ["config.json", *sorted(summary["files"])]
    again = export_json(
        capsys, first / "config.json", "--format", "safetensors", "--out", tmp_path / "second"
    )
    before = json.loads((first / "config.json").read_text())
    assert {**again, "files": 0} == {
        **before,
        "files": 0,
        "folder": str(tmp_path / "second"),
        "written": ["weights.safetensors"],
        "int8": None,
        "note": None,
    }
    assert (first / "weights.safetensors").read_bytes() == (
        tmp_path / "second" / "weights.safetensors"
    ).read_bytes()


def test_trial_provides_weights_and_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trial: Path, spec: TrialSpec
) -> None:
    """In ONNX Runtime the export has the top-1 of the training; in int8 the top-1 is similar."""
    code, out, err = call(
        capsys, trial, "--format", "onnx", "--int8", "--calibration", "64", "--out", tmp_path
    )
    assert (code, err) == (0, "")
    assert "int8" in out
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["weights"]["from"] == f"trial {spec.run}"
    assert config["preprocessing"]["resize"] == [19, 19]
    int8 = config["files"][f"{MINI}-{spec.run}.int8.onnx"]
    cost = int8["compared_with_float32"]
    assert cost["images"] == 48
    assert cost["top1"]["float32"] == pytest.approx(config["trained"]["metrics"]["top1"])
    assert cost["top1_change"] == pytest.approx(cost["top1"]["int8"] - cost["top1"]["float32"])
    assert abs(cost["top1_change"]) < 10
    assert cost["mean_difference"] < 0.1 * cost["largest_output"]
    assert int8["quantised"]["calibration_images"] == 64
    assert int8["bytes"] < 0.75 * config["files"][f"{MINI}-{spec.run}.onnx"]["bytes"]
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
    petals: Any = data
    for part, (arrays, labels) in {"train": petals._train, "val": petals._val}.items():
        for number, (array, label) in enumerate(zip(arrays, labels, strict=True)):
            folder = tmp_path / "data" / part / str(data.class_names[label])
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
    code, out, err = call(capsys, trial, *arguments, "--json")
    # Folders are sorted by name; the classes of petals are not.
    assert (code, "reordered by class name" in err) == (0, True)
    cost = json.loads(out)["int8"]
    assert cost["images"] == 30
    assert cost["data"].startswith("imagefolder-")
    assert cost["agreement"] > 50
    first = next((tmp_path / "data" / "val").glob("*/0.png"))
    first.write_bytes(b"no image")
    code, out, err = call(capsys, trial, *arguments[:-1], tmp_path / "other")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "0.png" in err
    assert not (tmp_path / "other").exists()


def test_published_weights_use_timm_preprocessing() -> None:
    config: Any = get_pretrained_cfg("efficientnet_b0.ra4_e3600_r224_in1k")
    network = subject.find_subject("efficientnet_b0")
    recipe = images.evaluation_recipe(network, None)
    steps = images.preprocessing_of(network, Source(Path("x"), "x", config), recipe, None)
    assert (steps.mean, steps.crop_ratio, steps.resize_short_side) == ([0.5, 0.5, 0.5], 0.9, 248)
    steps = images.preprocessing_of(network, Source(Path("x"), "x"), recipe, None)
    assert (steps.mean, steps.resize_short_side) == ([0.485, 0.456, 0.406], 256)


def test_file_that_differs_from_torch_is_not_kept(
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
    assert "differs from torch" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tinynet_e", "--format", "onxx"], "did you mean 'onnx'"),
        (["tinynet_f", "--format", "onnx"], "did you mean 'tinynet_e'"),
        (["tinynet_e", "--format", "onnx"], "pass --weights FILE or --weights tinynet_e"),
        (["b0_w0.65", "--format", "onnx"], "pass --weights FILE"),
        (
            ["tinynet_e", "--format", "onnx", "--weights", "nowhere.pth"],
            "'nowhere.pth' does not exist",
        ),
        (["tinynet_e", "--format", "onnx", "--space", MINI], "--space requires r,d,w"),
        (["tinynet_e", "--format", "pt2", "--int8"], "--int8 requires --format onnx"),
        (["tinynet_e", "--format", "onnx", "--data", "petals"], "require --int8"),
        ([RDW, "--format", "onnx"], "pass --space"),
        (["1,2", "--space", MINI, "--format", "onnx"], "is not a valid r,d,w"),
        (["1,2,900", "--space", MINI, "--format", "onnx"], "is not a valid multiplier"),
        ([RDW, "--space", "mini", "--format", "onnx"], "unknown space"),
        (
            [RDW, "--space", MINI, "--format", "onnx", "--weights", "WEIGHTS", "--classes", "10"],
            "are for 24 classes",
        ),
        (
            [RDW, "--space", MINI, "--format", "onnx", "--weights", "WEIGHTS", "--int8"],
            "--int8 needs calibration images",
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
            "belong to a different network",
        ),
        (
            [RDW, "--space", MINI, "--format", "pt2", "--weights", "WEIGHTS", "--calibration", "0"],
            "greater than or equal to 1",
        ),
        ([".", "--format", "onnx"], "config.json"),
        (["./nowhere", "--format", "onnx"], "no folder './nowhere'"),
        (["TRIAL", "--format", "onnx", "--classes", "3"], "--classes requires"),
        (["TRIAL", "--format", "onnx", "--space", "resnet50"], "omit --space"),
    ],
)
def test_invalid_requests_print_one_line_and_exit_with_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
    trial: Path,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    replacements = {"WEIGHTS": weights, "TRIAL": str(trial)}
    assert_rejected(
        capsys,
        words,
        *[replacements.get(argument, argument) for argument in arguments],
        "--out",
        "out",
    )
    assert list(tmp_path.iterdir()) == []


def assert_rejected(capsys: pytest.CaptureFixture[str], words: str, *arguments: object) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_classes_of_the_data_must_match_the_network(
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
    assert_rejected(
        capsys,
        "are for 10 classes, but the data has 24: pass data with 10 classes",
        *arguments,
        "--int8",
        "--data",
        "petals",
        "--out",
        tmp_path / "out",
    )


def test_existing_files_are_never_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: str, trial: Path
) -> None:
    base = (RDW, "--space", MINI, "--format", "safetensors", "--weights")
    out = tmp_path / "out"
    export_json(capsys, *base, weights, "--out", out)
    export_json(capsys, *base, weights, "--out", out)  # the same export may be repeated
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    torch.save(NETWORK.build().state_dict(), tmp_path / "other.pth")
    assert_rejected(capsys, "different weights", *base, tmp_path / "other.pth", "--out", out)
    not_written = "was not written by an export"
    assert_rejected(capsys, not_written, trial, "--format", "safetensors", "--out", trial)
    assert_rejected(
        capsys, "is a file: pass a folder", *base, weights, "--out", tmp_path / "other.pth"
    )
    assert_rejected(
        capsys, "cannot be written", *base, weights, "--out", tmp_path / "other.pth" / "below"
    )
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "weights.safetensors").write_text("mine")
    assert_rejected(capsys, not_written, *base, weights, "--out", tmp_path / "own")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (tmp_path / "own" / "weights.safetensors").read_text() == "mine"


@pytest.fixture(scope="module")
def an_export(trial: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an export of the trial."""
    out = tmp_path_factory.mktemp("exports") / "out"
    assert run(["export", str(trial), "--format", "safetensors", "--out", str(out)]) == 0
    return out


BOTH = ("trial", "an_export")


@pytest.mark.parametrize(
    ("fixture", "change", "words"),
    [
        *((name, {"space_version": 99}, "uses version 99") for name in BOTH),
        *((name, {"rdw": [1, 1]}, "or an export (rdw.2: ") for name in BOTH),
        *((name, {"rdw": [0.6, 0.4, 0.6]}, "its figures do not match") for name in BOTH),
        *((name, {"network": {"macs": 1}}, "(network: resolution: ") for name in BOTH),
        *((name, {"rdw": [10**400, 1, 1]}, "not a valid configuration") for name in BOTH),
        *((name, {"space": "os:path"}, "pass --space os:path") for name in BOTH),
        *((name, {"space": "efficientnet_x"}, "unknown space") for name in BOTH),
        *((name, {"space": None}, "or an export (space: ") for name in BOTH),
        ("trial", {"recipe": {"x": 1}}, "or an export (recipe: unknown recipe setting 'x'"),
        ("trial", {"recipe": [1]}, "or an export (recipe: "),
        ("trial", {"metrics": {"top1": "x"}}, "or an export (metrics.top1"),
        ("an_export", {"schema": 2}, "or an export (schema: "),
        ("an_export", {"weights": None}, "or an export (weights: "),
        ("an_export", {"trained": {}}, "or an export (trained.recipe: "),
        ("an_export", {"preprocessing": "abc"}, "or an export (preprocessing: "),
        ("an_export", {"files": {"x": {"quantised": {}}}}, "or an export (files.x.int8.format: "),
    ],
)
def test_damaged_configuration_is_rejected(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    fixture: str,
    change: dict[str, Any],
    words: str,
) -> None:
    config = json.loads((request.getfixturevalue(fixture) / "config.json").read_text())
    capsys.readouterr()
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    assert_rejected(capsys, words, tmp_path, "--format", "onnx", "--out", tmp_path / "out")
    (tmp_path / "config.json").write_text("{")
    assert_rejected(
        capsys,
        "is not a valid configuration",
        tmp_path,
        "--format",
        "onnx",
        "--out",
        tmp_path / "out",
    )


@pytest.mark.parametrize(
    "change",
    [{"mean": [0.5, 0.5]}, {"std": [0.2, 0, 0.2]}, {"mean": [0, 0, 1e7]}, {"crop_ratio": 0.05}],
)
def test_invalid_preprocessing_is_rejected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, an_export: Path, change: dict[str, Any]
) -> None:
    config = json.loads((an_export / "config.json").read_text())
    capsys.readouterr()
    damaged = {**config, "preprocessing": {**config["preprocessing"], **change}}
    (tmp_path / "config.json").write_text(json.dumps(damaged))
    (field,) = change
    words = f"or an export (preprocessing.{field}"
    assert_rejected(capsys, words, tmp_path, "--format", "onnx", "--out", tmp_path / "out")


def test_name_in_a_file_cannot_write_outside_the_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, an_export: Path
) -> None:
    source, out = tmp_path / "received", tmp_path / "out"
    source.mkdir()
    capsys.readouterr()
    (source / "weights.safetensors").write_bytes((an_export / "weights.safetensors").read_bytes())
    config = json.loads((an_export / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "name": f"{tmp_path}/../elsewhere"}))
    export_json(capsys, source, "--format", "pt2", "--out", out)
    assert {path.parent for path in tmp_path.rglob("*.pt2")} == {out}


def test_configuration_round_trip_is_exact(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trial: Path, weights: str
) -> None:
    """For a quantised trial and for (r, d, w), with integers in place of floats."""
    config = json.loads((trial / "config.json").read_text())
    (tmp_path / "trial").mkdir()
    with_integers = {**config, "recipe": {**config["recipe"], "eval_ratio": 1, "warmup_epochs": 1}}
    (tmp_path / "trial" / "config.json").write_text(json.dumps(with_integers))
    (tmp_path / "trial" / "weights.safetensors").write_bytes(
        (trial / "weights.safetensors").read_bytes()
    )
    arguments = ("--format", "onnx", "--int8", "--images", "8", "--calibration", "8", "--out")
    export_json(capsys, tmp_path / "trial", *arguments, tmp_path / "a")
    multipliers = (RDW, "--space", MINI, "--weights", weights, "--format", "safetensors", "--out")
    export_json(capsys, *multipliers, tmp_path / "b")
    for out in (tmp_path / "a" / "config.json", tmp_path / "b" / "config.json"):
        read = document.read_config(out)
        assert isinstance(read, document.ExportConfig)
        assert json.dumps(read.to_json(), indent=1) == out.read_text()
    assert '"crop_ratio": 1.0,' in (tmp_path / "a" / "config.json").read_text()
    assert '"warmup_epochs": 1.0,' in (tmp_path / "a" / "config.json").read_text()


def test_damaged_weights_are_rejected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trial: Path
) -> None:
    export_json(capsys, trial, "--format", "safetensors", "--out", tmp_path)
    file = tmp_path / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert_rejected(
        capsys,
        "does not match its digest in config.json",
        tmp_path,
        "--format",
        "onnx",
        "--out",
        tmp_path,
    )


def test_export_contains_no_local_paths(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trial: Path
) -> None:
    (tmp_path / "trial").mkdir()
    config = json.loads((trial / "config.json").read_text())
    local = {**config, "data": {"name": "imagefolder", "path": str(tmp_path / "images")}}
    (tmp_path / "trial" / "config.json").write_text(json.dumps(local))
    (tmp_path / "trial" / "weights.safetensors").write_bytes(
        (trial / "weights.safetensors").read_bytes()
    )
    export_json(capsys, tmp_path / "trial", "--format", "safetensors", "--out", tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()


def test_weights_with_nan_are_rejected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, module: nn.Module
) -> None:
    torch.save(
        {name: tensor * float("nan") for name, tensor in module.state_dict().items()},
        tmp_path / "nan.pth",
    )
    arguments = (
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
    code, _, err = call(capsys, *arguments)
    assert code == 1 and "its weights contain NaN" in err and not (tmp_path / "out").exists()


def test_user_defined_space_must_be_passed_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, module: nn.Module, weights: str
) -> None:
    own = "tests.export.test_export:own_space"
    export_json(
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
    not_loaded = "is not loaded from a file"
    assert_rejected(capsys, not_loaded, tmp_path, "--format", "safetensors", "--out", tmp_path)
    export_json(capsys, tmp_path, "--space", own, "--format", "safetensors", "--out", tmp_path)
    assert torch.equal(outputs(load_exported(tmp_path, space=own)[1]), outputs(module))


def own_space() -> Any:
    return get_space(MINI)


@pytest.mark.quick
def test_unfinished_training_has_no_metrics() -> None:
    unfinished = TrainedBy(
        recipe=get_recipe("short"), data={"name": "petals"}, data_fingerprint="p", seed=0
    )
    assert "metrics" not in unfinished.model_dump()
    assert TrainedBy.from_json(unfinished.model_dump()) == unfinished
    ended = unfinished.model_copy(update={"metrics": {"top1": 1}})
    assert ended.model_dump()["metrics"] == {"top1": 1}
