"""Plans: what will be trained, written once, and what it will cost, before anything runs."""

import time
from collections.abc import Iterable

from search_spaces import RequestError
from tinynet_search.config import PlanInputs
from tinynet_search.plan.candidates import planned_networks
from tinynet_search.store.directory import JOB, PLAN, SearchStore
from tinynet_search.store.schema import (
    SCHEMA,
    FrontierRule,
    Plan,
    PlannedData,
    PlannedSampler,
    PlannedSpace,
    refusing,
)
from trainables.data import ImageData, open_data
from trainables.recipe import Recipe

# What a plan and a request may differ in, shown by its dotted name.
Shown = str | int | float | bool | None | tuple[float, ...]


def make_plan(inputs: PlanInputs) -> Plan:
    """The plan of a configuration. Opens the data for its fingerprint and classes.

    Raises:
        RequestError: the data is missing or unusable, or a space of the user's own has a name, version or ranges that no
            plan takes.
    """
    space, recipe, search = inputs.space, inputs.recipe, inputs.search
    data = open_data(inputs.data)
    check_batch(data, recipe)
    with refusing(f"a plan of the space {inputs.space_name!r}"):
        return Plan(
            version=SCHEMA,
            search=inputs.name,
            space=PlannedSpace(
                name=inputs.space_name,
                version=space.version,
                num_classes=len(data.class_names),
                ranges={"r": space.ranges["r"], "d": space.ranges["d"], "w": space.ranges["w"]},
                band=space.band,
            ),
            sampler=PlannedSampler(
                name=search.sampler, **({"c": search.c, "tol": search.tol} if search.c else {})
            ),
            recipe=recipe,
            data=PlannedData(
                settings=dict(inputs.data),
                fingerprint=data.fingerprint,
                train=data.train_size,
                val=data.val_size,
                largest_pixels=data.largest_pixels or None,
            ),
            seed=search.seed,
            frontier=FrontierRule(fraction=search.fraction, minimum=search.minimum),
            ranks=recipe.ranks,
            created=int(time.time()),
        )


def check_batch(data: ImageData, recipe: Recipe) -> None:
    """Raises RequestError where the training images do not fill one batch."""
    if data.train_size < recipe.batch:
        raise RequestError(
            f"{data.train_size} training images are fewer than one batch of {recipe.batch}: set recipe.batch and recipe.micro_batch"
        )


def too_large(largest: int | None, resolutions: Iterable[int]) -> str | None:
    """One line where networks want more pixels than a packed set was made for; None where they do not.

    Args:
        largest: pixels that the data were packed for, None where they were not packed.
    """
    beyond = [pixels for pixels in resolutions if largest and pixels > largest]
    if not beyond:
        return None
    what = f"{len(beyond)} networks of more than {largest} pixels (up to {max(beyond)}) will see enlarged images"
    return f"the data were packed for up to {largest} pixels: {what}; pack them with --pixels {max(beyond)} to mend it"


def agreed_plan(store: SearchStore, inputs: PlanInputs) -> Plan:
    """The search's plan: written now if there is none, else the one that is there, if the configuration agrees.

    The same data may lie elsewhere by now: what is returned has the configuration's place, the file is left as it is.

    Raises:
        RequestError: the plan is damaged, or differs from the configuration in what decides results.
    """
    asked = make_plan(inputs)
    there = store.written_plan()
    if there is None:
        if store.folder.exists(JOB):
            raise RequestError(
                f"{store.url} is a training job: give the search another search.name"
            )
        if not inputs.adaptive:
            # A band without networks leaves nothing behind.
            planned_networks(asked, inputs.search.trials)
        store.write_json(PLAN, asked.to_json(), once=True)
        there = store.written_plan()
    assert there is not None
    refuse_difference(store, there, asked)
    return there.with_data_at(asked.data.settings)


def refuse_difference(store: SearchStore, there: Plan, asked: Plan) -> None:
    """Raises RequestError where a plan and what is asked for differ in what decides results: every difference is shown."""
    old, new = _decisive(there), _decisive(asked)
    changed = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    if changed:
        shown = "; ".join(
            f"{key} was {_shown(old.get(key))}, now {_shown(new.get(key))}" for key in changed
        )
        raise RequestError(
            f"search {store.url} was planned otherwise: {shown}; use another search.name, or the plan's settings"
        )


def _shown(value: Shown) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _decisive(plan: Plan) -> dict[str, Shown]:
    """What may not change: everything but the number of epochs, the recipe's name, where the data lies, and dates."""
    space, sampler, frontier = plan.space, plan.sampler, plan.frontier
    return {
        "space.name": space.name,
        "space.version": space.version,
        "space.num_classes": space.num_classes,
        **{f"space.ranges.{key}": span for key, span in space.ranges.items()},
        "space.band": space.band,
        "sampler.name": sampler.name,
        **{f"sampler.{key}": value for key, value in sampler.options.items()},
        "seed": plan.seed,
        **{f"frontier.{key}": value for key, value in frontier.model_dump().items()},
        "ranks": plan.ranks,
        **{f"recipe.{key}": value for key, value in plan.recipe.identity().items()},
        "data": plan.data.fingerprint,
    }
