"""From ImageNet's files to evaluated weights through the command alone, killed on the way."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import equal

from tests.data.fake_imagenet import write
from tests.train.helpers import NETWORK, JobRuns, call, stopped

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


def done(capsys: pytest.CaptureFixture[str], *asked: str) -> dict[str, Any]:
    code, out, err = call(capsys, *asked, "--json")
    assert code == 0, err
    return json.loads(out)


def test_subset_pack_train_kill_train_evaluate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """JPEG files of the built-in set in ImageNet's tar files: the subset, the packed store, a job that is killed and taken
    up ends with the bits of one that was not, and its weights score again what it said, from the files too."""
    imagenet, subset, packed, storage = (
        tmp_path / name for name in ("imagenet", "subset", "packed", "searches")
    )
    write(imagenet, "tars")
    drawn = ("--num-classes", "4", "--images-per-class", "8")
    made = done(
        capsys, "data", "imagenet100", "--imagenet", str(imagenet), "--out", str(subset), *drawn
    )
    assert (made["classes"], made["train"], made["val"]) == (4, 32, 12)
    assert done(
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

    begun = storage / "cut" / "trials"
    code, _, _ = stopped(
        job("cut"), signal.SIGKILL, lambda: any(begun.glob("*/epoch-0003/progress.json"))
    )
    assert code == -signal.SIGKILL
    assert not list((storage / "cut").glob("results/*.json"))
    again, whole = done(capsys, *job("cut")), done(capsys, *job("whole"))
    assert again["epochs"] == EPOCHS
    a, b = (load_file(Path(found["weights"]) / "weights.safetensors") for found in (again, whole))
    assert all(equal(a[key], b[key]) for key in a)
    steps = [
        step for step, _, _ in JobRuns(f"sqlite:///{storage / 'mlflow.db'}", "cut").steps("top1")
    ]
    assert steps == list(range(1, EPOCHS + 1))

    scored = done(capsys, "train", "--eval-only", "--weights", again["weights"])
    assert (scored["top1"], scored["images"]) == (again["metrics"]["top1"], 12)
    files = done(
        capsys, "train", "--eval-only", "--weights", again["weights"], "--data", str(subset)
    )
    assert files["top1"] == pytest.approx(scored["top1"], abs=100 / 12 + 1e-6)
