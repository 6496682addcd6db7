"""Estimates the time that the rest of a search takes, from a short training or a GPU's name.

Called by the preflight checks of ``tinynet check`` and ``tinynet submit``.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from search_spaces import RequestError
from search_spaces.errors import unknown
from tinynet_search.cluster.placement import ClusterRequest, Placement, makespan
from tinynet_search.config import PlanInputs
from tinynet_search.errors import last_line
from tinynet_search.plan.candidates import TRAIN_PASSES, candidate_of
from tinynet_search.plan.plan import make_plan
from tinynet_search.plan.preview import PreviewRow
from tinynet_search.text import in_seconds, millions
from trainables.execution import Execution
from trainables.spec import TrialSpec

# Peak multiply-adds per second of GPUs in bf16 or fp16: half the dense tensor FLOPS that the
# manufacturers publish. None of these rates was measured. The source of an estimate that uses one
# begins with "assumed" and is printed next to the estimate.
PEAK_RATES = {
    "t4": 32.5e12,
    "v100": 62.5e12,
    "a10g": 35e12,
    "l4": 60.5e12,
    "l40s": 181e12,
    "a100": 156e12,
    "h100": 494e12,
    "h200": 494e12,
}
# The fraction of the peak that training reaches, by family; assumed, not measured. Networks with
# depthwise convolutions are limited by memory bandwidth.
UTILIZATION = {"resnet": 0.15}
DEPTHWISE_UTILIZATION = 0.02
# Seconds that a calibration trains, and seconds after which it has failed.
CALIBRATION_SECONDS, CALIBRATION_TIMEOUT = 8.0, 120.0


@dataclass(frozen=True)
class Estimate:
    """The time that the rest of a search takes.

    Attributes:
        rate: training multiply-adds per second of one worker.
        source: where the rate comes from.
        worker_hours: the sum over all trials, in ``unit``: GPU-hours if workers have a GPU.
        wall_seconds: seconds until the last trial ends.
    """

    rate: float
    source: str
    worker_hours: float
    wall_seconds: float
    unit: str


def estimate_time(
    placement: Placement, macs: Sequence[float], rate: float, source: str
) -> Estimate:
    """Estimate the time of trials under a placement.

    Args:
        placement: the placement of the trials.
        macs: training multiply-adds of each trial.
        rate: training multiply-adds per second of one worker.
        source: where the rate comes from.
    """
    scaling = placement.request.scaling
    wall = makespan(placement.request, macs, scaling.workers, placement.at_once, rate)
    alone = sum(makespan(placement.request, [amount], scaling.workers, 1, rate) for amount in macs)
    unit = "GPU-hours" if scaling.gpus else "hours of a CPU worker"
    return Estimate(
        rate, source, alone * scaling.workers * (scaling.gpus or 1.0) / 3600, wall, unit
    )


def remaining_macs(inputs: PlanInputs, rows: Sequence[PreviewRow]) -> list[float]:
    """Training multiply-adds of each remaining training of a search.

    The trials are exact. The finals and the longer training of the frontier's models are
    approximate.
    """
    trials: list[float] = [row.training_macs for row in rows if not row.done]
    if not rows:
        return trials
    search, epochs = inputs.search, inputs.recipe.epochs
    baseline = statistics.mean(row.training_macs / row.c for row in rows)
    networks = 1 + len(search.compare)
    finals = [budget * baseline for budget in search.finals for _ in range(networks)]
    total_epochs = search.frontier_epochs
    if total_epochs is None:
        return [*trials, *finals]
    models = min(len(rows), max(search.minimum, round(search.fraction * len(rows))))
    more_epochs = total_epochs - (0 if search.from_scratch else epochs)
    more = statistics.mean(row.training_macs for row in rows) * more_epochs / epochs
    return [*trials, *finals, *[more] * models]


def assumed_rate(gpu: str, space: str, gpus_per_worker: float = 1.0) -> tuple[float, str]:
    """The assumed rate of a worker on a GPU, and its source.

    Args:
        gpu: the name of the GPU, such as ``a100``.
        space: the name of the search space.
        gpus_per_worker: the fraction of the GPU that a worker has; values above 1 count as 1.

    Returns:
        Training multiply-adds per second, and a text that begins with "assumed".

    Raises:
        RequestError: the GPU is unknown.
    """
    peak = PEAK_RATES.get(gpu.lower())
    if peak is None:
        raise unknown("GPU", gpu, tuple(PEAK_RATES))
    utilization = DEPTHWISE_UTILIZATION
    for family, share in UTILIZATION.items():
        if space.startswith(family):
            utilization = share
            break
    rate = peak * utilization * min(1.0, gpus_per_worker)
    return rate, f"assumed: {utilization:.0%} of the peak of one {gpu.upper()}"


def median_trial(inputs: PlanInputs, rows: Sequence[PreviewRow]) -> TrialSpec:
    """The trial of median training cost among a preview's candidates."""
    plan, median = make_plan(inputs), statistics.median_low(row.training_macs for row in rows)
    row = next(row for row in rows if row.training_macs == median)
    network = inputs.space.network((row.r, row.d, row.w), plan.space.num_classes)
    return candidate_of(plan, network).spec


def measure_rate(request: ClusterRequest, spec: TrialSpec) -> tuple[float, str]:
    """Measure the rate of a worker by a short training on the connected cluster.

    Returns:
        Training multiply-adds per second, and a text that begins with "measured".

    Raises:
        TimeoutError: no worker became free, or the training was too slow.
        RequestError: the training failed.
    """
    import ray
    from ray.exceptions import GetTimeoutError

    scaling = request.scaling
    execution = replace(request.execution, loader_workers=scaling.loader_workers)
    train = ray.remote(max_retries=0)(measure_speed)
    with_resources = train.options(num_cpus=scaling.cpus, num_gpus=scaling.gpus)
    task = with_resources.remote(spec, execution, scaling.cpus)
    try:
        images, device = ray.get(task, timeout=CALIBRATION_TIMEOUT)
    except GetTimeoutError:
        ray.cancel(task, force=True)
        raise TimeoutError(
            f"the calibration did not finish within {in_seconds(CALIBRATION_TIMEOUT)}: "
            "no worker was free, or the worker is slow; pass --gpu NAME to estimate without it"
        ) from None
    except Exception as error:
        raise RequestError(f"a trial cannot train on the cluster: {last_line(error)}") from error
    macs = spec.network().macs
    return (
        TRAIN_PASSES * macs * images,
        f"measured: {images:.0f} images/s of {millions(macs)} FLOPs on one {device}",
    )


def measure_speed(spec: TrialSpec, execution: Execution, cpus: float) -> tuple[float, str]:
    """Train in a worker with the threads of a trial; return images per second and the device."""
    import torch

    from trainables.calibration import images_per_s

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU worker"
    torch.set_num_threads(max(1, int(cpus)))
    return images_per_s(spec, CALIBRATION_SECONDS, execution), device
