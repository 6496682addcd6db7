"""Trainings that are asked to end: a checkpoint in mid-epoch, no result, and later the same bits; and those that go on for longer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainables.helpers import tiny_spec, without_times
from trainables import stopping
from trainables import trainer as classification
from trainables.checkpoint import newest_checkpoint
from trainables.execution import Execution
from trainables.spec import Alone, TrialSpec
from trainables.stopping import StopFile, Stopped
from trainables.storage.folder import LocalFolder
from trainables.trial import run_trial, write_failure
from trainables.trial_folder import checkpoints, read_result

pytestmark = pytest.mark.quick

SETTINGS: dict[str, Any] = {"epochs": 3, "batch": 16, "micro_batch": 8, "dropout": 0.2}
STEP: dict[str, Any] = {"schedule": "step", "decay": 0.5, "decay_epochs": 2.0}


def spec(**changes: Any) -> TrialSpec:
    """Six steps an epoch."""
    return tiny_spec(**(SETTINGS | changes))


class After:
    """Asks to end at its n-th call."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def weights(root: Path, trial: TrialSpec) -> dict[str, torch.Tensor]:
    return load_file(root / trial.folder / "weights.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# An epoch asks nine times: before six steps, before its evaluation, after each of two batches of it.
@pytest.mark.slow
@pytest.mark.parametrize(("calls", "at"), [(0, (0, 0)), (1, (0, 1)), (9, (1, 0)), (12, (1, 3))])
def test_stops_anywhere_and_goes_on(tmp_path: Path, calls: int, at: tuple[int, int]) -> None:
    """Before anything, after a step, between two epochs and in the middle of one."""
    trial = spec()
    whole = run_trial(trial, str(tmp_path / "whole"), Alone())
    cut = LocalFolder(tmp_path / "cut")
    with pytest.raises(Stopped):
        run_trial(trial, cut.url, Alone(), None, After(calls))
    assert read_result(cut, trial.run) is None
    assert newest_checkpoint(cut.sub(trial.folder), trial.run) == at
    again = run_trial(trial, cut.url, Alone())
    assert without_times(again) == without_times(whole)
    assert same(weights(tmp_path / "whole", trial), weights(tmp_path / "cut", trial))


@pytest.mark.slow
def test_asked_again_and_again_it_still_ends(tmp_path: Path) -> None:
    """A few steps at a time, beside checkpoints of its own: every one a start anew, some in an evaluation."""
    trial = spec()
    whole = run_trial(trial, str(tmp_path / "whole"), Alone())
    folder = LocalFolder(tmp_path / "cut" / trial.folder)
    for at in [(0, 4), (0, 6), (1, 1), (1, 5), (2, 0), (2, 4), (2, 6)]:
        with pytest.raises(Stopped):
            run_trial(
                trial, str(tmp_path / "cut"), Alone(), Execution(checkpoint_every_steps=4), After(4)
            )
        assert newest_checkpoint(folder, trial.run) == at
    assert without_times(run_trial(trial, str(tmp_path / "cut"), Alone())) == without_times(whole)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [6, 7])
def test_stops_in_an_evaluation(tmp_path: Path, calls: int) -> None:
    """Before it begins, or after a batch of it: the epoch's steps are kept, and only the evaluation is done again."""
    trial = spec()
    whole = run_trial(trial, str(tmp_path / "whole"), Alone())
    cut = LocalFolder(tmp_path / "cut")
    with pytest.raises(Stopped):
        run_trial(trial, cut.url, Alone(), None, After(calls))
    assert newest_checkpoint(cut.sub(trial.folder), trial.run) == (0, 6)
    with pytest.raises(Stopped):
        run_trial(trial, cut.url, Alone(), None, After(0))
    assert without_times(run_trial(trial, cut.url, Alone())) == without_times(whole)


