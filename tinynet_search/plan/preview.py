"""What a configuration would train and what that costs, with nothing written.

Called by ``tinynet search --dry-run``, ``tinynet check`` and ``tinynet submit``.
"""

from typing import Any

from search_spaces.samplers import ADAPTIVE
from tinynet_search.config import Config
from tinynet_search.plan.candidates import (
    CHECKPOINT_BYTES_PER_PARAM,
    candidate_of,
    planned_networks,
    training_macs,
)
from tinynet_search.plan.plan import make_plan, refuse_difference, too_large
from tinynet_search.store.directory import SearchStore


def preview(config: Config) -> dict[str, Any]:
    """The candidates of a configuration and their cost, with nothing written; those that have a result are marked."""
    plan = make_plan(config)
    store = SearchStore(config.url)
    if (there := store.written_plan()) is not None:
        refuse_difference(store, there, plan)
    epochs, adaptive = config.get_recipe().epochs, config.search.sampler in ADAPTIVE
    networks = [] if adaptive else planned_networks(plan, config, config.search.trials)
    candidates = [candidate_of(plan, network, epochs=epochs) for network in networks]
    there = store.finished()
    rows = [
        {
            "id": c.id,
            "r": c.spec.rdw[0],
            "d": c.spec.rdw[1],
            "w": c.spec.rdw[2],
            **{
                key: c.network[key]
                for key in ("resolution", "macs", "params", "activations", "activation_bytes", "c")
            },
            "training_macs": training_macs(plan, c),
            "done": c.run in there,
        }
        for c in candidates
    ]
    left = [row for row in rows if not row["done"]]
    return {
        "search": config.search.name,
        "directory": store.url,
        "space": plan["space"],
        "sampler": plan["sampler"],
        "recipe": plan["recipe"],
        "data": plan["data"],
        "trials": config.search.trials,
        "adaptive": adaptive,
        "candidates": rows,
        "warning": too_large(plan, (row["resolution"] for row in rows)),
        "training_macs_left": sum(row["training_macs"] for row in left),
        "continued": _continued(store, config),
        "checkpoint_bytes_peak": max((row["params"] for row in left), default=0)
        * CHECKPOINT_BYTES_PER_PARAM,
        "weights_bytes": sum(row["params"] for row in left) * 4,
        "kept_bytes": sum(row["params"] for row in left) * CHECKPOINT_BYTES_PER_PARAM // 2
        if config.get_recipe().continues
        else 0,
    }


def _continued(store: SearchStore, config: Config) -> str | None:
    """What ``search.frontier_epochs`` adds."""
    if config.search.frontier_epochs is None:
        return None
    epochs, since = (
        config.search.frontier_epochs,
        0 if config.search.anew else config.get_recipe().epochs,
    )
    how = f"from epoch {since} to {epochs}" if since else f"for {epochs} epochs, from the start"
    there, models = store.finished(), store.frontier_rows()
    if models is None:
        return f"then the frontier's models train {how}"
    left = [row for row in models if f"{row['id']}-e{epochs}" not in there]
    return f"then {len(left)} of the frontier's {len(models)} models train {how}"
