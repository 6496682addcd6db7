"""The two ways a trial runs under Ray Tune, behind one seam: ``TRAINABLES[name](config)``.

``inline`` trains in the Tune trial's own process, reused from trial to trial: next to no overhead.
``ray_train`` drives a TorchTrainer with N data-parallel workers from the Tune trial.
Both call the same ``run_trial`` on the same search directory. Tune and Train see metrics only; what they keep
themselves is scratch.

``config`` is a ``TrialTask`` as plain values, which is how Ray hands it on. A trial that was asked to end comes back
without a result.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from trainables.execution import Execution
from trainables.result import EpochRecord, TrialResult
from trainables.run_name import RunName
from trainables.spec import Stop, TrialSpec, never
from trainables.stopping import StopFile, Stopped
from trainables.storage.folder import open_folder
from trainables.trial import run_trial
from trainables.trial_folder import read_result

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


PlacementStrategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


@dataclass(frozen=True)
class TaskSettings:
    """What all trials of one Tune run share.

    Attributes:
        root: the search directory; stop: the file below it that asks trials to end, empty where none does.
        placement: of a trial's workers; start_timeout: seconds that they get to start, 0 is Ray Train's own minute.
    """

    root: str
    scaling: Scaling
    execution: Execution = field(default_factory=Execution)
    stop: str = ""
    placement: PlacementStrategy = "PACK"
    start_timeout: float = 0.0


@dataclass(frozen=True)
class TrialTask:
    """One trial as Ray hands it to a process."""

    spec: TrialSpec
    run: RunName
    settings: TaskSettings

    def to_config(self) -> dict[str, Any]:
        """The Tune configuration: plain values."""
        return {**asdict(self.settings), "trial": self.spec.to_json(), "run": str(self.run)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TrialTask":
        made = {
            "scaling": Scaling(**config["scaling"]),
            "execution": Execution(**config["execution"]),
        }
        shared = {key: value for key, value in config.items() if key not in ("trial", "run")}
        settings = TaskSettings(**{**shared, **made})
        return cls(TrialSpec.from_json(config["trial"]), RunName.parse(config["run"]), settings)

    @property
    def execution(self) -> Execution:
        """With the readers of images that the scaling names."""
        settings = self.settings
        return replace(settings.execution, loader_workers=settings.scaling.loader_workers)

    @property
    def should_stop(self) -> Stop:
        name = self.settings.stop
        return StopFile(open_folder(self.settings.root), name) if name else never

    def result(self) -> TrialResult | None:
        """The trial's result, None before it has one."""
        return read_result(open_folder(self.settings.root), self.run)


def inline_trial(config: Mapping[str, Any]) -> None:
    """Tune trainable: the whole trial in this process."""
    # Of the next trial, for this thread to end; where it has not, Tune forgets that trial, and the search waits for it for ever.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    task = TrialTask.from_config(config)
    _take_place(task.settings.scaling)
    with contextlib.suppress(Stopped):
        _finished(
            run_trial(
                task.spec, task.settings.root, _TuneReporter(), task.execution, task.should_stop
            )
        )


def ray_train_trial(config: Mapping[str, Any]) -> None:
    """Tune trainable: a Ray Train run of N workers; a lost worker restarts the group from the last checkpoint."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    task = TrialTask.from_config(config)
    settings, scaling = task.settings, task.settings.scaling
    if settings.start_timeout:
        # On a cluster that grows; Ray Train's own minute is for nodes that exist already.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(settings.start_timeout)
    result = task.result()
    if result is not None:
        _finished(result)
        return
    with tempfile.TemporaryDirectory(prefix="tinynet-train-") as scratch:
        TorchTrainer(
            _train_worker,
            train_loop_config=dict(config),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scaling.workers,
                use_gpu=scaling.gpus > 0,
                resources_per_worker=scaling.resources,
                placement_strategy=settings.placement,
            ),
            torch_config=TorchConfig(
                backend="nccl" if scaling.gpus else "gloo", timeout_s=COLLECTIVE_TIMEOUT
            ),
            run_config=ray.train.RunConfig(
                name=f"{task.run}-{os.getpid()}",
                storage_path=scratch,
                callbacks=[TuneReportCallback()],
                failure_config=ray.train.FailureConfig(
                    max_failures=WORKER_FAILURES, controller_failure_limit=START_ATTEMPTS
                ),
            ),
        ).fit()
    result = task.result()
    if result is None and task.should_stop():
        return
    if result is None:
        raise RuntimeError(f"trial {task.run} ended without a result")
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

    def report(self, record: EpochRecord) -> None:
        from ray import tune

        tune.report(reported(record))


class _TrainReporter:
    def __init__(self) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()

    def report(self, record: EpochRecord) -> None:
        import ray.train

        ray.train.report(reported(record))


def _train_worker(config: Mapping[str, Any]) -> None:
    """One rank. A trial that has its result (a restart after its own failure) ends at once, on every rank."""
    task = TrialTask.from_config(config)
    _take_place(task.settings.scaling)
    if task.settings.scaling.gpus:
        import torch
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    with contextlib.suppress(Stopped):
        run_trial(task.spec, task.settings.root, _TrainReporter(), task.execution, task.should_stop)


def reported(record: EpochRecord) -> dict[str, int | float]:
    """An epoch as Tune and Train get it."""
    return {"epochs_done": record.epoch, **record.to_json()}


def _finished(result: TrialResult) -> None:
    """The last report of a trial to Tune."""
    from ray import tune

    top1 = float("nan") if result.top1 is None else result.top1
    last = {"epochs_done": len(result.epochs), "top1": top1, "c": result.network.c}
    reason = {"reason": result.reason} if result.reason else {}
    tune.report({**last, "status": result.status, **reason})


def _take_place(scaling: Scaling) -> None:
    """Keep to what the trial was given: its CPUs as torch threads, no GPU where it asked for none."""
    if not scaling.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if scaling.gpus and not torch.cuda.is_available():
        raise RuntimeError(
            "this trial was given a GPU and torch finds none: the node's driver or torch build is at fault"
        )
    torch.set_num_threads(max(1, int(scaling.cpus)))
