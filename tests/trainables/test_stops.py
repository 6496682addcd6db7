"""Trainings that are killed, interrupted, diverge or run out of memory."""

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
from trainables.memory import smaller_micro_batches
from trainables.recipe import get_recipe
from trainables.spec import LocalReporter, TrialSpec
from trainables.storage.folder import LocalFolder
from trainables.trial import run_trial
from trainables.watch import DIVERGENCE_FACTOR, Diverged, LossWatch

EVERY_TWO_STEPS = Execution(checkpoint_every_steps=2)
# Six steps per epoch, with the paper's dropout, accumulation and batch-norm momentum.
SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "batch": 16,
    "micro_batch": 8,
    "dropout": 0.2,
    "bn_momentum": 0.01,
}


def spec(**settings: Any) -> TrialSpec:
    return tiny_spec(**(SETTINGS | settings))


def assert_same_weights(one: Path, other: Path, trial: TrialSpec) -> None:
    """Check that the final weights and running statistics of two search directories are equal."""
    a, b = (load_file(root / trial.folder / "weights.safetensors") for root in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("ranks", ["ema", "raw"])
def test_killed_in_the_middle_of_an_epoch(tmp_path: Path, ranks: str) -> None:
    """SIGKILL after four of six steps of epoch two; the next run ends as if uninterrupted."""
    trial = spec(ranks=ranks, optimizer="rmsprop_tf")
    reference = run_trial(trial, str(tmp_path / "reference"), LocalReporter(), EVERY_TWO_STEPS)
    script = f"""
import sys; from trainables.trial import *; from trainables.checkpoint import newest_checkpoint
from trainables.execution import Execution
from trainables.storage.folder import LocalFolder
spec = TrialSpec.from_json({trial.to_json()!r})
run_trial(spec, {str(tmp_path / "resumed")!r}, LocalReporter(), Execution(checkpoint_every_steps=2))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    reached = tmp_path / "resumed" / trial.folder / "epoch-0001-step-000004" / "progress.json"
    end = time.monotonic() + 120
    while not reached.exists():
        assert process.poll() is None, "the process exited before it could be killed"
        assert time.monotonic() < end
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "resumed" / "results").exists()
    assert without_times(
        run_trial(trial, str(tmp_path / "resumed"), LocalReporter(), EVERY_TWO_STEPS)
    ) == without_times(reference)
    assert_same_weights(tmp_path / "reference", tmp_path / "resumed", trial)


class SimulatedKill(BaseException):
    """Stands for SIGKILL: the code under test does not catch it."""


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Interrupts a training after N checkpoints, where N is the only element of the list."""
    remaining = [10**9]
    from trainables import trainer

    real = trainer.save_checkpoint

    def save(*args: Any) -> None:
        real(*args)
        remaining[0] -= 1
        if remaining[0] == 0:
            raise SimulatedKill

    monkeypatch.setattr(trainer, "save_checkpoint", save)
    yield remaining


@pytest.mark.parametrize("fused", ["on", "off"])
@pytest.mark.parametrize("optimizer", ["rmsprop_tf", "sgd", "adamw"])
def test_interrupted_at_every_checkpoint(
    tmp_path: Path, saves: list[int], optimizer: str, fused: Any
) -> None:
    """Interrupted and resumed after each of nine checkpoints, some of them within an epoch."""
    trial, execution = spec(optimizer=optimizer), Execution(checkpoint_every_steps=2, fused=fused)
    reference = run_trial(trial, str(tmp_path / "reference"), LocalReporter(), execution)
    stops = 0
    while stops < 9:
        saves[0] = 1
        with pytest.raises(SimulatedKill):
            run_trial(trial, str(tmp_path / "resumed"), LocalReporter(), execution)
        stops += 1
    assert without_times(
        run_trial(trial, str(tmp_path / "resumed"), LocalReporter(), execution)
    ) == without_times(reference)
    assert_same_weights(tmp_path / "reference", tmp_path / "resumed", trial)


def test_a_damaged_mid_epoch_checkpoint_is_skipped(
    tmp_path: Path, saves: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The previous checkpoint is used, a warning is logged, and the final weights are the same."""
    trial = spec()
    run_trial(trial, str(tmp_path / "reference"), LocalReporter(), EVERY_TWO_STEPS)
    saves[0] = 5
    with pytest.raises(SimulatedKill):
        run_trial(trial, str(tmp_path / "resumed"), LocalReporter(), EVERY_TWO_STEPS)
    folder = tmp_path / "resumed" / trial.folder
    assert sorted(p.name for p in folder.iterdir()) == [
        "epoch-0001-step-000002",
        "epoch-0001-step-000004",
    ]
    weights = folder / "epoch-0001-step-000004" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with caplog.at_level(logging.WARNING, "tinynet"):
        run_trial(trial, str(tmp_path / "resumed"), LocalReporter(), EVERY_TWO_STEPS)
    assert "epoch-0001-step-000004: weights.safetensors is damaged" in caplog.text
    assert_same_weights(tmp_path / "reference", tmp_path / "resumed", trial)


def test_a_checkpoint_of_a_different_schema_is_skipped(
    tmp_path: Path, saves: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    trial = spec(epochs=1)
    saves[0] = 1
    with pytest.raises(SimulatedKill):
        run_trial(trial, str(tmp_path), LocalReporter(), EVERY_TWO_STEPS)
    file = tmp_path / trial.folder / "epoch-0000-step-000002" / "progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 1}))
    saves[0] = 10**9
    with caplog.at_level(logging.WARNING, "tinynet"):
        assert run_trial(trial, str(tmp_path), LocalReporter()).status == "finished"
    assert "expected schema 2, got 1" in caplog.text


def test_a_very_large_finite_loss_has_diverged(tmp_path: Path) -> None:
    watch = LossWatch(10, torch.device("cpu"))
    watch.add(0, torch.tensor(3.0))
    with pytest.raises(Diverged, match=r"loss 1e\+06 at step 1"):
        watch.add(1, torch.tensor(1e6))
    assert watch.finish() == 3.0
    assert DIVERGENCE_FACTOR > 100  # early spikes do not count as divergence
    result = run_trial(spec(lr=1e8, optimizer="sgd"), str(tmp_path), LocalReporter())
    assert (result.status, result.reason) == ("failed", "diverged")
    assert "at epoch 1, step" in (result.detail or "")
    assert result.epochs == []


def test_weights_that_diverge_in_the_last_step(tmp_path: Path) -> None:
    """A step's loss is computed before its update, so the last update is checked in the weights."""
    for lr in (1e4, 1e30):
        trial = tiny_spec(
            epochs=1, batch=96, micro_batch=96, optimizer="sgd", lr=lr, warmup_epochs=0
        )
        result = run_trial(trial, str(tmp_path / str(lr)), LocalReporter())
        assert (result.status, result.reason, result.epochs) == ("failed", "diverged", [])
        assert list((tmp_path / str(lr)).glob("trials/*/*")) == []


def test_a_checkpoint_with_a_damaged_progress_file_is_skipped(
    tmp_path: Path, saves: list[int]
) -> None:
    """If any byte is changed, the previous checkpoint is used."""
    trial = spec(epochs=2)
    saves[0] = 4
    with pytest.raises(SimulatedKill):
        run_trial(trial, str(tmp_path), LocalReporter(), EVERY_TWO_STEPS)
    folder = LocalFolder(tmp_path).sub(trial.folder)
    newest, previous = (1, 2), (1, 0)
    name = "epoch-0001-step-000002/progress.json"
    body = folder.read(name)
    assert newest_checkpoint(folder, trial.run) == newest
    for index in range(0, len(body), 7):
        folder.write(name, body[:index] + bytes([body[index] ^ 1]) + body[index + 1 :])
        assert newest_checkpoint(folder, trial.run) == previous
    folder.write(name, body.replace(b'"seconds"', b'"secands"'))
    saves[0] = 10**9
    assert run_trial(trial, str(tmp_path), LocalReporter(), EVERY_TWO_STEPS).status == "finished"


OUT_OF_MEMORY = """
import json, resource, sys
from pathlib import Path
from trainables.spec import LocalReporter, TrialSpec; from trainables.trial import run_trial
import torch
spec, small = (TrialSpec.from_json(values) for values in json.loads(sys.argv[1]))
run_trial(small, sys.argv[2], LocalReporter())  # import and warm up everything
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20, resource.RLIM_INFINITY))
print(json.dumps(run_trial(spec, sys.argv[2], LocalReporter()).to_json()))
"""


def test_out_of_memory_reports_a_micro_batch_that_fits(tmp_path: Path) -> None:
    """A process is limited to 600 MB more, so a micro-batch of 768 does not fit.

    The result contains a smaller one that was tried and fits.
    """
    data = {"name": "petals", "train": 768, "val": 48}
    big, small = (
        tiny_spec((2.0, 0.3, 0.5), data=data, epochs=1, batch=768, micro_batch=768),
        tiny_spec(epochs=1),
    )
    process = subprocess.run(
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
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert (result["status"], result["reason"]) == ("failed", "out of memory")
    assert "recipe.micro_batch = 768 does not fit: recipe.micro_batch = " in result["detail"]
    size = int(result["detail"].split("recipe.micro_batch = ")[2].split()[0])
    assert size in list(smaller_micro_batches(big.recipe))
    assert "of a batch of 768" in result["detail"]


def test_smaller_micro_batches_divide_the_batch() -> None:
    assert list(smaller_micro_batches(get_recipe("efficientnet"))) == [64, 32, 16, 8, 4, 2]
    assert list(smaller_micro_batches(get_recipe("short", batch=90, micro_batch=45))) == [18, 9, 3]


def test_execution_settings_change_only_rounding(tmp_path: Path) -> None:
    """Applies to precision, layout and optimizer form; the result contains the settings."""
    plain = run_trial(spec(epochs=2), str(tmp_path / "plain"), LocalReporter())
    for name, execution in {
        "contiguous": Execution(channels_last="off"),
        "loops": Execution(fused="off"),
        "bf16": Execution(precision="bf16"),
    }.items():
        result = run_trial(spec(epochs=2), str(tmp_path / name), LocalReporter(), execution)
        assert result.execution == execution
        assert result.to_json()["execution"] == asdict(execution)
        tolerance = 0.05 if name == "bf16" else 1e-3
        expected = pytest.approx(plain.epochs[0].train_loss, rel=tolerance)
        assert result.epochs[0].train_loss == expected


def test_auto_depends_on_device_and_length() -> None:
    cpu = torch.device("cpu")
    assert not Execution().resolve(cpu, 10**6).compile
    assert Execution(compile="on").resolve(cpu).compile
    resolved = Execution().resolve(cpu)
    assert (resolved.bf16, resolved.channels_last, resolved.fused, resolved.pinned) == (
        False,
        True,
        True,
        False,
    )


def test_synchronised_batch_norm_requires_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run_trial(spec(sync_bn=True), str(tmp_path), LocalReporter())
    assert (result.reason, result.detail) == (
        "recipe",
        "sync_bn: synchronised batch norm requires GPUs",
    )
