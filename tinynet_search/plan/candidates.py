"""The candidates of a plan: networks that are drawn, read from the search directory, or follow from the formula.

Called by the driver, by the previews of a search and by the publishers.
"""

from collections.abc import Iterable
from dataclasses import replace

from search_spaces import Network, RequestError, get_space
from search_spaces.samplers import draw
from tinynet_search.store.directory import FINALS, Candidate, SearchStore
from tinynet_search.store.schema import Drawn, Plan, foreign_space
from trainables.result import NetworkFigures
from trainables.run_name import RunName
from trainables.spec import TrialSpec, trial_id

# One training step of a network costs about three forward passes.
TRAIN_PASSES = 3
# Raw and averaged weights and up to two optimizer states of 4 bytes, in the two checkpoints that are kept.
CHECKPOINT_BYTES_PER_PARAM = 4 * 4 * 2


def spec_of(
    plan: Plan, rdw: Iterable[float], *, epochs: int | None = None, kind: str = "trial"
) -> TrialSpec:
    """The description of the trial of (r, d, w) in a plan."""
    r, d, w = rdw
    return TrialSpec(
        space=plan.space.name,
        space_version=plan.space.version,
        rdw=(r, d, w),
        num_classes=plan.space.num_classes,
        recipe=plan.recipe_for(epochs),
        data=plan.data.settings,
        data_fingerprint=plan.data.fingerprint,
        seed=plan.seed,
        kind=kind,
    )


def candidate_of(
    plan: Plan, network: Network, *, epochs: int | None = None, kind: str = "trial"
) -> Candidate:
    spec = spec_of(plan, network.rdw, epochs=epochs, kind=kind)
    return Candidate(spec, NetworkFigures.of(network))


def candidates_of(plan: Plan, store: SearchStore, epochs: int | None = None) -> list[Candidate]:
    """The candidates that are written down, in the order they were drawn.

    Ids are made anew. Figures that were written with the same id and multiply-adds are taken as they are: the full cost of
    ten thousand networks takes as long as the rest of a driver's start.
    """
    space, recipe = get_space(plan.space.name), plan.recipe_for(epochs)
    # One specification's parts serve all: each of their own would be most of a long search's memory.
    any_spec = spec_of(plan, (1.0, 1.0, 1.0), epochs=epochs)
    # Samplers keep to the band, or near a c, within their tolerance.
    beyond = 2 * max(plan.space.band[1], plan.sampler.c or 0)
    candidates = []
    for drawn in store.candidates():
        network = space.network(drawn.rdw, any_spec.num_classes)
        if network.c > beyond:
            raise RequestError(
                f"candidates {store.at('candidates')} are damaged: {drawn.rdw} is beyond the plan's FLOPs: restore the file"
            )
        name = trial_id(space, network, recipe, any_spec.data_fingerprint, any_spec.seed)
        figures = _written(drawn, name, network) or NetworkFigures.of(network)
        spec = replace(any_spec, rdw=tuple(network.rdw))
        candidates.append(Candidate(spec, figures, RunName(name, recipe.epochs)))
    return candidates


def _written(drawn: Drawn, name: str, network: Network) -> NetworkFigures | None:
    """What was written of a network, if it is this one."""
    figures = drawn.network
    if figures is None or drawn.id != name:
        return None
    known = (network.resolution, network.macs, network.num_classes)
    same = (figures.resolution, figures.macs, figures.num_classes) == known
    return replace(figures, c=network.c) if same else None


def grow(plan: Plan, store: SearchStore, trials: int, epochs: int) -> list[Candidate]:
    """The search's candidates, after drawing as many more as are wanted; adaptive samplers draw while they run.

    The first n of a longer draw are the same n, so the batches together are one draw.

    Args:
        trials: how many are wanted in all; epochs: of each.
    """
    there = candidates_of(plan, store, epochs)
    if len(there) >= trials or plan.sampler.adaptive:
        return there
    drawn = planned_networks(plan, trials)
    new = [candidate_of(plan, network, epochs=epochs) for network in drawn[len(there) :]]
    store.add_batch(len(there), new)
    return candidates_of(plan, store, epochs)


def planned_networks(plan: Plan, trials: int) -> list[Network]:
    """The networks that the plan's sampler draws."""
    return draw(
        plan.space.narrowed(),
        plan.sampler.name,
        trials,
        plan.seed,
        num_classes=plan.space.num_classes,
        **plan.sampler.options,
    )


def final_candidates(store: SearchStore, named: str | None = None) -> list[Candidate]:
    """The final jobs that are written down.

    Args:
        named: repeats a user's own space, since importing what a file names would run code.

    Raises:
        RequestError: the file is damaged, or names a space of the user's own that ``named`` does not repeat.
    """
    specs = [row.spec for row in store.final_rows()]
    try:
        for space in {spec.space for spec in specs}:
            if foreign := foreign_space(space, named):
                raise RequestError(foreign)
        return [Candidate.of(spec) for spec in specs]
    except RequestError as error:
        raise RequestError(
            f"{store.at(FINALS)} is damaged ({error}): remove it, it is made anew"
        ) from error


def training_macs(candidate: Candidate, train: int, val: int) -> int:
    """Multiply-adds of a whole training, evaluations of raw and averaged weights included.

    Args:
        train, val: images of both parts.
    """
    images = TRAIN_PASSES * train + 2 * val
    return candidate.network.macs * images * candidate.spec.recipe.epochs
