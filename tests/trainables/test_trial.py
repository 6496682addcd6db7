"""A trial trains, writes checkpoints, resumes bit for bit, and reports its failures as results."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainables.helpers import DATA, tiny_spec, without_times
from trainables.result import EpochRecord
from trainables.spec import LocalReporter, TrialSpec
from trainables.storage.folder import LocalFolder
from trainables.trainer import Trainer
from trainables.trial import run_trial
from trainables.trial_folder import newest_progress, read_result, result_name


class SimulatedKill(BaseException):
    """Stands for SIGKILL between two epochs: the code under test does not catch it."""


class StopAfter(LocalReporter):
    """Reporter that interrupts a training after some epochs."""

    def __init__(self, epochs: int) -> None:
        object.__setattr__(self, "remaining", epochs)

    def report(self, record: EpochRecord) -> None:
        object.__setattr__(self, "remaining", self.remaining - 1)  # type: ignore[attr-defined]
        if self.remaining == 0:  # type: ignore[attr-defined]
            raise SimulatedKill


def weights(root: Path, spec: TrialSpec) -> dict[str, torch.Tensor]:
    return load_file(root / spec.folder / "weights.safetensors")


def test_result(tmp_path: Path) -> None:
    spec = tiny_spec()
    result = run_trial(spec, str(tmp_path), LocalReporter())
    assert result.status == "finished"
    assert [e.epoch for e in result.epochs] == [1, 2, 3]
    assert result.metrics == result.epochs[-1]
    assert result.metrics is not None
    assert result.top1 == result.metrics.top1 == result.metrics.top1_ema
    assert read_result(LocalFolder(tmp_path), spec.run) == result
    assert json.loads((tmp_path / result_name(spec.run)).read_text()) == json.loads(
        json.dumps(result.to_json())
    )
    assert sorted(p.name for p in (tmp_path / spec.folder).iterdir()) == [
        "config.json",
        "weights.safetensors",
    ]
    assert run_trial(spec, str(tmp_path), LocalReporter()) == result


def test_stored_weights_reproduce_the_stored_top1(tmp_path: Path) -> None:
    """The weights are loaded into a newly built network."""
    spec = tiny_spec(epochs=2)
    result = run_trial(spec, str(tmp_path), LocalReporter())
    from trainables.data import open_data

    trainer = Trainer(spec, open_data(spec.data), LocalFolder(tmp_path / "other"), LocalReporter())
    missing, unexpected = trainer.model.load_state_dict(weights(tmp_path, spec), strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert unexpected == []
    assert trainer._scores()[0].top1 == result.epochs[-1].top1


@pytest.mark.parametrize("optimizer", ["rmsprop", "rmsprop_tf", "sgd", "adamw"])
def test_resume_is_exact(tmp_path: Path, optimizer: str) -> None:
    spec = tiny_spec(optimizer=optimizer, dropout=0.2)
    reference = run_trial(spec, str(tmp_path / "reference"), LocalReporter())
    for _ in range(2):
        with pytest.raises(SimulatedKill):
            run_trial(spec, str(tmp_path / "resumed"), StopAfter(1))
    assert len(newest_progress(LocalFolder(tmp_path / "resumed" / spec.folder))) == 2
    assert without_times(
        run_trial(spec, str(tmp_path / "resumed"), LocalReporter())
    ) == without_times(reference)
    one, other = weights(tmp_path / "reference", spec), weights(tmp_path / "resumed", spec)
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_two_checkpoints_are_kept_and_a_damaged_one_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = tiny_spec(epochs=4)
    reference = run_trial(spec, str(tmp_path / "reference"), LocalReporter())
    with pytest.raises(SimulatedKill):
        run_trial(spec, str(tmp_path), StopAfter(3))
    folder = tmp_path / spec.folder
    assert sorted(p.name for p in folder.iterdir()) == ["epoch-0002", "epoch-0003"]
    (folder / "epoch-0003" / "weights.safetensors").write_bytes(b"\x00" * 64)
    with caplog.at_level(logging.WARNING, "tinynet"):
        again = run_trial(spec, str(tmp_path), LocalReporter())
    assert "weights.safetensors is damaged" in caplog.text
    assert without_times(again) == without_times(reference)


def test_incomplete_checkpoint_is_ignored(tmp_path: Path) -> None:
    spec = tiny_spec()
    with pytest.raises(SimulatedKill):
        run_trial(spec, str(tmp_path), StopAfter(2))
    (tmp_path / spec.folder / "epoch-0002" / "progress.json").unlink()
    assert len(newest_progress(LocalFolder(tmp_path / spec.folder))) == 1


def test_divergence_is_a_failed_result(tmp_path: Path) -> None:
    spec = tiny_spec(lr=1e30, optimizer="sgd", warmup_epochs=0.0)
    result = run_trial(spec, str(tmp_path), LocalReporter())
    assert (result.status, result.reason, result.metrics) == ("failed", "diverged", None)
    assert "epoch 1, step" in (result.detail or "")
    assert run_trial(spec, str(tmp_path), LocalReporter()) == result


def test_failures_of_the_trial_are_failed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {
        "out of memory": torch.OutOfMemoryError("tried to allocate 9 GiB"),
        "error": KeyError("something in a user's space"),
    }
    for reason, error in cases.items():

        def broken(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Trainer, "run", broken)
        result = run_trial(tiny_spec(), str(tmp_path / reason.replace(" ", "-")), LocalReporter())
        assert (result.status, result.reason) == ("failed", reason)


def test_a_storage_error_is_not_a_failed_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFolder, "write", full)
    with pytest.raises(OSError, match="No space"):
        run_trial(tiny_spec(), str(tmp_path), LocalReporter())
    assert read_result(LocalFolder(tmp_path), tiny_spec().run) is None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        OSError(116, "Stale file handle"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
    ],
)
def test_a_node_failure_is_not_a_failed_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "run", broken)
    with pytest.raises(type(error)):
        run_trial(tiny_spec(), str(tmp_path), LocalReporter())
    assert read_result(LocalFolder(tmp_path), tiny_spec().run) is None


def test_the_first_result_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If two processes finish the same trial, the second returns the result of the first."""
    first = run_trial(tiny_spec(epochs=1), str(tmp_path), LocalReporter())
    with monkeypatch.context() as patch:
        results = iter([None, read_result(LocalFolder(tmp_path), tiny_spec(epochs=1).run)])
        patch.setattr("trainables.trial.read_result", lambda *_: next(results))
        second = run_trial(tiny_spec(epochs=1), str(tmp_path), LocalReporter())
    assert second == first


def test_changed_data_fails_the_trial(tmp_path: Path) -> None:
    from dataclasses import replace

    spec = replace(tiny_spec(), data={**DATA, "train": 120})
    result = run_trial(spec, str(tmp_path), LocalReporter())
    assert result.reason == "data changed"


def test_id_depends_on_everything_that_determines_the_result() -> None:
    spec = tiny_spec()
    same = [tiny_spec(epochs=9), tiny_spec((0.401, 0.4, 0.5))]
    other = [
        tiny_spec(seed=1),
        tiny_spec((0.5, 0.4, 0.5)),
        tiny_spec(lr=0.5),
        tiny_spec(data={**DATA, "seed": 1}),
    ]
    assert {s.id for s in same} == {spec.id}
    assert same[0].run != spec.run
    assert len({s.id for s in (*other, spec)}) == 5
    assert TrialSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
