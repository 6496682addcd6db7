"""Weights files whose architecture is stated beside them, in them, or by the hub's cache folder."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.utils.checkpoint_saver import CheckpointSaver
from torch import nn

from search_spaces import RequestError
from search_spaces.networks import get_named
from search_spaces.weights import Source, load_weights, locate
from tests.data.test_imagefolder import make_tree
from tests.train.helpers import call
from tinynet_search.export import ExportRequest, export_network

FUNCTION = "match by name and shape, but are for a different function: timm's"
HALF = [0.5, 0.5, 0.5]
# timm's architectures whose names and shapes match a named network, of these families.
SAME_NAMES = {
    "tf_efficientnet_b0": "efficientnet_b0",
    "efficientnet_blur_b0": "efficientnet_b0",
    "resnetaa50": "resnet50",
    "resnetblur50": "resnet50",
    "resnetblur18": "resnet18",
}


def network(name: str, classes: int = 2) -> nn.Module:
    row = get_named(name).network()
    return row.space.network(row.rdw, classes).build()


def saved(folder: Path, architecture: str, **options: Any) -> Path:
    """Random weights of timm's network with 2 classes, as timm uploads them to the hub."""
    module = timm.create_model(architecture, num_classes=2)
    save_for_hf(module, str(folder), safe_serialization="both", **options)
    return folder / "model.safetensors"


def change(file: Path, **values: Any) -> None:
    """Set keys of config.json beside a file; None removes a key."""
    config = file.with_name("config.json")
    changed = {**json.loads(config.read_text()), **values}
    kept = {key: value for key, value in changed.items() if value is not None}
    config.write_text(json.dumps(kept))


def refused(module: nn.Module, file: Path) -> str:
    """The message of the error; it is one line, and the module is unchanged."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(RequestError) as raised:
        load_weights(module, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert "\n" not in str(raised.value)
    return str(raised.value)


def loads(module: nn.Module, file: Path) -> Source:
    source = locate(file)
    load_weights(module, source)
    return source


@pytest.mark.parametrize("architecture", SAME_NAMES)
def test_other_function_is_refused_where_config_json_states_it(
    tmp_path: Path, architecture: str
) -> None:
    module, file = network(SAME_NAMES[architecture]), saved(tmp_path / "hub", architecture)
    for each in (file, file.with_name("pytorch_model.bin")):
        message = refused(module, each)
        assert f"{FUNCTION} {architecture} (config.json beside the file)" in message
    plain = shutil.copy(file, tmp_path)
    assert loads(module, Path(plain)).published is None


def test_preprocessing_of_config_json_is_used(tmp_path: Path) -> None:
    file = saved(tmp_path, "efficientnet_b0.ra4_e3600_r224_in1k")
    published = loads(network("efficientnet_b0"), file).published
    assert (published.architecture, published.num_classes) == ("efficientnet_b0", 2)
    assert (list(published.mean), list(published.std), published.crop_pct) == (HALF, HALF, 0.9)
    # timm's first format has all keys at the top.
    config = json.loads((tmp_path / "config.json").read_text())
    first = {"architecture": config["architecture"], **config["pretrained_cfg"]}
    (tmp_path / "config.json").write_text(json.dumps({**first, "labels": ["a", "b"]}))
    published = loads(network("efficientnet_b0"), file).published
    assert (list(published.mean), published.crop_pct, published.num_classes) == (HALF, 0.9, 2)
    change(file, label_names=["cat", "dog"])
    assert locate(file).published.label_names == ("cat", "dog")


def test_file_in_the_hubs_cache_is_known_by_its_folder(tmp_path: Path) -> None:
    """The hub's client stores files as links to blobs, and this project downloads weights only."""
    for name in ("tf_efficientnet_b0.ap_in1k", "efficientnet_b0.ra4_e3600_r224_in1k"):
        blob = tmp_path / f"models--timm--{name}" / "blobs" / "b10b"
        blob.parent.mkdir(parents=True)
        save_file(timm.create_model(name, num_classes=2).state_dict(), blob)
        file = blob.parents[1] / "snapshots" / "c0ffee" / "model.safetensors"
        file.parent.mkdir(parents=True)
        file.symlink_to("../../blobs/b10b")
        (tmp_path / f"{name}.safetensors").symlink_to(file)
        for each in (file, tmp_path / f"{name}.safetensors"):
            if name.startswith("tf_"):
                message = refused(network("efficientnet_b0"), each)
                assert f"{FUNCTION} tf_efficientnet_b0 (the folder of the hub's cache)" in message
            else:
                published = loads(network("efficientnet_b0"), each).published
                assert (list(published.mean), published.num_classes) == (HALF, 2)


