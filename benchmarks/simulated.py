"""Simulated trials: they write and report the same records as a real trial, without training.

The benchmarks of the driver (``benchmarks.scale_run``) and the tests of long searches use them.
"""

import random
import time
from collections.abc import Mapping
from typing import Any

from tinynet_search.store.directory import SearchStore
from trainables.executors import tune_metrics
from trainables.result import FINISHED, EpochRecord, NetworkFigures, TrialResult
from trainables.run_name import RunName
from trainables.spec import TrialSpec
from trainables.trial_folder import result_name

EPOCHS = 3


def simulated_trial(config: Mapping[str, Any]) -> None:
    """Tune trainable that replaces ``inline_trial``.

    Looks for a stored result; without one, reports each epoch and writes the result. Then sends
    the final report.
    """
    from ray import tune

    spec, store = TrialSpec.from_json(config["trial"]), SearchStore(config["root"])
    run = spec.run
    result = store.result(run)
    if result is None:
        result = simulated_result(spec, run, time.time())
        for epoch in result.epochs:
            tune.report(tune_metrics(epoch))
        store.write_json(result_name(run), result.to_json(), once=True)
    top1, c = result.top1, result.network.c
    tune.report({"epochs_done": len(result.epochs), "top1": top1, "c": c, "status": result.status})


def simulated_result(
    spec: TrialSpec, run: RunName, started: float, network: NetworkFigures | None = None
) -> TrialResult:
    """Build a result of the form that ``run_trial`` writes.

    Top-1 rises with c; its noise is seeded with the run name.

    Args:
        network: the figures of the trial's network, computed from the spec if None.
    """
    network, rng = network or NetworkFigures.of(spec.network()), random.Random(run)
    best = 30.0 + 40.0 * network.c**0.3 + rng.gauss(0.0, 1.5)
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
