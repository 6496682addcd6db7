"""Tests of placement: capacity of nodes, automatic scaling, and error messages."""

import itertools

import pytest

from search_spaces import RequestError
from tinynet_search.cluster import placement
from tinynet_search.cluster.placement import ClusterRequest, Nodes, capacity, choose_placement
from tinynet_search.config import load_config

pytestmark = pytest.mark.quick

HEAD = Nodes({"CPU": 0.0})
GPU_NODE = Nodes({"CPU": 32.0, "GPU": 4.0})
TRAIN = ("run.executor=ray_train", "recipe.batch=64", "recipe.micro_batch=8")
HOUR = 3600 * placement.GPU_RATE


def request(*settings: str) -> ClusterRequest:
    config = load_config(preset="demo", settings=settings)
    return ClusterRequest.of(config, config.resolve())


@pytest.mark.parametrize(
    ("settings", "nodes", "fits"),
    [
        (("scaling.cpus=1",), [HEAD, Nodes({"CPU": 2.0}, 2)], 4),
        (("scaling.cpus=3",), [Nodes({"CPU": 2.0}, 8)], 0),
        (("scaling.gpus=0.25", "scaling.cpus=1"), [GPU_NODE], 16),
        (("scaling.gpus=0.25", "scaling.cpus=4"), [GPU_NODE], 8),
        ((*TRAIN, "scaling.workers=4", "scaling.gpus=1"), [GPU_NODE, GPU_NODE], 2),
        ((*TRAIN, "scaling.workers=8", "scaling.gpus=1"), [GPU_NODE, GPU_NODE], 1),
        (
            (*TRAIN, "scaling.workers=8", "scaling.gpus=1", "scaling.placement=STRICT_PACK"),
            [GPU_NODE, GPU_NODE],
            0,
        ),
        (
            (*TRAIN, "scaling.workers=2", "scaling.gpus=1", "scaling.placement=STRICT_SPREAD"),
            [GPU_NODE, GPU_NODE],
            4,
        ),
        (
            (*TRAIN, "scaling.workers=2", "scaling.gpus=1", "scaling.placement=STRICT_SPREAD"),
            [GPU_NODE],
            0,
        ),
        (
            (*TRAIN, "scaling.workers=2", "scaling.placement=STRICT_SPREAD"),
            [Nodes({"CPU": 3.0}), Nodes({"CPU": 1.0}, 2)],
            2,
        ),
    ],
)
def test_capacity(settings: tuple[str, ...], nodes: list[Nodes], fits: int) -> None:
    assert capacity(request(*settings), nodes) == fits


def test_greedy_spread_equals_exhaustive_search() -> None:
    def best(slots: tuple[int, ...], workers: int) -> int:
        groups = itertools.combinations([i for i, slot in enumerate(slots) if slot], workers)
        return max(
            (
                1 + best(tuple(slot - (i in group) for i, slot in enumerate(slots)), workers)
                for group in groups
            ),
            default=0,
        )

    for slots in itertools.product(range(4), repeat=3):
        for workers in (2, 3):
            trials = placement._spread_capacity(list(slots), workers)
            assert trials == best(slots, workers), (slots, workers)


def test_trial_without_room_is_refused() -> None:
    with pytest.raises(
        RequestError,
        match=r"no room for a trial of 1 x 1 CPU and 1 GPU on nodes of 2 x 8 CPU and 0 GPU: lower",
    ):
        choose_placement(request("scaling.gpus=1"), [1.0], [Nodes({"CPU": 8.0}, 2)])
    with pytest.raises(RequestError, match="no room"):
        choose_placement(request("scaling.auto=true"), [1.0], [HEAD])


def test_concurrency_limits_concurrent_trials() -> None:
    assert choose_placement(request("run.concurrency=3"), [], [Nodes({"CPU": 8.0})]).at_once == 3


def test_automatic_scaling_depends_on_number_of_trials() -> None:
    """Many equal trials run fastest on one GPU each; a single trial uses all GPUs that it can."""
    auto = request(*TRAIN, "scaling.auto=true")
    many = choose_placement(auto, [HOUR] * 96, [HEAD, GPU_NODE, GPU_NODE])
    assert (many.request.scaling.workers, many.at_once) == (1, 8)
    one = choose_placement(auto, [HOUR], [HEAD, GPU_NODE, GPU_NODE])
    assert (one.request.scaling.workers, one.at_once) == (8, 1)
    assert (
        one.request.scaling.gpus,
        one.request.scaling.cpus,
        one.request.scaling.loader_workers,
    ) == (1.0, 8.0, 7)
    assert one.why is not None
    assert one.why.startswith("1 at once on 8 GPUs each: 1 trials take an assumed ")
    # Nine trials on eight GPUs: two rounds on one GPU each, the second with a single trial, or five
    # rounds of two trials on four GPUs each.
    nine = choose_placement(auto, [HOUR] * 9, [GPU_NODE, GPU_NODE])
    assert nine.request.scaling.workers == min((_expected_time(9, w), w) for w in (1, 2, 4, 8))[1]


def _expected_time(trials: int, workers: int) -> float:
    rounds = -(-trials // (8 // workers))
    speed = workers * placement.DOUBLING_EFFICIENCY ** (workers.bit_length() - 1)
    return rounds * (placement.START_SECONDS + 3600 / speed)


def test_fractional_gpus_and_sync_bn() -> None:
    """A fraction of a GPU allows one worker per trial; sync_bn is checked for the chosen GPUs."""
    fractional = choose_placement(
        request(*TRAIN, "scaling.auto=true", "scaling.gpus=0.25"), [HOUR], [GPU_NODE]
    )
    assert (fractional.request.scaling.workers, fractional.request.scaling.gpus) == (1, 0.25)
    sync_bn = request(*TRAIN, "scaling.auto=true", "recipe.sync_bn=true")
    assert choose_placement(sync_bn, [HOUR], [GPU_NODE]).request.scaling.gpus == 1
    with pytest.raises(RequestError, match=r"recipe\.sync_bn: .* requires GPUs"):
        choose_placement(sync_bn, [HOUR], [Nodes({"CPU": 8.0})])
    with pytest.raises(RequestError, match="requires GPUs"):
        request(*TRAIN, "scaling.auto=true", "scaling.gpus=0", "recipe.sync_bn=true")


def test_short_trials_use_one_worker() -> None:
    """The start of further workers takes longer than the time that they save."""
    auto = request(*TRAIN, "scaling.auto=true")
    assert choose_placement(auto, [placement.GPU_RATE], [GPU_NODE]).request.scaling.workers == 1


def test_explicit_settings_are_kept_and_inline_uses_one_worker() -> None:
    inline = choose_placement(
        request("scaling.auto=true", "scaling.cpus=2"), [HOUR], [Nodes({"CPU": 8.0})]
    )
    assert (
        inline.request.scaling.workers,
        inline.request.scaling.cpus,
        inline.request.scaling.gpus,
        inline.at_once,
    ) == (1, 2.0, 0.0, 4)
    assert (
        choose_placement(
            request(*TRAIN, "scaling.auto=true", "scaling.workers=2"), [HOUR] * 96, [GPU_NODE]
        ).request.scaling.workers
        == 1
    )
