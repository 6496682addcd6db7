"""Creates the plan of a search, and compares a configuration with the plan that exists.

Called by the driver and by previews; training jobs use its data checks.
"""

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
    new_id,
    validating,
)
from trainables.data import ImageData, open_data
from trainables.recipe import Recipe

# The value of a field in which a plan and a configuration are compared.
FieldValue = str | int | float | bool | None | tuple[float, ...]


def make_plan(inputs: PlanInputs) -> Plan:
    """The plan of a configuration. Opens the data for its fingerprint and classes.

    Raises:
        RequestError: the data is missing or unusable, or a user-defined space has a name, version
            or ranges that are not valid in a plan.
    """
    space, recipe, search = inputs.space, inputs.recipe, inputs.search
    data = open_data(inputs.data)
    check_batch(data, recipe)
    with validating(f"a plan of the space {inputs.space_name!r}"):
        return Plan(
            version=SCHEMA,
            search=inputs.name,
            id=new_id(),
            owner=inputs.owner,
            experiment=inputs.experiment,
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
                class_names=list(data.class_names),
                largest_pixels=data.largest_pixels or None,
            ),
            seed=search.seed,
            frontier=FrontierRule(fraction=search.fraction, minimum=search.minimum),
            ranks=recipe.ranks,
            created=int(time.time()),
        )


def check_batch(data: ImageData, recipe: Recipe) -> None:
    """Raise RequestError if there are fewer training images than one batch."""
    if data.train_size < recipe.batch:
        raise RequestError(
            f"{data.train_size} training images are fewer than one batch of {recipe.batch}: "
            "set recipe.batch and recipe.micro_batch"
        )


def packing_warning(max_pixels: int | None, resolutions: Iterable[int]) -> str | None:
    """A warning if networks use a higher resolution than the packed data; None otherwise.

    Args:
        max_pixels: the resolution that the data were packed for, None if they were not packed.
        resolutions: the resolutions of the networks, in pixels.
    """
    larger = [pixels for pixels in resolutions if max_pixels and pixels > max_pixels]
    if not larger:
        return None
    return (
        f"the data were packed for up to {max_pixels} pixels: {len(larger)} networks of more than "
        f"{max_pixels} pixels (up to {max(larger)}) will train on enlarged images; "
        f"pack the data again with --pixels {max(larger)}"
    )


def load_or_create_plan(store: SearchStore, inputs: PlanInputs) -> Plan:
    """The plan of a search: the existing plan if the configuration matches it, else a new plan.

    The data may have moved since the plan was written, and the user may choose another experiment.
    The returned plan has the path and the experiment in the configuration; the file does not
    change.

    Raises:
        RequestError: the plan is damaged, or the configuration differs from it in a setting that
            decides results.
    """
    requested = make_plan(inputs)
    plan = store.written_plan()
    if plan is None:
        if store.folder.exists(JOB):
            raise RequestError(f"{store.url} is a training job: set a different search.name")
        if not inputs.adaptive:
            # Fails before the plan is written if the band contains no networks.
            planned_networks(requested, inputs.search.trials)
        store.write_json(PLAN, requested.to_json(), once=True)
        plan = store.written_plan()
    assert plan is not None
    require_same_plan(store, plan, requested)
    plan = plan.with_data_at(requested.data.settings)
    return plan.model_copy(update={"experiment": requested.experiment or plan.experiment})


def require_same_plan(store: SearchStore, plan: Plan, requested: Plan) -> None:
    """Raise RequestError with all differences if two plans would give different results."""
    old, new = _decisive_fields(plan), _decisive_fields(requested)
    changed = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    if changed:
        differences = "; ".join(
            f"{key} was {_format(old.get(key))}, now {_format(new.get(key))}" for key in changed
        )
        raise RequestError(
            f"search {store.url} does not match its plan: {differences}; "
            "use a different search.name, or the settings of the plan"
        )


def _format(value: FieldValue) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _decisive_fields(plan: Plan) -> dict[str, FieldValue]:
    """The fields of a plan that must not change, by dotted name.

    These are all fields except the id, the owner, the experiment, the number of epochs, the name of
    the recipe, the path and the class names of the data (its fingerprint covers them), and dates.
    """
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
