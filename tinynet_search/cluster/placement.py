"""Plans how a search uses a cluster: workers per trial, concurrent trials, and whether one fits.

Called by the driver of a search, by trainings on Ray, and by the preflight checks. Ray schedules,
scales and retries; this module only decides what a search requests from Ray. With
``[scaling] auto = true`` it chooses the division that ends the search soonest, from the nodes of
the cluster: one GPU per trial if there are many trials, several GPUs per trial if few are left.
"""

import heapq
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from search_spaces import RequestError
from tinynet_search.cluster.ray_internals import node_groups
from tinynet_search.config import (
    Config,
    PlanInputs,
    check_sync_bn,
)
from tinynet_search.config.sections import RunSection, ScalingSection
from tinynet_search.text import duration, in_seconds
from trainables.execution import Execution
from trainables.executors import Scaling
from trainables.recipe import Recipe

# Assumptions of the choice, used if nothing was measured: multiply-adds per second of a GPU and of
# a CPU core, the efficiency that remains when the workers of a trial double, and the seconds that
# Ray Train takes to start and end the workers of a trial.
GPU_RATE, CPU_RATE, DOUBLING_EFFICIENCY, START_SECONDS = 5e12, 2e10, 0.9, 15.0
# Divisions within this factor of the shortest time count as equal. More workers per trial cost
# efficiency that the figures above do not include.
TIME_TOLERANCE = 1.05
# Seconds that a cluster has to grow until it holds one trial, and between two messages about it.
GROWTH_TIMEOUT, REPORT_INTERVAL = 3600.0, 30.0
# The label of a Ray node that names the autoscaler's node group.
GROUP_LABEL = "ray.io/node-group"
UNLIMITED = 10**6


@dataclass(frozen=True)
class ClusterRequest:
    """The settings that decide what a search requests from a cluster.

    Attributes:
        run: the section ``[run]``.
        scaling: the section ``[scaling]``.
        execution: how trainings are computed.
        recipe: its number of micro-batches decides how a trial can be divided among workers.
    """

    run: RunSection
    scaling: ScalingSection
    execution: Execution
    recipe: Recipe

    @classmethod
    def of(cls, config: Config, inputs: PlanInputs) -> "ClusterRequest":
        return cls(config.run, config.scaling, config.training_execution, inputs.recipe)

    def scaled(self, **changes: float) -> "ClusterRequest":
        """A copy with changed settings of ``[scaling]``."""
        return replace(self, scaling=self.scaling.model_copy(update=changes))


@dataclass(frozen=True)
class Nodes:
    """The resources of one kind of node, and the number of such nodes, now or at most."""

    resources: Mapping[str, float]
    count: int = 1

    def holds(self, needs: Mapping[str, float]) -> int:
        """The number of workers that fit on one node."""
        return min(
            int(self.resources.get(key, 0.0) / amount + 1e-6) for key, amount in needs.items()
        )


@dataclass(frozen=True)
class Placement:
    """How a search uses its cluster.

    Attributes:
        request: the settings, with ``[scaling]`` as the search will use it.
        at_once: the number of concurrent trials.
        why: one line that explains the choice, None if nothing was chosen.
    """

    request: ClusterRequest
    at_once: int
    why: str | None = None


def choose_placement(
    request: ClusterRequest, macs: Sequence[float], nodes: Sequence[Nodes]
) -> Placement:
    """The placement of a search on these nodes.

    Args:
        request: the settings of the search.
        macs: training multiply-adds of each remaining trial; used only with ``scaling.auto``.
        nodes: the nodes of the cluster.

    Raises:
        RequestError: not one trial fits; the message contains what is missing.
    """
    if request.scaling.auto:
        return _choose_division(request, macs, nodes)
    fitting = capacity(request, nodes)
    if fitting < 1:
        raise RequestError(_no_room_message(request, nodes))
    return Placement(request, min(request.run.concurrency or UNLIMITED, fitting))


