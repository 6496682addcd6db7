"""Plans: what will be trained, written once, and what it will cost, before anything runs."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from search_spaces import RequestError
from search_spaces.samplers import ADAPTIVE
from tinynet_search.config import Config
from tinynet_search.plan.candidates import planned_networks
from tinynet_search.store.directory import JOB, PLAN, SCHEMA, SearchStore
from trainables.data import ImageData, open_data
from trainables.recipe import Recipe, recipe_from


def make_plan(config: Config) -> dict[str, Any]:
    """The plan that a configuration asks for. Opens the data for its fingerprint and classes.

    Raises:
        RequestError: the data is missing or unusable.
    """
    space, recipe = config.get_space(), config.get_recipe()
    data = open_data(config.data_settings())
    check_batch(data, recipe)
    return {
        "schema": SCHEMA,
        "search": config.search.name,
        "space": {
            "name": space.name if ":" not in config.space.name else config.space.name,
            "version": space.version,
            "num_classes": len(data.class_names),
            "ranges": {key: list(value) for key, value in space.ranges.items()},
            "band": list(space.band),
        },
        "sampler": {
            "name": config.search.sampler,
            **({"c": config.search.c, "tol": config.search.tol} if config.search.c else {}),
        },
        "recipe": asdict(recipe),
        "data": _described(config, data),
        "seed": config.search.seed,
        "frontier": {"fraction": config.search.fraction, "minimum": config.search.minimum},
        "ranks": recipe.ranks,
        "created": int(time.time()),
    }


def check_batch(data: ImageData, recipe: Recipe) -> None:
    """Raises RequestError where the training images do not fill one batch."""
    if data.train_size < recipe.batch:
        raise RequestError(
            f"{data.train_size} training images are fewer than one batch of {recipe.batch}: set recipe.batch and recipe.micro_batch"
        )


def _described(config: Config, data: ImageData) -> dict[str, Any]:
    counts = {"fingerprint": data.fingerprint, "train": data.train_size, "val": data.val_size}
    largest = getattr(data, "largest_pixels", None)
    return {
        "settings": config.data_settings(),
        **counts,
        **({"largest_pixels": largest} if largest else {}),
    }


def too_large(plan: Mapping[str, Any], resolutions: Iterable[int]) -> str | None:
    """One line where networks want more pixels than a packed set was made for; None where they do not."""
    largest = plan["data"].get("largest_pixels")
    beyond = [pixels for pixels in resolutions if largest and pixels > largest]
    if not beyond:
        return None
    what = f"{len(beyond)} networks of more than {largest} pixels (up to {max(beyond)}) will see enlarged images"
    return f"the data were packed for up to {largest} pixels: {what}; pack them with --pixels {max(beyond)} to mend it"


def agreed_plan(store: SearchStore, config: Config) -> dict[str, Any]:
    """The search's plan: written now if there is none, else the one that is there, if the configuration agrees.

    The same data may lie elsewhere by now: what is returned has the configuration's place, the file is left as it is.

    Raises:
        RequestError: the plan is damaged, or differs from the configuration in what decides results.
    """
    asked = make_plan(config)
    if store.written_plan() is None:
        if store.folder.exists(JOB):
            raise RequestError(
                f"{store.url} is a training job: give the search another search.name"
            )
        if config.search.sampler not in ADAPTIVE:
            planned_networks(
                asked, config, config.search.trials
            )  # a band without networks leaves nothing behind
        store.write_json(PLAN, asked, once=True)
    there = store.written_plan()
    assert there is not None
    refuse_difference(store, there, asked)
    return {**there, "data": {**there["data"], "settings": asked["data"]["settings"]}}


def refuse_difference(
    store: SearchStore, there: Mapping[str, Any], asked: Mapping[str, Any]
) -> None:
    """Raises RequestError where a plan and what is asked for differ in what decides results: every difference is shown."""
    old, new = _flat(_decisive(there)), _flat(_decisive(asked))
    changed = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    if changed:
        shown = "; ".join(f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in changed)
        raise RequestError(
            f"search {store.url} was planned otherwise: {shown}; use another search.name, or the plan's settings"
        )


def _decisive(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change: everything but the number of epochs, the recipe's name, where the data lies, and dates."""
    recipe = recipe_from(plan["recipe"]).identity()
    kept = {key: plan[key] for key in ("space", "sampler", "seed", "frontier", "ranks")}
    return {**kept, "recipe": recipe, "data": plan["data"]["fingerprint"]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat
