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
from trainables.folder import LocalFolder
from trainables.trial import Alone, TrialSpec, read_result, run_trial


@dataclass(frozen=True)
class Rank:
    rank: int
    world_size: int

    def report(self, metrics: Any) -> None:
        return None


def _worker(rank: int, world: int, meeting: str, spec: TrialSpec, root: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    run_trial(spec, root, Rank(rank, world))
    dist.destroy_process_group()
    os._exit(0)


def _train(spec: TrialSpec, world: int, root: Path) -> dict[str, torch.Tensor]:
    if world == 1:
        run_trial(spec, str(root), Alone())
    else:
        context = multiprocessing.get_context("fork")
        root.mkdir()
        ranks = [context.Process(target=_worker, args=(r, world, str(root / "meeting"), spec, str(root))) for r in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
            assert process.exitcode == 0
    return load_file(root / spec.folder / "weights.safetensors")


@pytest.mark.parametrize("ranks", ["ema", "raw"])
def test_one_two_and_four_ranks_agree(tmp_path: Path, ranks: str) -> None:
    """Four micro-batches a step as 1 x 4, 2 x 2 and 4 x 1: weights and running statistics to 2e-5, top-1 the same."""
    spec = tiny_spec(epochs=2, batch=32, micro_batch=8, ranks=ranks, dropout=0.1)
    weights = {world: _train(spec, world, tmp_path / str(world)) for world in (1, 2, 4)}
    results = {world: read_result(LocalFolder(tmp_path / str(world)), spec.run) or {} for world in (1, 2, 4)}
    for world in (2, 4):
        for key, value in weights[1].items():
            torch.testing.assert_close(weights[world][key], value, rtol=2e-4, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")
        assert results[world]["workers"] == world
        assert results[world]["metrics"]["top1"] == pytest.approx(results[1]["metrics"]["top1"], abs=100 / 48)


def test_workers_must_share_the_micro_batches(tmp_path: Path) -> None:
    result = run_trial(tiny_spec(batch=32, micro_batch=32), str(tmp_path), Rank(0, 2))
    assert result["status"] == "failed"
    assert "use a divisor of 1" in result["detail"]
