"""A trial's result does not depend on how its micro-batches are divided over ranks."""

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
from trainables import trainer
from trainables.execution import Execution
from trainables.result import EpochRecord, TrialResult
from trainables.spec import LocalReporter, TrialSpec
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
    rendezvous: str,
    spec: TrialSpec,
    root: str,
    saves: int | None,
    stop_at: int | None,
    stop_check_steps: int,
) -> None:
    torch.set_num_threads(1)
    trainer.STOP_CHECK_STEPS = stop_check_steps
    if saves is not None and rank == 0:
        _exit_after(saves)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    checks = iter(range(1000))
    try:
        run_trial(
            spec,
            root,
            Rank(rank, world),
            Execution(checkpoint_every_steps=1),
            lambda: next(checks) == stop_at,
        )
    except Stopped:
        os._exit(7)
    dist.destroy_process_group()
    os._exit(0)


def _exit_after(saves: int) -> None:
    """Make this process exit, as if it were killed, after it has written ``saves`` checkpoints."""
    remaining, real = [saves], trainer.save_checkpoint

    def save(*args: Any) -> None:
        real(*args)
        remaining[0] -= 1
        if not remaining[0]:
            os._exit(9)

    trainer.save_checkpoint = save


def on_ranks(
    spec: TrialSpec, world: int, root: Path, saves: int | None = None, stop_at: int | None = None
) -> list[int | None]:
    """Train a trial in one process per rank.

    Args:
        saves: rank 0 exits after this many checkpoints.
        stop_at: index of the stop check that requests the ranks to stop.

    Returns:
        Exit codes of the ranks: 7 after a stop request; 9 for rank 0 after ``saves`` checkpoints.
    """
    # Forked from a server that has not trained: autograd cannot be used in a fork of a process that
    # has used it on several threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    root.mkdir(exist_ok=True)
    rendezvous = str(root / f"rendezvous-{saves}-{stop_at}")
    ranks = [
        context.Process(
            target=_worker,
            # A test may have changed the constant, which a fork of the server would not have.
            args=(r, world, rendezvous, spec, str(root), saves, stop_at, trainer.STOP_CHECK_STEPS),
        )
        for r in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    return [process.exitcode for process in ranks]


def train(spec: TrialSpec, world: int, root: Path) -> dict[str, torch.Tensor]:
    if world == 1:
        run_trial(spec, str(root), LocalReporter())
    else:
        assert on_ranks(spec, world, root) == [0] * world
    return load_file(root / spec.folder / "weights.safetensors")


@pytest.mark.parametrize("ranks", ["ema", "raw"])
def test_one_two_and_four_ranks_agree(tmp_path: Path, ranks: str) -> None:
    """Four micro-batches per step on 1, 2 and 4 ranks: equal top-1, other values within 2e-5."""
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
def test_four_killed_ranks_resume_bit_for_bit(tmp_path: Path, saves: int) -> None:
    """Rank 0 exits after the second of three steps or at the end of an epoch."""
    spec = tiny_spec(epochs=2, batch=32, micro_batch=8, dropout=0.1)
    reference = train(spec, 4, tmp_path / "reference")
    assert on_ranks(spec, 4, tmp_path / "resumed", saves)[0] == 9
    assert read_result(LocalFolder(tmp_path / "resumed"), spec.run) is None
    again = train(spec, 4, tmp_path / "resumed")
    assert all(torch.equal(again[key], value) for key, value in reference.items())


def test_the_number_of_workers_must_divide_the_micro_batches(tmp_path: Path) -> None:
    result = run_trial(tiny_spec(batch=32, micro_batch=32), str(tmp_path), Rank(0, 2))
    assert result.status == "failed"
    assert "use a divisor of 1" in (result.detail or "")