@pytest.mark.slow
def test_a_space_that_fails_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user's space raises is the trial's failure, an error of files too: another try would end the same way."""

    def build(self: Any, network: Any, **options: Any) -> Any:
        raise FileNotFoundError(2, "No such file", "table.csv")

    monkeypatch.setattr("search_spaces.efficientnet.EfficientNetSpace.build", build)
    result = run_trial(spec(), str(tmp_path), Alone())
    assert (result.status, result.reason) == ("failed", "error")
    assert "table.csv" in (result.detail or "")


def test_the_stop_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    folder = LocalFolder(tmp_path)
    stop = StopFile(folder, "lease/000001.stop")
    assert not stop()
    folder.write("lease/000001.stop", b"")
    assert not stop()  # looked at a moment ago
    clock[0] += stopping.POLL
    assert stop()
    folder.remove("lease/000001.stop")
    assert stop()


def test_a_storage_that_fails_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: LocalFolder, name: str) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalFolder, "exists", broken)
    assert not StopFile(LocalFolder(tmp_path), "lease/000001.stop")()


@pytest.mark.slow
def test_a_longer_training_goes_on_from_a_shorter(tmp_path: Path) -> None:
    """A schedule by the epoch: the first epochs are the same, so nothing is trained twice, and the end is as if it had been one."""
    short, long = spec(**STEP, epochs=2), spec(**STEP, epochs=4)
    assert short.id == long.id
    first = run_trial(short, str(tmp_path / "on"), Alone())
    assert checkpoints(LocalFolder(tmp_path / "on" / short.folder)) == ["epoch-0002"]
    on = run_trial(long, str(tmp_path / "on"), Alone())
    assert on.epochs[:2] == first.epochs
    assert read_result(LocalFolder(tmp_path / "on"), short.run) == first
    once = run_trial(long, str(tmp_path / "once"), Alone())
    assert without_times(on) == without_times(once)
    assert same(weights(tmp_path / "on", long), weights(tmp_path / "once", long))


@pytest.mark.slow
def test_a_cosine_schedule_starts_anew(tmp_path: Path) -> None:
    short, long = spec(epochs=1), spec(epochs=2)
    first = run_trial(short, str(tmp_path), Alone())
    assert checkpoints(LocalFolder(tmp_path / short.folder)) == []
    second = run_trial(long, str(tmp_path), Alone())
    assert [e.epoch for e in second.epochs] == [1, 2]
    assert second.epochs[0].ts > first.epochs[0].ts


@pytest.mark.slow
def test_a_failure_from_outside(tmp_path: Path) -> None:
    """A hung trial's result is written by its driver; it keeps what was committed, and goes on once the result is gone."""
    trial, root = spec(), LocalFolder(tmp_path)
    with pytest.raises(Stopped):
        run_trial(trial, root.url, Alone(), None, After(11))
    assert write_failure(trial, root, "hung", "no epoch")
    assert not write_failure(trial, root, "hung", "again")
    found = run_trial(trial, root.url, Alone())
    assert (found.status, found.reason, found.detail, len(found.epochs)) == (
        "failed",
        "hung",
        "no epoch",
        1,
    )
    root.remove(f"results/{trial.run}.json")
    again = run_trial(trial, root.url, Alone())
    assert again.epochs[0] == found.epochs[0]
    assert without_times(again) == without_times(run_trial(trial, str(tmp_path / "whole"), Alone()))


@pytest.mark.slow
def test_ranks_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rank 0 hears of it; all end before the same step, and all go on from there."""
    from tests.trainables.test_distributed import on_ranks, train

    monkeypatch.setattr(classification, "AGREED_EVERY", 2)
    trial = tiny_spec(epochs=2, batch=16, micro_batch=8)
    whole = train(trial, 2, tmp_path / "whole")
    assert on_ranks(trial, 2, tmp_path / "cut", stop_at=5) == [7, 7]
    assert newest_checkpoint(LocalFolder(tmp_path / "cut" / trial.folder), trial.run) == (1, 2)
    assert same(train(trial, 2, tmp_path / "cut"), whole)
