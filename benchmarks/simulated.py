"""Trials that take no time: what a training leaves and reports, without the training."""

import random
import time
from collections.abc import Mapping
from typing import Any

from tinynet_search.store.directory import SearchStore
from trainables.executors import reported
from trainables.result import FINISHED, EpochRecord, NetworkFigures, TrialResult
from trainables.run_name import RunName
from trainables.spec import TrialSpec
from trainables.trial_folder import result_name

EPOCHS = 3


def simulated_trial(config: Mapping[str, Any]) -> None:
    """Tune trainable in the place of ``inline_trial``: a look for a result, a report an epoch, the result, the last report."""
    from ray import tune

    spec, store = TrialSpec.from_json(config["trial"]), SearchStore(config["root"])
    run = spec.run
    result = store.result(run)
    if result is None:
        result = simulated_result(spec, run, time.time())
        for epoch in result.epochs:
            tune.report(reported(epoch))
        store.write_json(result_name(run), result.to_json(), once=True)
    top1, c = result.top1, result.network.c
    tune.report({"epochs_done": len(result.epochs), "top1": top1, "c": c, "status": result.status})


def simulated_result(
    spec: TrialSpec, run: RunName, started: float, network: NetworkFigures | None = None
) -> TrialResult:
    """A result as ``run_trial`` writes it; top-1 rises with c, and differs from trial to trial by chance that the run's name seeds.

    Args:
        network: figures of the trial's network where they are known.
    """
    network, chance = network or NetworkFigures.of(spec.network()), random.Random(run)
    best = 30.0 + 40.0 * network.c**0.3 + chance.gauss(0.0, 1.5)
    epochs = [_epoch(epoch, best, started) for epoch in range(1, spec.recipe.epochs + 1)]
    return TrialResult(
        run=run,
        kind=spec.kind,
        space=spec.space,
        rdw=spec.rdw,
        network=network,
        seed=spec.seed,
        workers=1,
        execution=None,
        host="simulated",
        started=round(started, 3),
        ended=round(started + len(epochs), 3),
        status=FINISHED,
        reason=None,
        detail=None,
        metrics=epochs[-1],
        epochs=epochs,
    )


def _epoch(epoch: int, best: float, started: float) -> EpochRecord:
    top1 = best - 3.0 / epoch
    return EpochRecord(
        epoch=epoch,
        ts=int(1000 * (started + epoch)),
        lr=0.1 / epoch,
        train_loss=3.0 / epoch,
        seconds=0.9,
        images_per_s=3000.0,
        **{
            f"{name}{which}": value
            for which in ("", "_raw", "_ema")
            for name, value in (("top1", top1), ("top5", 90.0), ("val_loss", 2.0))
        },
    )
