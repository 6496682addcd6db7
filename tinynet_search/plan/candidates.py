"""Creates the candidates of a plan, from the sampler, the search directory or the formula.

Called by the driver, by the previews of a search and by the publishers.
"""

from collections.abc import Iterable
from dataclasses import replace

from search_spaces import Network, RequestError, get_space
from search_spaces.samplers import draw
from tinynet_search.store.directory import FINALS, Candidate, SearchStore
from tinynet_search.store.schema import DrawnCandidate, Plan, untrusted_space_error
from trainables.result import NetworkFigures
from trainables.run_name import RunName
from trainables.spec import TrialSpec, trial_id

# A training step costs about three forward passes.
TRAIN_PASSES = 3
# Raw weights, averaged weights and up to two optimizer states, 4 bytes each, in two checkpoints.
CHECKPOINT_BYTES_PER_PARAM = 4 * 4 * 2


def spec_of(
    plan: Plan, rdw: Iterable[float], *, epochs: int | None = None, kind: str = "trial"
) -> TrialSpec:
    """The specification of the trial of (r, d, w) in a plan.

    Args:
        plan: the plan of the search.
        rdw: the multipliers of resolution, depth and width.
        epochs: the number of epochs; None uses the plan's recipe.
        kind: the kind of the trial.
    """
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
    """The candidate of a network in a plan; arguments as for ``spec_of``."""
    spec = spec_of(plan, network.rdw, epochs=epochs, kind=kind)
    return Candidate(spec, NetworkFigures.of(network))


def candidates_of(plan: Plan, store: SearchStore, epochs: int | None = None) -> list[Candidate]:
    """The candidates in the search directory, in the order they were drawn.

    Ids are recomputed. Stored figures are reused if their id and multiply-adds match: computing all
    figures of ten thousand networks takes as long as the rest of a driver's start.

    Raises:
        RequestError: a stored (r, d, w) exceeds the FLOPs of the plan.
    """
    space, recipe = get_space(plan.space.name), plan.recipe_for(epochs)
    # All specifications share the parts of this one; separate copies would be most of the memory of
    # a long search.
    template = spec_of(plan, (1.0, 1.0, 1.0), epochs=epochs)
    # Samplers stay in the band, or near one c, within their tolerance.
    max_c = 2 * max(plan.space.band[1], plan.sampler.c or 0)
    candidates = []
    for drawn in store.candidates():
        network = space.network(drawn.rdw, template.num_classes)
        if network.c > max_c:
            raise RequestError(
                f"candidates {store.url_of('candidates')} are damaged: "
                f"{drawn.rdw} exceeds the plan's FLOPs: restore the file"
            )
        name = trial_id(space, network, recipe, template.data_fingerprint, template.seed)
        figures = _stored_figures(drawn, name, network) or NetworkFigures.of(network)
        spec = replace(template, rdw=tuple(network.rdw))
        candidates.append(Candidate(spec, figures, RunName(name, recipe.epochs)))
    return candidates


def _stored_figures(drawn: DrawnCandidate, name: str, network: Network) -> NetworkFigures | None:
    """The stored figures of a network, None if they belong to a different network."""
    figures = drawn.network
    if figures is None or drawn.id != name:
        return None
    expected = (network.resolution, network.macs, network.num_classes)
    same = (figures.resolution, figures.macs, figures.num_classes) == expected
    return replace(figures, c=network.c) if same else None


def grow(plan: Plan, store: SearchStore, trials: int, epochs: int) -> list[Candidate]:
    """Draw candidates until the search has ``trials`` of them, and return all.

    The first n networks of a longer draw are the same n, so the batches together equal a single
    draw. For an adaptive sampler this draws nothing: it draws while the search runs.

    Args:
        plan: the plan of the search.
        store: the search directory, to which new candidates are added.
        trials: the total number of candidates.
        epochs: the epochs of each candidate.
    """
    stored = candidates_of(plan, store, epochs)
    if len(stored) >= trials or plan.sampler.adaptive:
        return stored
    networks = planned_networks(plan, trials)
    new = [candidate_of(plan, network, epochs=epochs) for network in networks[len(stored) :]]
    store.add_batch(len(stored), new)
    return candidates_of(plan, store, epochs)


def planned_networks(plan: Plan, trials: int) -> list[Network]:
    """Draw ``trials`` networks with the plan's sampler."""
    return draw(
        plan.space.narrowed(),
        plan.sampler.name,
        trials,
        plan.seed,
        num_classes=plan.space.num_classes,
        **plan.sampler.options,
    )


def final_candidates(store: SearchStore, user_space: str | None = None) -> list[Candidate]:
    """The candidates of the final trainings in the search directory.

    Args:
        store: the search directory.
        user_space: the name of a user-defined space that may be imported. The import runs code, so
            the name in the file alone is not sufficient.

    Raises:
        RequestError: the file is damaged, or contains a user-defined space other than
            ``user_space``.
    """
    specs = [row.spec for row in store.final_rows()]
    try:
        for space in {spec.space for spec in specs}:
            if reason := untrusted_space_error(space, user_space):
                raise RequestError(reason)
        return [Candidate.of(spec) for spec in specs]
    except RequestError as error:
        raise RequestError(
            f"{store.url_of(FINALS)} is damaged ({error}): remove the file, it will be rebuilt"
        ) from error


def training_macs(candidate: Candidate, train: int, val: int) -> int:
    """Multiply-adds of a complete training, with the evaluations of raw and averaged weights.

    Args:
        candidate: the candidate to train.
        train: the number of training images.
        val: the number of validation images.
    """
    images = TRAIN_PASSES * train + 2 * val
    return candidate.network.macs * images * candidate.spec.recipe.epochs