def capacity(request: ClusterRequest, nodes: Sequence[Nodes]) -> int:
    """The number of trials that fit concurrently, 0 if none does.

    A worker must fit on a single node; the total resources of the cluster do not matter.
    """
    scaling, workers = request.scaling, request.scaling.workers
    slots = [node.holds(worker_resources(request)) for node in nodes for _ in range(node.count)]
    if scaling.placement == "STRICT_PACK":
        return sum(slot // workers for slot in slots)
    if scaling.placement == "STRICT_SPREAD":
        return _spread_capacity(slots, workers)
    return sum(slots) // workers


def _spread_capacity(slots: list[int], workers: int) -> int:
    """The number of trials that fit if each worker of a trial is on a different node.

    Args:
        slots: the workers that fit on each node.
        workers: the workers of one trial.
    """
    # Greedy: each trial takes one slot on each of the nodes with the most free slots.
    heap, trials = [-slot for slot in slots if slot], 0
    heapq.heapify(heap)
    while len(heap) >= workers:
        remaining = [heapq.heappop(heap) + 1 for _ in range(workers)]
        trials += 1
        for negative_slots in remaining:
            if negative_slots:
                heapq.heappush(heap, negative_slots)
    return trials


def trial_scaling(request: ClusterRequest) -> Scaling:
    """The workers of one trial and the resources of each worker."""
    return Scaling(
        request.scaling.workers,
        request.scaling.cpus,
        request.scaling.gpus,
        request.scaling.loader_workers,
    )


def worker_resources(request: ClusterRequest) -> dict[str, float]:
    """The resources that Ray reserves for one worker."""
    return trial_scaling(request).resources


def _no_room_message(request: ClusterRequest, nodes: Sequence[Nodes]) -> str:
    resources = worker_resources(request)
    available = "; ".join(
        f"{node.count} x " * (node.count > 1) + _format_resources(node.resources, resources)
        for node in nodes
    )
    return (
        f"no room for a trial of {_format_trial(request)} on nodes of {available}: lower [scaling],"
        " add nodes, or set run.wait_for_nodes if the cluster adds nodes by itself"
    )


def _format_trial(request: ClusterRequest) -> str:
    resources = worker_resources(request)
    return f"{request.scaling.workers} x {_format_resources(resources, resources)}"


def _format_resources(resources: Mapping[str, float], keys: Iterable[str]) -> str:
    return " and ".join(f"{resources.get(key, 0):g} {key}" for key in keys)


def _choose_division(
    request: ClusterRequest, macs: Sequence[float], nodes: Sequence[Nodes]
) -> Placement:
    """The placement that ends the search first.

    Of the divisions within ``TIME_TOLERANCE`` of the shortest time, it has the fewest workers per
    trial.
    """
    base = _with_default_resources(request, nodes)
    check_sync_bn(base.recipe, base.scaling)
    times = {
        (workers, trials): makespan(base, macs, workers, trials)
        for workers, trials in _divisions(base, nodes)
    }
    if not times:
        raise RequestError(_no_room_message(base, nodes))
    shortest = min(times.values())
    best = min(
        division for division, seconds in times.items() if seconds <= TIME_TOLERANCE * shortest
    )
    workers, trials = best
    unit = ("GPU" if base.scaling.gpus else "CPU worker") + "s" * (workers > 1)
    others = [
        f"{n} x {w} in {duration(seconds)}"
        for (w, n), seconds in sorted(times.items())
        if (w, n) != best
    ]
    alternatives = f" ({', '.join(others)})" if others else ""
    why = (
        f"{trials} at once on {workers} {unit} each: "
        f"{len(macs)} trials take an assumed {duration(times[best])}{alternatives}"
    )
    return Placement(base.scaled(workers=workers), trials, why)


def _divisions(request: ClusterRequest, nodes: Sequence[Nodes]) -> list[tuple[int, int]]:
    """The possible pairs (workers per trial, concurrent trials).

    The micro-batches of the recipe, the executor and the nodes limit them.
    """
    # Workers of one trial cannot share a GPU, and the executor inline has only one worker.
    single = request.run.executor != "ray_train" or 0 < request.scaling.gpus < 1
    micro_batches = 1 if single else request.recipe.micro_batches
    limit = request.run.concurrency or UNLIMITED
    divisions = []
    for workers in range(1, micro_batches + 1):
        if micro_batches % workers == 0:
            trials = min(limit, capacity(request.scaled(workers=workers), nodes))
            if trials:
                divisions.append((workers, trials))
    return divisions


def makespan(
    request: ClusterRequest,
    macs: Sequence[float],
    workers: int,
    concurrency: int,
    rate: float | None = None,
) -> float:
    """Seconds until the last trial ends, if the largest trials start first.

    Args:
        request: the settings of the search.
        macs: training multiply-adds of each trial.
        workers: workers per trial.
        concurrency: concurrent trials.
        rate: multiply-adds per second of one worker; None assumes ``GPU_RATE`` or ``CPU_RATE``.
    """
    one = rate or (GPU_RATE if request.scaling.gpus else CPU_RATE * request.scaling.cpus)
    speed = one * workers * DOUBLING_EFFICIENCY ** math.log2(workers)
    start_seconds = START_SECONDS if request.run.executor == "ray_train" else 0.0
    free = [0.0] * concurrency
    for amount in sorted(macs, reverse=True):
        heapq.heapreplace(free, free[0] + start_seconds + amount / speed)
    return max(free)


def _with_default_resources(request: ClusterRequest, nodes: Sequence[Nodes]) -> ClusterRequest:
    """Set the GPUs, CPUs and loader workers that the configuration leaves open.

    On a cluster with GPUs a worker gets one GPU and that GPU's share of the CPUs of its node.
    """
    configured = request.scaling.model_fields_set
    gpu_nodes = [node for node in nodes if node.resources.get("GPU", 0) >= 1]
    defaults: dict[str, float] = {"gpus": 1.0 if gpu_nodes else 0.0}
    shares = [node.resources.get("CPU", 0.0) // node.resources["GPU"] for node in gpu_nodes]
    defaults["cpus"] = max(1.0, min(shares)) if shares else 1.0
    defaults["loader_workers"] = max(0, int(defaults["cpus"]) - 1) if gpu_nodes else 0
    return request.scaled(
        **{key: value for key, value in defaults.items() if key not in configured}
    )


def current_nodes() -> list[Nodes]:
    """The nodes that the cluster has now."""
    import ray

    return [Nodes(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def max_nodes() -> list[Nodes]:
    """The nodes of the cluster at the largest size that its autoscaler has reported to Ray.

    These are the current nodes if the autoscaler reports nothing.
    """
    import ray

    groups = {group.name: group for group in node_groups() if group.max_count > 0}
    fixed = [
        node
        for node in ray.nodes()
        if node["Alive"] and node.get("Labels", {}).get(GROUP_LABEL) not in groups
    ]
    return [
        *(Nodes(node["Resources"]) for node in fixed),
        *(Nodes(group.resources, group.max_count) for group in groups.values()),
    ]


def wait_for_placement(
    request: ClusterRequest, macs: Sequence[float], report: Callable[[str], None]
) -> Placement:
    """The placement of a search on the connected cluster; waits for a cluster that scales up.

    It waits if the autoscaler has reported further nodes to Ray, or if ``run.wait_for_nodes`` is
    set: most autoscalers report nothing to Ray.

    Args:
        request: the settings of the search.
        macs: training multiply-adds of each remaining trial.
        report: called with each message for the user.

    Raises:
        RequestError: one trial can never fit, or the cluster did not grow in time.
    """
    nodes = max_nodes()
    if request.run.wait_for_nodes and capacity(request, nodes) < 1:
        require_explicit_gpus(request)
        nodes = _wait_for_nodes(request, request.run.wait_for_nodes, report)
    placement = choose_placement(request, macs, nodes)
    if capacity(placement.request, current_nodes()) < 1:
        _wait_for_nodes(placement.request, request.run.wait_for_nodes or GROWTH_TIMEOUT, report)
    placement = with_requested_concurrency(placement)
    if placement.why:
        report(placement.why)
    return placement


def with_requested_concurrency(placement: Placement) -> Placement:
    """On a cluster that grows, use ``run.concurrency``: pending trials make the cluster grow."""
    run = placement.request.run
    if run.wait_for_nodes and run.concurrency:
        return replace(placement, at_once=run.concurrency)
    return placement


def require_explicit_gpus(request: ClusterRequest) -> None:
    """Raise RequestError if ``scaling.auto`` would choose GPUs of nodes that do not exist yet."""
    if request.scaling.auto and "gpus" not in request.scaling.model_fields_set:
        raise RequestError(
            "scaling.auto cannot inspect nodes that do not exist yet: "
            "set scaling.gpus in addition to run.wait_for_nodes"
        )


def _wait_for_nodes(
    request: ClusterRequest, timeout: float, report: Callable[[str], None]
) -> list[Nodes]:
    """The nodes of the cluster as soon as they hold one trial."""
    from ray.autoscaler.sdk import request_resources

    started, last_report = time.monotonic(), -REPORT_INTERVAL
    request_resources(bundles=[worker_resources(request)] * request.scaling.workers)
    try:
        while True:
            nodes = current_nodes()
            if capacity(request, nodes) >= 1:
                return nodes
            waited = time.monotonic() - started
            if waited > timeout:
                raise RequestError(
                    f"{_no_room_message(request, nodes)}; "
                    f"the cluster did not grow within {duration(timeout)}"
                )
            if waited - last_report >= REPORT_INTERVAL:
                report(
                    f"waiting for the cluster to grow, {in_seconds(waited)}: "
                    f"a trial needs {_format_trial(request)}, the cluster has {len(nodes)} nodes"
                )
                last_report = waited
            time.sleep(1.0)
    finally:
        request_resources(bundles=[])
