"""Trainings that stop on request, resume bit for bit, and continue for more epochs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainables.helpers import tiny_spec, without_times
from trainables import stopping, trainer
from trainables.checkpoint import newest_checkpoint
from trainables.execution import Execution
from trainables.spec import LocalReporter, TrialSpec
from trainables.stopping import StopFile, Stopped
from trainables.storage.folder import LocalFolder
from trainables.trial import run_trial, write_failure
from trainables.trial_folder import checkpoints, read_result

pytestmark = pytest.mark.quick

SETTINGS: dict[str, Any] = {"epochs": 3, "batch": 16, "micro_batch": 8, "dropout": 0.2}
STEP: dict[str, Any] = {"schedule": "step", "decay": 0.5, "decay_epochs": 2.0}


def spec(**changes: Any) -> TrialSpec:
    """A trial with six steps per epoch."""
    return tiny_spec(**(SETTINGS | changes))


class StopAfter:
    """Stop condition that is false for the first ``calls`` calls."""

    def __init__(self, calls: int) -> None:
        self.remaining = calls

    def __call__(self) -> bool:
        self.remaining -= 1
        return self.remaining < 0


def weights(root: Path, trial: TrialSpec) -> dict[str, torch.Tensor]:
    return load_file(root / trial.folder / "weights.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# An epoch has nine stop checks: before each of six steps, before the evaluation, and after each of
# its two batches.
@pytest.mark.slow
@pytest.mark.parametrize(("calls", "at"), [(0, (0, 0)), (1, (0, 1)), (9, (1, 0)), (12, (1, 3))])
def test_a_stopped_training_resumes_bit_for_bit(
    tmp_path: Path, calls: int, at: tuple[int, int]
) -> None:
    """Stops before the first step, after a step, between epochs and in the middle of an epoch."""
    trial = spec()
    reference = run_trial(trial, str(tmp_path / "reference"), LocalReporter())
    resumed = LocalFolder(tmp_path / "resumed")
    with pytest.raises(Stopped):
        run_trial(trial, resumed.url, LocalReporter(), None, StopAfter(calls))
    assert read_result(resumed, trial.run) is None
    assert newest_checkpoint(resumed.sub(trial.folder), trial.run) == at
    again = run_trial(trial, resumed.url, LocalReporter())
    assert without_times(again) == without_times(reference)
    assert same(weights(tmp_path / "reference", trial), weights(tmp_path / "resumed", trial))


@pytest.mark.slow
def test_a_training_that_stops_repeatedly_finishes(tmp_path: Path) -> None:
    """A few steps per start, with periodic checkpoints too; some stops are in an evaluation."""
    trial = spec()
    reference = run_trial(trial, str(tmp_path / "reference"), LocalReporter())
    folder = LocalFolder(tmp_path / "resumed" / trial.folder)
    for at in [(0, 4), (0, 6), (1, 1), (1, 5), (2, 0), (2, 4), (2, 6)]:
        with pytest.raises(Stopped):
            run_trial(
                trial,
                str(tmp_path / "resumed"),
                LocalReporter(),
                Execution(checkpoint_every_steps=4),
                StopAfter(4),
            )
        assert newest_checkpoint(folder, trial.run) == at
    assert without_times(
        run_trial(trial, str(tmp_path / "resumed"), LocalReporter())
    ) == without_times(reference)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [6, 7])
def test_stop_during_an_evaluation(tmp_path: Path, calls: int) -> None:
    """The epoch's steps are kept, and only the evaluation is repeated."""
    trial = spec()
    reference = run_trial(trial, str(tmp_path / "reference"), LocalReporter())
    resumed = LocalFolder(tmp_path / "resumed")
    with pytest.raises(Stopped):
        run_trial(trial, resumed.url, LocalReporter(), None, StopAfter(calls))
    assert newest_checkpoint(resumed.sub(trial.folder), trial.run) == (0, 6)
    with pytest.raises(Stopped):
        run_trial(trial, resumed.url, LocalReporter(), None, StopAfter(0))
    assert without_times(run_trial(trial, resumed.url, LocalReporter())) == without_times(reference)


