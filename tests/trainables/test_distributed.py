"""Placement is no part of a result: one step's micro-batches on one, two or four ranks."""

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.trainables.helpers import tiny_spec
from trainables import trainer as classification
from trainables.execution import Execution
from trainables.result import EpochRecord, TrialResult
from trainables.spec import Alone, TrialSpec
from trainables.stopping import Stopped
from trainables.storage.folder import LocalFolder
from trainables.trial import run_trial
from trainables.trial_folder import read_result


@dataclass(frozen=True)
class Rank:
    rank: int
    world_size: int

    def report(self, record: EpochRecord) -> None:
        return None


def _worker(
    rank: int,
    world: int,
    meeting: str,
    spec: TrialSpec,
    root: str,
    saves: int | None,
    stop_at: int | None,
) -> None:
    torch.set_num_threads(1)
    if saves is not None and rank == 0:
        _end_after(saves)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    asked = iter(range(1000))
    try:
        run_trial(
            spec,
            root,
            Rank(rank, world),
            Execution(checkpoint_every_steps=1),
            lambda: next(asked) == stop_at,
        )
    except Stopped:
        os._exit(7)
    dist.destroy_process_group()
    os._exit(0)


def _end_after(saves: int) -> None:
    """The process is gone, as if it was killed, once so many checkpoints are written."""
    left, real = [saves], classification.save_checkpoint

    def save(*args: Any) -> None:
        real(*args)
        left[0] -= 1
        if not left[0]:
            os._exit(9)

    classification.save_checkpoint = save


def on_ranks(
    spec: TrialSpec, world: int, root: Path, saves: int | None = None, stop_at: int | None = None
) -> list[int | None]:
    """Exit codes of the ranks of one training; 7 is one that was asked to end, at the n-th time it looked."""
    context = multiprocessing.get_context("fork")
    root.mkdir(exist_ok=True)
    meeting = str(root / f"meeting-{saves}-{stop_at}")
    ranks = [
        context.Process(target=_worker, args=(r, world, meeting, spec, str(root), saves, stop_at))
        for r in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    return [process.exitcode for process in ranks]


def train(spec: TrialSpec, world: int, root: Path) -> dict[str, torch.Tensor]:
    if world == 1:
        run_trial(spec, str(root), Alone())
    else:
        assert on_ranks(spec, world, root) == [0] * world
    return load_file(root / spec.folder / "weights.safetensors")


@pytest.mark.parametrize("ranks", ["ema", "raw"])
def test_one_two_and_four_ranks_agree(tmp_path: Path, ranks: str) -> None:
    """Four micro-batches a step as 1 x 4, 2 x 2 and 4 x 1: weights and running statistics to 2e-5, top-1 the same."""
    spec = tiny_spec(epochs=2, batch=32, micro_batch=8, ranks=ranks, dropout=0.1)
    weights = {world: train(spec, world, tmp_path / str(world)) for world in (1, 2, 4)}
    results = {world: _finished(spec, tmp_path / str(world)) for world in (1, 2, 4)}
    for world in (2, 4):
        for key, value in weights[1].items():
            torch.testing.assert_close(
                weights[world][key], value, rtol=2e-4, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}"
            )
        assert results[world].workers == world
        assert results[world].epochs[-1].top1 == pytest.approx(
            results[1].epochs[-1].top1, abs=100 / 48
        )


def _finished(spec: TrialSpec, root: Path) -> TrialResult:
    result = read_result(LocalFolder(root), spec.run)
    assert result is not None and result.finished
    return result


@pytest.mark.parametrize("saves", [2, 3])
def test_four_ranks_that_stop_end_with_the_same_bits(tmp_path: Path, saves: int) -> None:
    """Rank 0 is gone after the second of three steps, or at an epoch's end; the four that take it up end as if nothing was."""
    spec = tiny_spec(epochs=2, batch=32, micro_batch=8, dropout=0.1)
    whole = train(spec, 4, tmp_path / "whole")
    assert on_ranks(spec, 4, tmp_path / "cut", saves)[0] == 9
    assert read_result(LocalFolder(tmp_path / "cut"), spec.run) is None
    again = train(spec, 4, tmp_path / "cut")
    assert all(torch.equal(again[key], value) for key, value in whole.items())


def test_workers_must_share_the_micro_batches(tmp_path: Path) -> None:
    result = run_trial(tiny_spec(batch=32, micro_batch=32), str(tmp_path), Rank(0, 2))
    assert result.status == "failed"
    assert "use a divisor of 1" in (result.detail or "")
