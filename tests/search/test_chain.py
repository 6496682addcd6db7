"""Test of the complete chain from ImageNet files to evaluated weights, with a killed training."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import equal

from tests.data.fake_imagenet import write
from tests.train.helpers import NETWORK, JobRuns, call, run_and_signal

EPOCHS = 24
RECIPE = (
    "--recipe",
    "short",
    "--epochs",
    str(EPOCHS),
    "--set",
    "recipe.batch=16",
    "--set",
    "recipe.micro_batch=8",
    "--set",
    "scaling.cpus=1",
)


def run_json(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """Run a command that must succeed and return its JSON output."""
    code, out, err = call(capsys, *args, "--json")
    assert code == 0, err
    return json.loads(out)


def test_subset_pack_train_kill_train_evaluate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A resumed job has the weights of an undisturbed one, and evaluation reproduces its score.

    The data are JPEG files of the built-in set in ImageNet's tar files, first as a subset, then
    packed. The weights are also evaluated on the unpacked files.
    """
    imagenet, subset, packed, storage = (
        tmp_path / name for name in ("imagenet", "subset", "packed", "searches")
    )
    write(imagenet, "tars")
    options = ("--num-classes", "4", "--images-per-class", "8")
    summary = run_json(
        capsys, "data", "imagenet100", "--imagenet", str(imagenet), "--out", str(subset), *options
    )
    assert (summary["classes"], summary["train"], summary["val"]) == (4, 32, 12)
    assert run_json(
        capsys, "data", "pack", "--data", str(subset), "--out", str(packed), "--pixels", "32"
    )["counts"] == {"train": 32, "val": 12}

    def job(name: str) -> list[str]:
        return [
            "train",
            *NETWORK,
            "--data",
            str(packed),
            "--storage",
            str(storage),
            "--name",
            name,
            *RECIPE,
        ]

    trials = storage / "cut" / "trials"
    code, _, _ = run_and_signal(
        job("cut"), signal.SIGKILL, lambda: any(trials.glob("*/epoch-0003/progress.json"))
    )
    assert code == -signal.SIGKILL
    assert not list((storage / "cut").glob("results/*.json"))
    resumed, undisturbed = run_json(capsys, *job("cut")), run_json(capsys, *job("undisturbed"))
    assert resumed["epochs"] == EPOCHS
    a, b = (
        load_file(Path(run["weights"]) / "weights.safetensors") for run in (resumed, undisturbed)
    )
    assert all(equal(a[key], b[key]) for key in a)
    steps = [
        step for step, _, _ in JobRuns(f"sqlite:///{storage / 'mlflow.db'}", "cut").steps("top1")
    ]
    assert steps == list(range(1, EPOCHS + 1))

    on_packed = run_json(capsys, "train", "--eval-only", "--weights", resumed["weights"])
    assert (on_packed["top1"], on_packed["images"]) == (resumed["metrics"]["top1"], 12)
    on_files = run_json(
        capsys, "train", "--eval-only", "--weights", resumed["weights"], "--data", str(subset)
    )
    assert on_files["top1"] == pytest.approx(on_packed["top1"], abs=100 / 12 + 1e-6)
