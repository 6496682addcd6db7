"""What a search will take of a cluster, before it is begun: from a short training there, or from a GPU's name."""

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

# Multiply-adds a second that these GPUs do at most in bf16 or fp16 (half their dense tensor FLOPS), by the makers' figures.
# Nothing here was measured: the source of an estimate that rests on it begins with "assumed", and is printed beside it.
GPUS = {
    "t4": 32.5e12,
    "v100": 62.5e12,
    "a10g": 35e12,
    "l4": 60.5e12,
    "l40s": 181e12,
    "a100": 156e12,
    "h100": 494e12,
    "h200": 494e12,
}
# The share of it that training reaches, assumed and not measured here: depthwise networks wait for memory.
SHARES = {"resnet": 0.15}
DEPTHWISE = 0.02
# Of a calibration, in seconds of training and of patience with it.
SECONDS, PATIENCE = 8.0, 120.0


@dataclass(frozen=True)
class Estimate:
    """What is left of a search, as time.

    Attributes:
        rate: training multiply-adds a second of one worker; source: where that comes from.
        worker_hours: of all trials together, in ``unit``: GPU-hours where workers have one; wall_seconds: until the last one has ended.
    """

    rate: float
    source: str
    worker_hours: float
    wall_seconds: float
    unit: str


def estimated(place: Placement, macs: Sequence[float], rate: float, source: str) -> Estimate:
    """Time of trials of so many training multiply-adds each, as ``place`` lays them out."""
    scaling = place.request.scaling
    wall = makespan(place.request, macs, scaling.workers, place.at_once, rate)
    alone = sum(makespan(place.request, [amount], scaling.workers, 1, rate) for amount in macs)
    unit = "GPU-hours" if scaling.gpus else "hours of a CPU worker"
    return Estimate(
        rate, source, alone * scaling.workers * (scaling.gpus or 1.0) / 3600, wall, unit
    )


def all_macs(inputs: PlanInputs, rows: Sequence[PreviewRow]) -> list[float]:
    """Training multiply-adds of what is left of a search: its trials, and about those of the finals and of a longer frontier."""
    left: list[float] = [row.training_macs for row in rows if not row.done]
    if not rows:
        return left
    search, epochs = inputs.search, inputs.recipe.epochs
    whole = statistics.mean(row.training_macs / row.c for row in rows)
    networks = 1 + len(search.compare)
    finals = [budget * whole for budget in search.finals for _ in range(networks)]
    longer = search.frontier_epochs
    if longer is None:
        return [*left, *finals]
    models = min(len(rows), max(search.minimum, round(search.fraction * len(rows))))
    more_epochs = longer - (0 if search.anew else epochs)
    more = statistics.mean(row.training_macs for row in rows) * more_epochs / epochs
    return [*left, *finals, *[more] * models]


def by_name(gpu: str, space: str, share_of_it: float = 1.0) -> tuple[float, str]:
    """A rate, and where it comes from, by a GPU's name; ``share_of_it`` is what a worker has of one.

    Raises:
        RequestError: nobody knows it.
    """
    peak = GPUS.get(gpu.lower())
    if peak is None:
        raise unknown("GPU", gpu, tuple(GPUS))
    share = next((share for family, share in SHARES.items() if space.startswith(family)), DEPTHWISE)
    return peak * share * min(
        1.0, share_of_it
    ), f"assumed: {share:.0%} of the peak of one {gpu.upper()}"


def median_trial(inputs: PlanInputs, rows: Sequence[PreviewRow]) -> TrialSpec:
    """The trial in the middle, by training cost, of a preview's candidates."""
    plan, middle = make_plan(inputs), statistics.median_low(row.training_macs for row in rows)
    row = next(row for row in rows if row.training_macs == middle)
    network = inputs.space.network((row.r, row.d, row.w), plan.space.num_classes)
    return candidate_of(plan, network).spec


def calibrated(request: ClusterRequest, spec: TrialSpec) -> tuple[float, str]:
    """A rate by training for some seconds on a worker of the cluster that is joined.

    Raises:
        TimeoutError: no worker became free, or it was too slow; RequestError: the training fails there.
    """
    import ray
    from ray.exceptions import GetTimeoutError

    scaling = request.scaling
    execution = replace(request.execution, loader_workers=scaling.loader_workers)
    train = ray.remote(max_retries=0)(speed)
    placed = train.options(num_cpus=scaling.cpus, num_gpus=scaling.gpus)
    task = placed.remote(spec, execution, scaling.cpus)
    try:
        images, device = ray.get(task, timeout=PATIENCE)
    except GetTimeoutError:
        ray.cancel(task, force=True)
        late = f"the calibration was not done within {in_seconds(PATIENCE)}: no worker was free, or it is a slow one"
        raise TimeoutError(f"{late}; --gpu NAME estimates without it") from None
    except Exception as error:
        raise RequestError(f"a trial cannot be trained there: {last_line(error)}") from error
    macs = spec.network().macs
    return (
        TRAIN_PASSES * macs * images,
        f"measured: {images:.0f} images/s of {millions(macs)} FLOPs on one {device}",
    )


def speed(spec: TrialSpec, execution: Execution, cpus: float) -> tuple[float, str]:
    """In a worker: images a second, and on what; with as many threads as a trial has."""
    import torch

    from trainables.calibration import images_per_s

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU worker"
    torch.set_num_threads(max(1, int(cpus)))
    return images_per_s(spec, SECONDS, execution), device
