"""The two executors that run a trial under Ray Tune: ``TRAINABLES[name](config)``.

Called by Ray Tune, which ``tinynet_search.cluster.tune`` starts.

``inline`` trains in the Tune trial's process, which is reused for the next trial and so has almost
no overhead. ``ray_train`` runs a TorchTrainer with N data-parallel workers from the Tune trial.
Both call the same ``run_trial`` on the same search directory. Tune and Train receive metrics only;
the files they write themselves are temporary.

``config`` is a ``TrialTask`` as plain values, the form in which Ray passes it. A trial that is
stopped on request returns without a result.
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
from trainables.spec import Stop, TrialSpec, never_stop
from trainables.stopping import StopFile, Stopped
from trainables.storage.folder import open_folder
from trainables.trial import run_trial
from trainables.trial_folder import read_result

# Seconds after which a collective operation fails if a peer is lost.
COLLECTIVE_TIMEOUT = 120
# Attempts of Ray Train to start a worker group that does not fit, after which the trial fails;
# without a limit it would wait indefinitely.
MAX_START_ATTEMPTS = 5
MAX_WORKER_FAILURES = 8


@dataclass(frozen=True)
class Scaling:
    """Cluster resources of one trial.

    Attributes:
        workers: number of data-parallel processes.
        cpus, gpus: per worker; several one-worker trials may share a GPU (``gpus=.25``).
        loader_workers: image-loading processes per worker.
    """

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    loader_workers: int = 0

    @property
    def resources(self) -> dict[str, float]:
        """Resources that Ray reserves for each worker."""
        return {
            key: amount for key, amount in {"CPU": self.cpus, "GPU": self.gpus}.items() if amount
        }


PlacementStrategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


@dataclass(frozen=True)
class TaskSettings:
    """Settings shared by all trials of one Tune run.

    Attributes:
        root: URL of the search directory.
        stop: name of the file in the search directory that requests trials to stop; empty for none.
        placement: placement strategy of a trial's workers.
        start_timeout: seconds that the workers have to start; 0 is Ray Train's default of a minute.
    """

    root: str
    scaling: Scaling
    execution: Execution = field(default_factory=Execution)
    stop: str = ""
    placement: PlacementStrategy = "PACK"
    start_timeout: float = 0.0


@dataclass(frozen=True)
class TrialTask:
    """One trial in the form in which Ray passes it to a process."""

    spec: TrialSpec
    run: RunName
    settings: TaskSettings

    def to_config(self) -> dict[str, Any]:
        """The Tune configuration, as plain values."""
        return {**asdict(self.settings), "trial": self.spec.to_json(), "run": str(self.run)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TrialTask":
        converted = {
            "scaling": Scaling(**config["scaling"]),
            "execution": Execution(**config["execution"]),
        }
        shared = {key: value for key, value in config.items() if key not in ("trial", "run")}
        settings = TaskSettings(**{**shared, **converted})
        return cls(TrialSpec.from_json(config["trial"]), RunName.parse(config["run"]), settings)

    @property
    def execution(self) -> Execution:
        """The execution settings, with the number of loader workers from the scaling settings."""
        settings = self.settings
        return replace(settings.execution, loader_workers=settings.scaling.loader_workers)

    @property
    def should_stop(self) -> Stop:
        name = self.settings.stop
        return StopFile(open_folder(self.settings.root), name) if name else never_stop

    def result(self) -> TrialResult | None:
        """The trial's result, or None if it has none yet."""
        return read_result(open_folder(self.settings.root), self.run)


def inline_trial(config: Mapping[str, Any]) -> None:
    """Tune trainable: runs the complete trial in this process."""
    # Seconds that the next trial waits for this thread to end. If the thread is still running then,
    # Tune loses the next trial, and the search waits for it indefinitely.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    task = TrialTask.from_config(config)
    _apply_resources(task.settings.scaling)
    with contextlib.suppress(Stopped):
        _report_result(
            run_trial(
                task.spec, task.settings.root, _TuneReporter(), task.execution, task.should_stop
            )
        )


def ray_train_trial(config: Mapping[str, Any]) -> None:
    """Tune trainable: a Ray Train run with N workers.

    If a worker is lost, the worker group restarts from the last checkpoint.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    task = TrialTask.from_config(config)
    settings, scaling = task.settings, task.settings.scaling
    if settings.start_timeout:
        # For clusters that scale up; Ray Train's default of a minute is for existing nodes.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(settings.start_timeout)
    result = task.result()
    if result is not None:
        _report_result(result)
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
                    max_failures=MAX_WORKER_FAILURES, controller_failure_limit=MAX_START_ATTEMPTS
                ),
            ),
        ).fit()
    result = task.result()
    if result is None and task.should_stop():
        return
    if result is None:
        raise RuntimeError(f"trial {task.run} ended without a result")
    _report_result(result)


TRAINABLES: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "inline": inline_trial,
    "ray_train": ray_train_trial,
}


def tune_resources(executor: str, scaling: Scaling) -> dict[str, float]:
    """Resources of the Tune trial itself.

    A ray_train trial must not reserve any of the resources that its workers need.
    """
    if executor == "ray_train":
        return {"node:__internal_head__": 0.001}
    return scaling.resources


class _TuneReporter:
    rank, world_size = 0, 1

    def report(self, record: EpochRecord) -> None:
        from ray import tune

        tune.report(tune_metrics(record))


class _TrainReporter:
    def __init__(self) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()

    def report(self, record: EpochRecord) -> None:
        import ray.train

        ray.train.report(tune_metrics(record))


def _train_worker(config: Mapping[str, Any]) -> None:
    """One rank of a Ray Train run.

    A trial that already has a result (a restart after its own failure) returns immediately on every
    rank.
    """
    task = TrialTask.from_config(config)
    _apply_resources(task.settings.scaling)
    if task.settings.scaling.gpus:
        import torch
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    with contextlib.suppress(Stopped):
        run_trial(task.spec, task.settings.root, _TrainReporter(), task.execution, task.should_stop)


def tune_metrics(record: EpochRecord) -> dict[str, int | float]:
    """The metrics of an epoch that are reported to Tune and Train."""
    return {"epochs_done": record.epoch, **record.to_json()}


def _report_result(result: TrialResult) -> None:
    """Report the final result of a trial to Tune."""
    from ray import tune

    top1 = float("nan") if result.top1 is None else result.top1
    last = {"epochs_done": len(result.epochs), "top1": top1, "c": result.network.c}
    reason = {"reason": result.reason} if result.reason else {}
    tune.report({**last, "status": result.status, **reason})


def _apply_resources(scaling: Scaling) -> None:
    """Limit torch to the trial's resources: one thread per CPU, and no GPU if none was requested.

    Raises:
        RuntimeError: the trial has a GPU that torch cannot use.
    """
    if not scaling.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if scaling.gpus and not torch.cuda.is_available():
        raise RuntimeError(
            "Ray assigned a GPU to this trial, but torch finds none: "
            "check the node's driver and torch build"
        )
    torch.set_num_threads(max(1, int(scaling.cpus)))