@pytest.mark.slow
def test_an_os_error_in_a_space_is_a_failed_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any error of a user's space fails the trial, because a retry would fail in the same way."""

    def build(self: Any, network: Any, **options: Any) -> Any:
        raise FileNotFoundError(2, "No such file", "table.csv")

    monkeypatch.setattr("search_spaces.efficientnet.EfficientNetSpace.build", build)
    result = run_trial(spec(), str(tmp_path), LocalReporter())
    assert (result.status, result.reason) == ("failed", "error")
    assert "table.csv" in (result.detail or "")


def test_stop_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    folder = LocalFolder(tmp_path)
    stop = StopFile(folder, "lease/000001.stop")
    assert not stop()
    folder.write("lease/000001.stop", b"")
    assert not stop()  # checked less than POLL_SECONDS ago
    clock[0] += stopping.POLL_SECONDS
    assert stop()
    folder.remove("lease/000001.stop")
    assert stop()


def test_a_storage_error_is_not_a_stop_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: LocalFolder, name: str) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalFolder, "exists", broken)
    assert not StopFile(LocalFolder(tmp_path), "lease/000001.stop")()


@pytest.mark.slow
def test_a_longer_training_continues_from_a_shorter_one(tmp_path: Path) -> None:
    """With a ``step`` schedule the first epochs are the same, so they are not trained again.

    The result is that of one uninterrupted training.
    """
    short, long = spec(**STEP, epochs=2), spec(**STEP, epochs=4)
    assert short.id == long.id
    continued_root, reference_root = tmp_path / "continued", tmp_path / "reference"
    first = run_trial(short, str(continued_root), LocalReporter())
    assert checkpoints(LocalFolder(continued_root / short.folder)) == ["epoch-0002"]
    continued = run_trial(long, str(continued_root), LocalReporter())
    assert continued.epochs[:2] == first.epochs
    assert read_result(LocalFolder(continued_root), short.run) == first
    reference = run_trial(long, str(reference_root), LocalReporter())
    assert without_times(continued) == without_times(reference)
    assert same(weights(continued_root, long), weights(reference_root, long))


@pytest.mark.slow
def test_a_cosine_schedule_restarts(tmp_path: Path) -> None:
    short, long = spec(epochs=1), spec(epochs=2)
    first = run_trial(short, str(tmp_path), LocalReporter())
    assert checkpoints(LocalFolder(tmp_path / short.folder)) == []
    second = run_trial(long, str(tmp_path), LocalReporter())
    assert [e.epoch for e in second.epochs] == [1, 2]
    assert second.epochs[0].ts > first.epochs[0].ts


@pytest.mark.slow
def test_write_failure(tmp_path: Path) -> None:
    """The driver writes the result of a hung trial, with the epochs of its last checkpoint.

    The trial resumes from the checkpoint once the result is removed.
    """
    trial, root = spec(), LocalFolder(tmp_path)
    with pytest.raises(Stopped):
        run_trial(trial, root.url, LocalReporter(), None, StopAfter(11))
    assert write_failure(trial, root, "hung", "no epoch")
    assert not write_failure(trial, root, "hung", "again")
    failed = run_trial(trial, root.url, LocalReporter())
    assert (failed.status, failed.reason, failed.detail, len(failed.epochs)) == (
        "failed",
        "hung",
        "no epoch",
        1,
    )
    root.remove(f"results/{trial.run}.json")
    again = run_trial(trial, root.url, LocalReporter())
    assert again.epochs[0] == failed.epochs[0]
    assert without_times(again) == without_times(
        run_trial(trial, str(tmp_path / "reference"), LocalReporter())
    )


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rank 0 gets the stop request; all ranks stop before the same step and resume from it."""
    from tests.trainables.test_distributed import on_ranks, train

    monkeypatch.setattr(trainer, "STOP_CHECK_STEPS", 2)
    trial = tiny_spec(epochs=2, batch=16, micro_batch=8)
    reference = train(trial, 2, tmp_path / "reference")
    assert on_ranks(trial, 2, tmp_path / "resumed", stop_at=5) == [7, 7]
    assert newest_checkpoint(LocalFolder(tmp_path / "resumed" / trial.folder), trial.run) == (1, 2)
    assert same(train(trial, 2, tmp_path / "resumed"), reference)
