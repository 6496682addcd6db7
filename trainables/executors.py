"""The two ways a trial runs under Ray Tune, behind one seam: ``TRAINABLES[name](config)``.

``inline`` trains in the Tune trial's own process, reused from trial to trial: next to no overhead.
``ray_train`` drives a TorchTrainer with N data-parallel workers from the Tune trial.
Both call the same ``run_trial`` on the same search directory. Tune and Train see metrics only; what they keep
themselves is scratch.

``config`` holds ``trial`` (a TrialSpec as plain values), ``root`` (the search directory), ``stop`` (the file below it that
asks trials to end), ``scaling``, ``execution``, and ``start_timeout``, the seconds that a worker group gets to start. A
trial that was asked to end comes back without a result.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainables.spec import Stop, TrialSpec, never
from trainables.stopping import StopFile, Stopped
from trainables.storage.folder import open_folder
from trainables.trial import run_trial
from trainables.trial_folder import read_result

if TYPE_CHECKING:
    from trainables.execution import Execution

# Seconds after which a collective whose peer is gone gives up.
COLLECTIVE_TIMEOUT = 120
# Tries of Ray Train to start a worker group that does not fit, before the trial fails instead of waiting for ever.
START_ATTEMPTS = 5
WORKER_FAILURES = 8


@dataclass(frozen=True)
class Scaling:
    """What one trial takes of the cluster.

    Attributes:
        workers: data-parallel processes.
        cpus, gpus: of each worker; several one-worker trials may share a GPU (``gpus=.25``).
        loader_workers: processes that read images, for each worker.
    """

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    loader_workers: int = 0

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for each worker."""
        return {
            key: amount for key, amount in {"CPU": self.cpus, "GPU": self.gpus}.items() if amount
        }


def inline_trial(config: Mapping[str, Any]) -> None:
    """Tune trainable: the whole trial in this process."""
    # Of the next trial, for this thread to end; where it has not, Tune forgets that trial, and the search waits for it for ever.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    _take_place(config["scaling"])
    with contextlib.suppress(Stopped):
        _finished(
            run_trial(
                TrialSpec.from_json(config["trial"]),
                config["root"],
                _TuneReporter(),
                _execution(config),
                _stop(config),
            )
        )


def ray_train_trial(config: Mapping[str, Any]) -> None:
    """Tune trainable: a Ray Train run of N workers; a lost worker restarts the group from the last checkpoint."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    if config.get(
        "start_timeout"
    ):  # on a cluster that grows; Ray Train's own minute is for nodes that are there
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(config["start_timeout"])
    scaling = Scaling(**config["scaling"])
    spec = TrialSpec.from_json(config["trial"])
    there = read_result(open_folder(config["root"]), spec.run)
    if there is not None:
        _finished(there)
        return
    with tempfile.TemporaryDirectory(prefix="tinynet-train-") as scratch:
        TorchTrainer(
            _train_worker,
            train_loop_config=dict(config),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scaling.workers,
                use_gpu=scaling.gpus > 0,
                resources_per_worker=scaling.resources,
                placement_strategy=config.get("placement", "PACK"),
            ),
            torch_config=TorchConfig(
                backend="nccl" if scaling.gpus else "gloo", timeout_s=COLLECTIVE_TIMEOUT
            ),
            run_config=ray.train.RunConfig(
                name=f"{spec.run}-{os.getpid()}",
                storage_path=scratch,
                callbacks=[TuneReportCallback()],
                failure_config=ray.train.FailureConfig(
                    max_failures=WORKER_FAILURES, controller_failure_limit=START_ATTEMPTS
                ),
            ),
        ).fit()
    result = read_result(open_folder(config["root"]), spec.run)
    if result is None and _stop(config)():
        return
    if result is None:
        raise RuntimeError(f"trial {spec.run} ended without a result")
    _finished(result)


TRAINABLES: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "inline": inline_trial,
    "ray_train": ray_train_trial,
}


def tune_resources(executor: str, scaling: Scaling) -> dict[str, float]:
    """What the Tune trial itself holds; a ray_train trial must hold none of what its workers need."""
    if executor == "ray_train":
        return {"node:__internal_head__": 0.001}
    return scaling.resources


class _TuneReporter:
    rank, world_size = 0, 1

    def report(self, metrics: Mapping[str, Any]) -> None:
        from ray import tune

        tune.report(dict(metrics))


class _TrainReporter:
    def __init__(self) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()

    def report(self, metrics: Mapping[str, Any]) -> None:
        import ray.train

        ray.train.report(dict(metrics))


def _train_worker(config: Mapping[str, Any]) -> None:
    """One rank. A trial that has its result (a restart after its own failure) ends at once, on every rank."""
    _take_place(config["scaling"])
    if config["scaling"]["gpus"]:
        import torch
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    with contextlib.suppress(Stopped):
        run_trial(
            TrialSpec.from_json(config["trial"]),
            config["root"],
            _TrainReporter(),
            _execution(config),
            _stop(config),
        )


def _finished(result: Mapping[str, Any]) -> None:
    """The last thing Tune hears of a trial."""
    from ray import tune

    told = {key: result[key] for key in ("status", "reason") if result[key]}
    top1 = result["metrics"].get("top1", float("nan"))
    tune.report(
        {"epochs_done": len(result["epochs"]), "top1": top1, "c": result["network"]["c"], **told}
    )


def _take_place(scaling: Mapping[str, Any]) -> None:
    """Keep to what the trial was given: its CPUs as torch threads, no GPU where it asked for none."""
    if not scaling["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if scaling["gpus"] and not torch.cuda.is_available():
        raise RuntimeError(
            "this trial was given a GPU and torch finds none: the node's driver or torch build is at fault"
        )
    torch.set_num_threads(max(1, int(scaling["cpus"])))


def _stop(config: Mapping[str, Any]) -> Stop:
    return StopFile(open_folder(config["root"]), config["stop"]) if config.get("stop") else never


def _execution(config: Mapping[str, Any]) -> "Execution":
    from trainables.execution import Execution

    return Execution(
        **{**config.get("execution", {}), "loader_workers": config["scaling"]["loader_workers"]}
    )