def timm_checkpoint(folder: Path, architecture: str, **options: Any) -> Path:
    """A checkpoint as timm's training script writes it."""
    module = timm.create_model(architecture, num_classes=2)
    unset = dict.fromkeys(("mean", "std", "crop_pct", "gp", "bn_eps", "in_chans", "model_kwargs"))
    args = argparse.Namespace(model=architecture, **{**unset, **options})
    folder.mkdir(exist_ok=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    saver = CheckpointSaver(module, optimizer, args=args, checkpoint_dir=str(folder))
    saver.save_checkpoint(0, metric=1.0)
    return folder / "model_best.pth.tar"


def test_checkpoints_of_timms_training_script_state_their_network(tmp_path: Path) -> None:
    b0 = network("efficientnet_b0")
    file = timm_checkpoint(tmp_path / "tf", "tf_efficientnet_b0")
    assert f"{FUNCTION} tf_efficientnet_b0 (the file's metadata)" in refused(b0, file)
    options = {"mean": [0.5], "std": HALF, "crop_pct": 0.95}
    source = loads(b0, timm_checkpoint(tmp_path / "b0", "efficientnet_b0", **options))
    published = source.published
    assert (list(published.mean), published.crop_pct, published.num_classes) == (HALF, 0.95, 2)
    for option, value in (("bn_eps", 1e-3), ("gp", "max"), ("model_kwargs", {"pad_type": "same"})):
        file = timm_checkpoint(tmp_path / option, "efficientnet_b0", **{option: value})
        assert "which computes a different function" in refused(b0, file)
    file = timm_checkpoint(tmp_path / "odd", "efficientnet_b0", mean=["a", "b", "c"])
    assert "training checkpoint with invalid options (mean" in refused(b0, file)


def test_name_in_other_files_decides_the_function(tmp_path: Path) -> None:
    """A name alone determines the function; the preprocessing of other programs is unknown."""
    state = timm.create_model("resnetaa50", num_classes=2).state_dict()
    resnet = network("resnet50")
    contents: dict[str, dict[str, Any]] = {
        "example": {"arch": "resnetaa50", "state_dict": state},
        "reference": {"args": argparse.Namespace(model="resnetaa50"), "model": state},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        assert f"{FUNCTION} resnetaa50" in refused(resnet, tmp_path / f"{name}.pth")
    torch.save({"arch": "resnet50", "state_dict": state}, tmp_path / "resnet50.pth")
    source = loads(resnet, tmp_path / "resnet50.pth")
    assert (source.architecture, source.published) == ("resnet50", None)
    torch.save({"arch": "resnet", "state_dict": state}, tmp_path / "class.pth")
    assert loads(resnet, tmp_path / "class.pth").architecture is None
    for name in ("resnetaa50", "resnet50.tv_in1k", "custom"):
        save_file(state, tmp_path / name, metadata={"format": "pt", "architecture": name})
        (tmp_path / name).rename(tmp_path / "model.safetensors")
        if name == "resnetaa50":
            assert f"{FUNCTION} resnetaa50" in refused(resnet, tmp_path / "model.safetensors")
        else:
            published = loads(resnet, tmp_path / "model.safetensors").published
            assert (published and published.interpolation) == (
                None if name == "custom" else "bilinear"
            )


def test_config_json_of_other_programs_is_ignored(tmp_path: Path) -> None:
    """The folder of an export is one of them; its weights load as a file."""
    file = tmp_path / "b0.safetensors"
    save_file(timm.create_model("tinynet_e").state_dict(), file)
    request = ExportRequest("tinynet_e", "safetensors", tmp_path / "out", weights=str(file))
    export_network(request)
    source = loads(network("tinynet_e", 1000), tmp_path / "out" / "weights.safetensors")
    assert (source.published, source.architecture) == (None, None)
    for config in ([], {"model_type": "resnet", "architectures": ["x"]}, {"architecture": "MyNet"}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert loads(network("tinynet_e", 1000), file).architecture is None


NAN, ENDLESS = float("nan"), float("inf")
DAMAGED: dict[str, Any] = {
    "no architecture": {"architecture": None, "num_features": 1},
    "a number": {"architecture": 3},
    "unknown": {"architecture": "tf_efficientnet_b99"},
    "another machine": {"architecture": "hf-hub:someone/code"},
    "a path": {"architecture": "local-dir:/tmp"},
    "text as classes": {"num_classes": "two"},
    "true classes": {"num_classes": True},
    "many classes": {"num_classes": 10**18},
    "list as configuration": {"pretrained_cfg": [1]},
    "text as mean": {"pretrained_cfg": {"mean": "half"}},
    "two channels": {"pretrained_cfg": {"mean": [0.5, 0.5]}},
    "nan": {"pretrained_cfg": {"mean": [NAN, 0.5, 0.5]}},
    "endless": {"pretrained_cfg": {"std": [ENDLESS, 0.5, 0.5]}},
    "zero": {"pretrained_cfg": {"std": [0, 0.5, 0.5]}},
    "large": {"pretrained_cfg": {"crop_pct": 10**400}},
    "arguments": {"model_args": ["pad_type"]},
}
TEXTS = {
    "empty": b"",
    "cut": b'{"architecture": "tinynet_e"',
    "deep": b"[" * 100_000,
    "binary": bytes(range(128, 256)),
    "digits": b'{"architecture": "tinynet_e", "num_classes": ' + b"9" * 5000 + b"}",
    "long": b" " * (4 * 2**20 + 1),
}


@pytest.mark.parametrize("name", [*DAMAGED, *TEXTS])
def test_damaged_config_json_is_reported_in_one_line(tmp_path: Path, name: str) -> None:
    file = saved(tmp_path, "tinynet_e")
    config = tmp_path / "config.json"
    if name in TEXTS:
        config.write_bytes(TEXTS[name])
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), **DAMAGED[name]}))
    message = refused(network("tinynet_e"), file)
    assert message.startswith(f"{str(config)!r} beside weights {str(file)!r} is damaged or not")
    assert message.endswith("download it again, or move the weights to another folder")
    assert len(message) < 600


