"""How a search takes its place on nodes: what fits, what is chosen, what is refused."""

import itertools

import pytest

from search_spaces import RequestError
from tinynet_search.cluster import placement
from tinynet_search.cluster.placement import ClusterRequest, Nodes, at_once, placed
from tinynet_search.config import load_config

pytestmark = pytest.mark.quick

HEAD = Nodes({"CPU": 0.0})
BOX = Nodes({"CPU": 32.0, "GPU": 4.0})
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
        (("scaling.gpus=0.25", "scaling.cpus=1"), [BOX], 16),
        (("scaling.gpus=0.25", "scaling.cpus=4"), [BOX], 8),
        ((*TRAIN, "scaling.workers=4", "scaling.gpus=1"), [BOX, BOX], 2),
        ((*TRAIN, "scaling.workers=8", "scaling.gpus=1"), [BOX, BOX], 1),
        (
            (*TRAIN, "scaling.workers=8", "scaling.gpus=1", "scaling.placement=STRICT_PACK"),
            [BOX, BOX],
            0,
        ),
        (
            (*TRAIN, "scaling.workers=2", "scaling.gpus=1", "scaling.placement=STRICT_SPREAD"),
            [BOX, BOX],
            4,
        ),
        (
            (*TRAIN, "scaling.workers=2", "scaling.gpus=1", "scaling.placement=STRICT_SPREAD"),
            [BOX],
            0,
        ),
        (
            (*TRAIN, "scaling.workers=2", "scaling.placement=STRICT_SPREAD"),
            [Nodes({"CPU": 3.0}), Nodes({"CPU": 1.0}, 2)],
            2,
        ),
    ],
)
def test_trials_side_by_side(settings: tuple[str, ...], nodes: list[Nodes], fits: int) -> None:
    assert at_once(request(*settings), nodes) == fits


def test_spread_workers_fill_as_well_as_any_order_does() -> None:
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
            assert placement._spread(list(slots), workers) == best(slots, workers), (slots, workers)


def test_what_never_fits_is_refused_with_what_is_missing() -> None:
    with pytest.raises(
        RequestError,
        match=r"no room for a trial of 1 x 1 CPU and 1 GPU on nodes of 2 x 8 CPU and 0 GPU: lower",
    ):
        placed(request("scaling.gpus=1"), [1.0], [Nodes({"CPU": 8.0}, 2)])
    with pytest.raises(RequestError, match="no room"):
        placed(request("scaling.auto=true"), [1.0], [HEAD])


def test_the_limit_of_trials_at_once_is_kept() -> None:
    assert placed(request("run.concurrency=3"), [], [Nodes({"CPU": 8.0})]).at_once == 3


def test_many_trials_take_a_gpu_each_and_few_take_several() -> None:
    """With a hundred equal trials nothing beats one GPU each, at full efficiency; a single one takes all that it can."""
    auto = request(*TRAIN, "scaling.auto=true")
    many = placed(auto, [HOUR] * 96, [HEAD, BOX, BOX])
    assert (many.request.scaling.workers, many.at_once) == (1, 8)
    one = placed(auto, [HOUR], [HEAD, BOX, BOX])
    assert (one.request.scaling.workers, one.at_once) == (8, 1)
    assert (
        one.request.scaling.gpus,
        one.request.scaling.cpus,
        one.request.scaling.loader_workers,
    ) == (1.0, 8.0, 7)
    assert one.why is not None
    assert one.why.startswith("1 at once on 8 GPUs each: 1 trials in an assumed ")
    # Nine on eight GPUs: a second round of one trial, or five rounds of two on four GPUs.
    nine = placed(auto, [HOUR] * 9, [BOX, BOX])
    assert nine.request.scaling.workers == min((_by_hand(9, w), w) for w in (1, 2, 4, 8))[1]


def _by_hand(trials: int, workers: int) -> float:
    rounds = -(-trials // (8 // workers))
    return rounds * (
        placement.STARTING + 3600 / (workers * placement.DOUBLED ** (workers.bit_length() - 1))
    )


def test_workers_never_share_a_gpu() -> None:
    """A part of one is for trials of one worker; and what synchronises batch norm is looked at once the GPUs are chosen."""
    part = placed(request(*TRAIN, "scaling.auto=true", "scaling.gpus=0.25"), [HOUR], [BOX])
    assert (part.request.scaling.workers, part.request.scaling.gpus) == (1, 0.25)
    together = request(*TRAIN, "scaling.auto=true", "recipe.sync_bn=true")
    assert placed(together, [HOUR], [BOX]).request.scaling.gpus == 1
    with pytest.raises(RequestError, match=r"recipe\.sync_bn: .* exists on GPUs only"):
        placed(together, [HOUR], [Nodes({"CPU": 8.0})])
    with pytest.raises(RequestError, match="GPUs only"):
        request(*TRAIN, "scaling.auto=true", "scaling.gpus=0", "recipe.sync_bn=true")


def test_short_trials_are_not_divided() -> None:
    """Starting the workers takes longer than they save."""
    auto = request(*TRAIN, "scaling.auto=true")
    assert placed(auto, [placement.GPU_RATE], [BOX]).request.scaling.workers == 1


def test_what_is_named_stays_and_one_process_is_never_divided() -> None:
    inline = placed(request("scaling.auto=true", "scaling.cpus=2"), [HOUR], [Nodes({"CPU": 8.0})])
    assert (
        inline.request.scaling.workers,
        inline.request.scaling.cpus,
        inline.request.scaling.gpus,
        inline.at_once,
    ) == (1, 2.0, 0.0, 4)
    assert (
        placed(
            request(*TRAIN, "scaling.auto=true", "scaling.workers=2"), [HOUR] * 96, [BOX]
        ).request.scaling.workers
        == 1
    )
