"""The candidates of a plan: networks that are drawn, read from the search directory, or follow from the formula.

Called by the driver, by the previews of a search and by the publishers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from search_spaces import Network, RequestError, get_space
from search_spaces.samplers import ADAPTIVE, draw
from tinynet_search.config import Config
from tinynet_search.store.directory import FINALS, Candidate, Drawn, SearchStore
from tinynet_search.store.schema import foreign_space
from trainables.recipe import Recipe, recipe_from
from trainables.spec import TrialSpec, describe, trial_id

# One training step of a network costs about three forward passes.
TRAIN_PASSES = 3
# Raw and averaged weights and up to two optimizer states of 4 bytes, in the two checkpoints that are kept.
CHECKPOINT_BYTES_PER_PARAM = 4 * 4 * 2


def plan_recipe(plan: Mapping[str, Any], epochs: int | None = None) -> Recipe:
    recipe = recipe_from(plan["recipe"])
    return recipe if epochs is None else replace(recipe, epochs=epochs)


def spec_of(
    plan: Mapping[str, Any], rdw: Iterable[float], *, epochs: int | None = None, kind: str = "trial"
) -> TrialSpec:
    """The description of the trial of (r, d, w) in a plan."""
    r, d, w = rdw
    return TrialSpec(
        space=plan["space"]["name"],
        space_version=plan["space"]["version"],
        rdw=(r, d, w),
        num_classes=plan["space"]["num_classes"],
        recipe=asdict(plan_recipe(plan, epochs)),
        data=plan["data"]["settings"],
        data_fingerprint=plan["data"]["fingerprint"],
        seed=plan["seed"],
        kind=kind,
    )


def candidate_of(
    plan: Mapping[str, Any], network: Network, *, epochs: int | None = None, kind: str = "trial"
) -> Candidate:
    return Candidate(spec_of(plan, network.rdw, epochs=epochs, kind=kind), describe(network))


def candidates_of(
    plan: Mapping[str, Any], store: SearchStore, epochs: int | None = None
) -> list[Candidate]:
    """The candidates that are written down, in the order they were drawn.

    Ids are made anew. Figures that were written with the same id and multiply-adds are taken as they are: the full cost of
    ten thousand networks takes as long as the rest of a driver's start.
    """
    space, recipe = get_space(plan["space"]["name"]), plan_recipe(plan, epochs)
    # One specification's parts serve all: each of their own would be most of a long search's memory.
    any_spec = spec_of(plan, (1.0, 1.0, 1.0), epochs=epochs)
    # Samplers keep to the band, or near a c, within their tolerance.
    beyond = 2 * max(plan["space"]["band"][1], plan["sampler"].get("c", 0))
    found = []
    for drawn in store.candidates():
        network = space.network(drawn.rdw, any_spec.num_classes)
        if network.c > beyond:
            raise RequestError(
                f"candidates {store.at('candidates')} are damaged: {drawn.rdw} is beyond the plan's FLOPs: restore the file"
            )
        name = trial_id(space, network, recipe, any_spec.data_fingerprint, any_spec.seed)
        figures = _figures(drawn, name, network) or describe(network)
        found.append(
            Candidate.named(
                f"{name}-e{recipe.epochs}", replace(any_spec, rdw=tuple(network.rdw)), figures
            )
        )
    return found


def _figures(drawn: Drawn, name: str, network: Network) -> dict[str, Any] | None:
    """What was written of a network, if it is this one and all there."""
    written = drawn.network
    if drawn.id != name or not isinstance(written, Mapping):
        return None
    counted = {key: written.get(key) for key in ("params", "activations", "activation_bytes")}
    known = {
        "resolution": network.resolution,
        "macs": network.macs,
        "num_classes": network.num_classes,
    }
    whole = all(type(value) is int and value > 0 for value in counted.values())
    same = all(written.get(key) == value for key, value in known.items())
    return known | counted | {"c": network.c} if whole and same else None


def grow(plan: Mapping[str, Any], store: SearchStore, config: Config) -> list[Candidate]:
    """The search's candidates, after drawing as many more as are wanted; adaptive samplers draw while they run.

    The first n of a longer draw are the same n, so the batches together are one draw.
    """
    epochs = config.get_recipe().epochs
    there = candidates_of(plan, store, epochs)
    if len(there) >= config.search.trials or plan["sampler"]["name"] in ADAPTIVE:
        return there
    drawn = planned_networks(plan, config, config.search.trials)
    new = [candidate_of(plan, network, epochs=epochs) for network in drawn[len(there) :]]
    store.add_batch(len(there), new)
    return candidates_of(plan, store, epochs)


def planned_networks(plan: Mapping[str, Any], config: Config, trials: int) -> list[Network]:
    options = {key: value for key, value in plan["sampler"].items() if key != "name"}
    return draw(
        config.get_space(),
        plan["sampler"]["name"],
        trials,
        plan["seed"],
        num_classes=plan["space"]["num_classes"],
        **options,
    )


def final_candidates(store: SearchStore, named: str | None = None) -> list[Candidate]:
    """The final jobs that are written down.

    Args:
        named: repeats a user's own space, since importing what a file names would run code.

    Raises:
        RequestError: the file is damaged, or names a space of the user's own that ``named`` does not repeat.
    """
    specs = [TrialSpec.from_json(row["spec"]) for row in store.final_rows()]
    try:
        for space in {spec.space for spec in specs}:
            if foreign := foreign_space(space, named):
                raise RequestError(foreign)
        return [Candidate(spec, describe(spec.network())) for spec in specs]
    except RequestError as error:
        raise RequestError(
            f"{store.at(FINALS)} is damaged ({error}): remove it, it is made anew"
        ) from error


def training_macs(plan: Mapping[str, Any], candidate: Candidate) -> float:
    """Multiply-adds of a whole training, evaluations of raw and averaged weights included."""
    images = TRAIN_PASSES * plan["data"]["train"] + 2 * plan["data"]["val"]
    return candidate.network["macs"] * images * candidate.spec.recipe["epochs"]