def test_config_json_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    file, module = saved(tmp_path, "tinynet_e"), network("tinynet_e")
    change(file, num_classes=10)
    assert "states 10 classes, but the weights have 2" in refused(module, file)
    change(file, num_classes=2, architecture="vit_giant_patch14_224")
    message = refused(module, file)
    assert "belong to a different network: expected those of timm's vit_giant_patch14" in message
    change(file, architecture="tinynet_e", model_args={"checkpoint_path": "/etc/passwd"})
    assert "with checkpoint_path='/etc/passwd' (config.json beside the file)" in refused(
        module, file
    )
    change(file, model_args={"in_chans": 3, "drop_rate": 0.2}, global_pool="max")
    assert "with global_pool='max'" in refused(module, file)
    change(file, global_pool="avg")
    loads(module, file)


def test_evaluation_and_export_of_a_file_with_config_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = make_tree(tmp_path / "tree")
    b0 = str(saved(tmp_path / "b0", "efficientnet_b0.ra4_e3600_r224_in1k"))
    tf = str(saved(tmp_path / "tf", "tf_efficientnet_b0"))
    evaluate = ("train", "efficientnet_b0", "--eval-only", "--data", str(tree), "--weights")
    export = ("export", "efficientnet_b0", "--classes", "2", "--format", "safetensors", "--weights")
    for command in ((*evaluate, tf), (*export, tf, "--out", str(tmp_path / "out"))):
        code, out, err = call(capsys, *command)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{FUNCTION} tf_efficientnet_b0" in err
    code, out, err = call(capsys, *evaluate, b0, "--json")
    assert (code, "do not record their preprocessing" in err) == (0, False), err
    preprocessing = json.loads(out)["preprocessing"]
    assert (preprocessing["mean"], preprocessing["crop_ratio"]) == (HALF, 0.9)
    assert preprocessing["assumed"] is False
    code, out, err = call(capsys, *export, b0, "--out", str(tmp_path / "out"), "--json")
    assert code == 0, err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["weights"]["from"], config["preprocessing"]["mean"]) == (
        "model.safetensors",
        HALF,
    )
    assert str(tmp_path) not in json.dumps(config)
