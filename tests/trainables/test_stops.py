"""Trainings that stop: killed, broken off, diverged, out of memory."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainables.helpers import tiny_spec, without_times
from trainables.checkpoint import newest_checkpoint
from trainables.execution import Execution
from trainables.memory import smaller
from trainables.recipe import get_recipe
from trainables.spec import Alone, TrialSpec
from trainables.storage.folder import LocalFolder
from trainables.trial import run_trial
from trainables.watch import FAR, Diverged, LossWatch

EVERY = Execution(checkpoint_every_steps=2)
# Six steps an epoch, three of them micro-batches of the paper's kind: dropout, two micro-batches, batch-norm momentum.
SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "batch": 16,
    "micro_batch": 8,
    "dropout": 0.2,
    "bn_momentum": 0.01,
}


def spec(**settings: Any) -> TrialSpec:
    return tiny_spec(**(SETTINGS | settings))


def same_end(one: Path, other: Path, trial: TrialSpec) -> None:
    """Final weights of two search directories to the last bit, the average's and the running statistics among them."""
    a, b = (load_file(root / trial.folder / "weights.safetensors") for root in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("ranks", ["ema", "raw"])
def test_killed_in_mid_epoch(tmp_path: Path, ranks: str) -> None:
    """SIGKILL after four of six steps of the second epoch; the next run ends with the same bits as one that never stopped."""
    trial = spec(ranks=ranks, optimizer="rmsprop_tf")
    whole = run_trial(trial, str(tmp_path / "whole"), Alone(), EVERY)
    script = f"""
import sys; from trainables.trial import *; from trainables.checkpoint import newest_checkpoint
from trainables.execution import Execution
from trainables.storage.folder import LocalFolder
spec = TrialSpec.from_json({trial.to_json()!r})
run_trial(spec, {str(tmp_path / "cut")!r}, Alone(), Execution(checkpoint_every_steps=2))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    reached = tmp_path / "cut" / trial.folder / "epoch-0001-step-000004" / "progress.json"
    end = time.monotonic() + 120
    while not reached.exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "results").exists()
    assert without_times(run_trial(trial, str(tmp_path / "cut"), Alone(), EVERY)) == without_times(
        whole
    )
    same_end(tmp_path / "whole", tmp_path / "cut", trial)


class Stop(BaseException):
    pass


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Breaks a training off after as many checkpoints as the list's only number says."""
    left = [10**9]
    from trainables import trainer as classification

    real = classification.save_checkpoint

    def save(*args: Any) -> None:
        real(*args)
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    monkeypatch.setattr(classification, "save_checkpoint", save)
    yield left


@pytest.mark.parametrize("fused", ["on", "off"])
@pytest.mark.parametrize("optimizer", ["rmsprop_tf", "sgd", "adamw"])
def test_broken_off_at_every_checkpoint(
    tmp_path: Path, saves: list[int], optimizer: str, fused: Any
) -> None:
    """Stopped and taken up again after each of nine checkpoints, mid-epoch ones among them: the same bits."""
    trial, execution = spec(optimizer=optimizer), Execution(checkpoint_every_steps=2, fused=fused)
    whole = run_trial(trial, str(tmp_path / "whole"), Alone(), execution)
    stops = 0
    while stops < 9:
        saves[0] = 1
        with pytest.raises(Stop):
            run_trial(trial, str(tmp_path / "cut"), Alone(), execution)
        stops += 1
    assert without_times(
        run_trial(trial, str(tmp_path / "cut"), Alone(), execution)
    ) == without_times(whole)
    same_end(tmp_path / "whole", tmp_path / "cut", trial)


def test_a_damaged_mid_epoch_checkpoint(
    tmp_path: Path, saves: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The one before is taken, and it is said; the end is the same."""
    trial = spec()
    run_trial(trial, str(tmp_path / "whole"), Alone(), EVERY)
    saves[0] = 5
    with pytest.raises(Stop):
        run_trial(trial, str(tmp_path / "cut"), Alone(), EVERY)
    folder = tmp_path / "cut" / trial.folder
    assert sorted(p.name for p in folder.iterdir()) == [
        "epoch-0001-step-000002",
        "epoch-0001-step-000004",
    ]
    weights = folder / "epoch-0001-step-000004" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with caplog.at_level(logging.WARNING, "tinynet"):
        run_trial(trial, str(tmp_path / "cut"), Alone(), EVERY)
    assert "epoch-0001-step-000004 is passed over: weights.safetensors is damaged" in caplog.text
    same_end(tmp_path / "whole", tmp_path / "cut", trial)


def test_a_checkpoint_of_another_version_is_passed_over(
    tmp_path: Path, saves: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    trial = spec(epochs=1)
    saves[0] = 1
    with pytest.raises(Stop):
        run_trial(trial, str(tmp_path), Alone(), EVERY)
    file = tmp_path / trial.folder / "epoch-0000-step-000002" / "progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 1}))
    saves[0] = 10**9
    with caplog.at_level(logging.WARNING, "tinynet"):
        assert run_trial(trial, str(tmp_path), Alone()).status == "finished"
    assert "it is of version 1" in caplog.text


def test_a_loss_that_is_finite_and_far_off_has_diverged(tmp_path: Path) -> None:
    watch = LossWatch(10, torch.device("cpu"))
    watch.add(0, torch.tensor(3.0))
    with pytest.raises(Diverged, match=r"loss 1e\+06 at step 1"):
        watch.add(1, torch.tensor(1e6))
    assert watch.finish() == 3.0
    assert FAR > 100  # early spikes are no divergence
    result = run_trial(spec(lr=1e8, optimizer="sgd"), str(tmp_path), Alone())
    assert (result.status, result.reason) == ("failed", "diverged")
    assert "at epoch 1, step" in (result.detail or "")
    assert result.epochs == []


def test_weights_that_diverge_in_the_last_step(tmp_path: Path) -> None:
    """Losses are taken before an update: what the last one did shows in the weights, and is no result."""
    for lr in (1e4, 1e30):
        trial = tiny_spec(
            epochs=1, batch=96, micro_batch=96, optimizer="sgd", lr=lr, warmup_epochs=0
        )
        result = run_trial(trial, str(tmp_path / str(lr)), Alone())
        assert (result.status, result.reason, result.epochs) == ("failed", "diverged", [])
        assert list((tmp_path / str(lr)).glob("trials/*/*")) == []


def test_a_damaged_progress_file_is_passed_over(tmp_path: Path, saves: list[int]) -> None:
    """Whatever byte of it is another, the checkpoint before is taken and nothing is lost."""
    trial = spec(epochs=2)
    saves[0] = 4
    with pytest.raises(Stop):
        run_trial(trial, str(tmp_path), Alone(), EVERY)
    folder = LocalFolder(tmp_path).sub(trial.folder)
    newest, before = (1, 2), (1, 0)
    name = "epoch-0001-step-000002/progress.json"
    body = folder.read(name)
    assert newest_checkpoint(folder, trial.run) == newest
    for place in range(0, len(body), 7):
        folder.write(name, body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :])
        assert newest_checkpoint(folder, trial.run) == before
    folder.write(name, body.replace(b'"seconds"', b'"secands"'))
    saves[0] = 10**9
    assert run_trial(trial, str(tmp_path), Alone(), EVERY).status == "finished"


OUT_OF_MEMORY = """
import json, resource, sys
from pathlib import Path
from trainables.spec import Alone, TrialSpec; from trainables.trial import run_trial
import torch
spec, small = (TrialSpec.from_json(values) for values in json.loads(sys.argv[1]))
run_trial(small, sys.argv[2], Alone())  # everything is imported and warm
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 600 * 2**20, resource.RLIM_INFINITY))
print(json.dumps(run_trial(spec, sys.argv[2], Alone()).to_json()))
"""


def test_out_of_memory_names_what_fits(tmp_path: Path) -> None:
    """A process that may take 600 MB more: a micro-batch of 768 does not fit, and the result names one that was tried and does."""
    data = {"name": "petals", "train": 768, "val": 48}
    big, small = (
        tiny_spec((2.0, 0.3, 0.5), data=data, epochs=1, batch=768, micro_batch=768),
        tiny_spec(epochs=1),
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            OUT_OF_MEMORY,
            json.dumps([big.to_json(), small.to_json()]),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["status"], result["reason"]) == ("failed", "out of memory")
    assert "recipe.micro_batch = 768 does not fit: recipe.micro_batch = " in result["detail"]
    size = int(result["detail"].split("recipe.micro_batch = ")[2].split()[0])
    assert size in list(smaller(big.recipe))
    assert "of a batch of 768" in result["detail"]


def test_smaller_micro_batches_divide_the_batch() -> None:
    assert list(smaller(get_recipe("efficientnet"))) == [64, 32, 16, 8, 4, 2]
    assert list(smaller(get_recipe("short", batch=90, micro_batch=45))) == [18, 9, 3]


def test_every_switch_trains(tmp_path: Path) -> None:
    """Precision, layout and optimizer form change no more than rounding; the result says what was asked."""
    plain = run_trial(spec(epochs=2), str(tmp_path / "plain"), Alone())
    for name, execution in {
        "contiguous": Execution(channels_last="off"),
        "loops": Execution(fused="off"),
        "bf16": Execution(precision="bf16"),
    }.items():
        result = run_trial(spec(epochs=2), str(tmp_path / name), Alone(), execution)
        assert result.execution == execution
        assert result.to_json()["execution"] == asdict(execution)
        far = 0.05 if name == "bf16" else 1e-3
        assert result.epochs[0].train_loss == pytest.approx(plain.epochs[0].train_loss, rel=far)


def test_auto_is_decided_by_device_and_length() -> None:
    cpu = torch.device("cpu")
    assert not Execution().on(cpu, 10**6).compile
    assert Execution(compile="on").on(cpu).compile
    chosen = Execution().on(cpu)
    assert (chosen.bf16, chosen.channels_last, chosen.fused, chosen.pinned) == (
        False,
        True,
        True,
        False,
    )


def test_synchronised_batch_norm_needs_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run_trial(spec(sync_bn=True), str(tmp_path), Alone())
    assert (result.reason, result.detail) == (
        "recipe",
        "sync_bn: synchronised batch norm exists on GPUs only",
    )
