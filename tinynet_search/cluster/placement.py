"""How a search takes its place on a cluster: how many workers a trial, how many trials at once, and whether one fits at all.

Ray schedules, scales and retries; what is decided here is only what a search asks of it. With ``[scaling] auto = true``
that is chosen from the cluster's own nodes so that the whole search ends soonest: many trials on one GPU each where
there are many trials, fewer on several GPUs each where few are left.
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
    RunSection,
    ScalingSection,
    refuse_sync_bn,
)
from tinynet_search.text import duration, in_seconds
from trainables.execution import Execution
from trainables.executors import Scaling
from trainables.recipe import Recipe

# What the choice assumes, where nothing was measured: multiply-adds a second of a GPU and of a CPU core, what doubling the
# workers of a trial leaves of their speed, and the seconds that Ray Train takes to start and end a trial's workers.
GPU_RATE, CPU_RATE, DOUBLED, STARTING = 5e12, 2e10, 0.9, 15.0
# An end is as good as another that comes so much sooner: workers cost efficiency that these figures do not know.
NO_LATER = 1.05
# Seconds that a cluster which can grow gets to hold its first trial, and between two lines about it.
GROWTH, TOLD = 3600.0, 30.0
# The label by which Ray's nodes name the group that an autoscaler made them of.
GROUP = "ray.io/node-group"


@dataclass(frozen=True)
class ClusterRequest:
    """What a search asks of a cluster.

    Attributes:
        run, scaling: ``[run]`` and ``[scaling]``; execution: how trainings are computed.
        recipe: its micro-batches say how a trial can be divided among workers.
    """

    run: RunSection
    scaling: ScalingSection
    execution: Execution
    recipe: Recipe

    @classmethod
    def of(cls, config: Config, inputs: PlanInputs) -> "ClusterRequest":
        return cls(config.run, config.scaling, config.computed, inputs.recipe)

    def scaled(self, **changes: float) -> "ClusterRequest":
        """With some settings of ``[scaling]`` changed."""
        return replace(self, scaling=self.scaling.model_copy(update=changes))


@dataclass(frozen=True)
class Nodes:
    """What one kind of node has for trials, and how many there are or may come to be."""

    resources: Mapping[str, float]
    count: int = 1

    def holds(self, needs: Mapping[str, float]) -> int:
        """Workers on one node."""
        return min(
            int(self.resources.get(key, 0.0) / amount + 1e-6) for key, amount in needs.items()
        )


@dataclass(frozen=True)
class Placement:
    """What a search asks of its cluster.

    Attributes:
        request: with ``[scaling]`` as it will be used; at_once: concurrent trials.
        why: one line on what was chosen, None where nothing was.
    """

    request: ClusterRequest
    at_once: int
    why: str | None = None


def placed(request: ClusterRequest, macs: Sequence[float], nodes: Sequence[Nodes]) -> Placement:
    """The place of a search on these nodes.

    Args:
        macs: training multiply-adds of every trial that is left; they decide with ``scaling.auto`` only.

    Raises:
        RequestError: not one trial fits; the line says what is missing.
    """
    if request.scaling.auto:
        return _chosen(request, macs, nodes)
    most = at_once(request, nodes)
    if most < 1:
        raise RequestError(_lacking(request, nodes))
    return Placement(request, min(request.run.concurrency or 10**6, most))


def at_once(request: ClusterRequest, nodes: Sequence[Nodes]) -> int:
    """Trials that fit side by side, 0 where none does: a worker fits into one node or into none, whatever the cluster holds in all."""
    scaling, workers = request.scaling, request.scaling.workers
    slots = [node.holds(needs(request)) for node in nodes for _ in range(node.count)]
    if scaling.placement == "STRICT_PACK":
        return sum(slot // workers for slot in slots)
    if scaling.placement == "STRICT_SPREAD":
        return _spread(slots, workers)
    return sum(slots) // workers


def _spread(slots: list[int], workers: int) -> int:
    """Trials whose workers are all on nodes of their own: the most loaded nodes first."""
    heap, trials = [-slot for slot in slots if slot], 0
    heapq.heapify(heap)
    while len(heap) >= workers:
        taken = [heapq.heappop(heap) + 1 for _ in range(workers)]
        trials += 1
        for left in taken:
            if left:
                heapq.heappush(heap, left)
    return trials


def of_trial(request: ClusterRequest) -> Scaling:
    """What one trial takes of the cluster."""
    return Scaling(
        request.scaling.workers,
        request.scaling.cpus,
        request.scaling.gpus,
        request.scaling.loader_workers,
    )


def needs(request: ClusterRequest) -> dict[str, float]:
    """What Ray reserves for one worker."""
    return of_trial(request).resources


def _lacking(request: ClusterRequest, nodes: Sequence[Nodes]) -> str:
    wanted = needs(request)
    there = "; ".join(
        f"{node.count} x " * (node.count > 1) + _listed(node.resources, wanted) for node in nodes
    )
    mend = "lower [scaling], add nodes, or set run.wait_for_nodes where they come by themselves"
    return f"no room for a trial of {request.scaling.workers} x {_listed(wanted, wanted)} on nodes of {there}: {mend}"


def _listed(resources: Mapping[str, float], keys: Iterable[str]) -> str:
    return " and ".join(f"{resources.get(key, 0):g} {key}" for key in keys)


def _chosen(request: ClusterRequest, macs: Sequence[float], nodes: Sequence[Nodes]) -> Placement:
    """The division into trials and workers that ends first; of those that end as good as first, the one with fewest workers a trial."""
    base = _filled(request, nodes)
    refuse_sync_bn(base.recipe, base.scaling)
    ends = {
        (workers, most): makespan(base, macs, workers, most)
        for workers, most in _divisions(base, nodes)
    }
    if not ends:
        raise RequestError(_lacking(base, nodes))
    first = min(ends.values())
    workers, most = best = min(
        division for division, seconds in ends.items() if seconds <= NO_LATER * first
    )
    what = ("GPU" if base.scaling.gpus else "CPU worker") + "s" * (workers > 1)
    others = [
        f"{n} x {w} in {duration(seconds)}"
        for (w, n), seconds in sorted(ends.items())
        if (w, n) != best
    ]
    beside = f" ({', '.join(others)})" if others else ""
    why = f"{most} at once on {workers} {what} each: {len(macs)} trials in an assumed {duration(ends[best])}{beside}"
    return Placement(base.scaled(workers=workers), most, why)


def _divisions(request: ClusterRequest, nodes: Sequence[Nodes]) -> list[tuple[int, int]]:
    """(workers a trial, trials at once) that the recipe's micro-batches and the executor allow and the nodes hold."""
    # Workers of one trial cannot share a GPU, and the executor inline has one.
    alone = request.run.executor != "ray_train" or 0 < request.scaling.gpus < 1
    share = 1 if alone else request.recipe.micro_batches
    counts = [workers for workers in range(1, share + 1) if share % workers == 0]
    limit = request.run.concurrency or 10**6
    found = [
        (workers, min(limit, at_once(request.scaled(workers=workers), nodes))) for workers in counts
    ]
    return [(workers, most) for workers, most in found if most]


def makespan(
    request: ClusterRequest,
    macs: Sequence[float],
    workers: int,
    most: int,
    rate: float | None = None,
) -> float:
    """Seconds until the last trial has ended, the largest begun first.

    Args:
        macs: training multiply-adds of each trial; most: trials at once.
        rate: multiply-adds a second of one worker, where it is known.
    """
    one = rate or (GPU_RATE if request.scaling.gpus else CPU_RATE * request.scaling.cpus)
    speed = one * workers * DOUBLED ** math.log2(workers)
    starting = STARTING if request.run.executor == "ray_train" else 0.0
    free = [0.0] * most
    for amount in sorted(macs, reverse=True):
        heapq.heapreplace(free, free[0] + starting + amount / speed)
    return max(free)


def _filled(request: ClusterRequest, nodes: Sequence[Nodes]) -> ClusterRequest:
    """GPUs, CPUs and readers of a worker where the configuration leaves them open: a GPU with its share of its node's CPUs."""
    named = request.scaling.model_fields_set
    on_gpus = [node for node in nodes if node.resources.get("GPU", 0) >= 1]
    found: dict[str, float] = {"gpus": 1.0 if on_gpus else 0.0}
    shares = [node.resources.get("CPU", 0.0) // node.resources["GPU"] for node in on_gpus]
    found["cpus"] = max(1.0, min(shares)) if shares else 1.0
    found["loader_workers"] = max(0, int(found["cpus"]) - 1) if on_gpus else 0
    return request.scaled(**{key: value for key, value in found.items() if key not in named})


def present() -> list[Nodes]:
    """The nodes that the cluster has now."""
    import ray

    return [Nodes(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def grown() -> list[Nodes]:
    """The nodes of a cluster whose autoscaler tells Ray of them, when it has grown as far as it may; else as they are."""
    import ray

    kinds = {group.name: group for group in node_groups() if group.max_count > 0}
    fixed = [
        node
        for node in ray.nodes()
        if node["Alive"] and node.get("Labels", {}).get(GROUP) not in kinds
    ]
    return [
        *(Nodes(node["Resources"]) for node in fixed),
        *(Nodes(group.resources, group.max_count) for group in kinds.values()),
    ]


def wait_for_placement(
    request: ClusterRequest, macs: Sequence[float], say: Callable[[str], None]
) -> Placement:
    """The search's place on the cluster at hand; one that scales up is waited for.

    That is one whose autoscaler has told Ray of nodes to come, or any with ``run.wait_for_nodes``: most autoscalers tell Ray nothing.

    Raises:
        RequestError: the cluster can never run one trial, or has not grown enough in time.
    """
    there = grown()
    if request.run.wait_for_nodes and at_once(request, there) < 1:
        require_named_gpus(request)
        there = _awaited(request, request.run.wait_for_nodes, say)
    place = placed(request, macs, there)
    if at_once(place.request, present()) < 1:
        _awaited(place.request, request.run.wait_for_nodes or GROWTH, say)
    place = as_wished(place)
    if place.why:
        say(place.why)
    return place


def as_wished(place: Placement) -> Placement:
    """On a cluster that grows as many trials at once as the user names: what waits is what makes it grow."""
    run = place.request.run
    return (
        replace(place, at_once=run.concurrency) if run.wait_for_nodes and run.concurrency else place
    )


def require_named_gpus(request: ClusterRequest) -> None:
    """Raises RequestError where ``auto`` would have to choose from nodes that are not there yet."""
    if request.scaling.auto and "gpus" not in request.scaling.model_fields_set:
        raise RequestError(
            "scaling.auto cannot see nodes that are still to come: name scaling.gpus beside run.wait_for_nodes"
        )


def _awaited(request: ClusterRequest, patience: float, say: Callable[[str], None]) -> list[Nodes]:
    """The nodes, once they hold one trial."""
    from ray.autoscaler.sdk import request_resources

    began, told = time.monotonic(), -TOLD
    request_resources(bundles=[needs(request)] * request.scaling.workers)
    try:
        while at_once(request, there := present()) < 1:
            waited = time.monotonic() - began
            if waited > patience:
                raise RequestError(
                    f"{_lacking(request, there)}; the cluster has not grown for {duration(patience)}"
                )
            if waited - told >= TOLD:
                trial = f"{request.scaling.workers} x {_listed(needs(request), needs(request))}"
                say(
                    f"waiting for the cluster to grow, {in_seconds(waited)}: a trial takes {trial}, {len(there)} nodes are there"
                )
                told = waited
            time.sleep(1.0)
        return there
    finally:
        request_resources(bundles=[])
