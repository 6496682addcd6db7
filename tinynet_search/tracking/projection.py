"""What a search and its trials look like in MLflow: names, tags, params and points in time, as plain values.

Every point carries the trial's own time stamp (or the plan's), so sending it again changes nothing.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tinynet_search.store.directory import Candidate

KEY, KIND, SEARCH, ID = "tinynet.key", "tinynet.kind", "tinynet.search", "tinynet.id"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
FRONTIER_TAG, RANK_TAG, LABEL_TAG = "frontier", "pareto_rank", "label"

# An epoch record's keys by the metric they become; what an older record lacks is left out.
EPOCH_METRICS = {
    **{
        f"{name}{which}": f"{name}{which}"
        for name in ("top1", "top5", "val_loss")
        for which in ("", "_raw", "_ema")
    },
    "train_loss": "train_loss",
    "lr": "lr",
    "images_per_s": "images_per_s",
    "epoch_seconds": "seconds",
}
STATUS = {"finished": "FINISHED", "failed": "FAILED"}
LONGEST = 500


class Point(NamedTuple):
    """One value of one metric; ``ts`` in ms since 1970."""

    key: str
    value: float
    ts: int
    step: int


def experiment_name(space: str) -> str:
    """One experiment a space; MLflow's pages show only what follows the last slash of a name."""
    return f"tinynet-{plain(space)}"


def search_key(plan: Mapping[str, Any]) -> str:
    """Names a search for good: what its plan was when it was written, wherever its directory is reached or moved to."""
    decides = [
        plan["search"],
        plan["space"]["name"],
        plan["space"]["version"],
        plan["seed"],
        plan["data"]["fingerprint"],
        plan.get("created"),
    ]
    return (
        f"{plain(plan['search'])}/{hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:10]}"
    )


def created_ms(plan: Mapping[str, Any]) -> int:
    return int(plan.get("created", 0) * 1000)


def search_tags(plan: Mapping[str, Any]) -> dict[str, str]:
    return {
        KEY: search_key(plan),
        KIND: "search",
        SEARCH: plan["search"],
        NOTE: _note(plan),
        "mlflow.source.name": "tinynet search",
        "mlflow.source.type": "LOCAL",
    }


def search_params(plan: Mapping[str, Any]) -> dict[str, str]:
    """The plan, flattened: ``recipe.lr``, ``space.band``, ..."""
    return flat_params(
        {key: value for key, value in plan.items() if key not in ("schema", "search")}
    )


def flat_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as params with dotted names."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in _flat(values)
    }


def trial_name(candidate: Candidate) -> str:
    """MLflow's table shows no other column at first, so the name says what the network is."""
    r, d, w = candidate.spec.rdw
    final = "final · " if candidate.spec.kind == "final" else ""
    return f"{final}r{r:.2f} d{d:.2f} w{w:.2f} · {candidate.network['resolution']}px"


def trial_tags(plan: Mapping[str, Any], candidate: Candidate, parent_id: str) -> dict[str, str]:
    return {
        KEY: trial_key(plan, candidate.run),
        KIND: candidate.spec.kind,
        SEARCH: plan["search"],
        ID: candidate.id,
        PARENT: parent_id,
    }


def trial_key(plan: Mapping[str, Any], run: str) -> str:
    return f"{search_key(plan)}/{run}"


def trial_params(candidate: Candidate) -> dict[str, str]:
    settings = {
        "epochs": candidate.spec.recipe["epochs"],
        "recipe": candidate.spec.recipe["name"],
        "seed": candidate.spec.seed,
    }
    return {key: str(value) for key, value in (_figures(candidate) | settings).items()}


def figure_points(candidate: Candidate, created: int) -> list[Point]:
    """The network's figures as metrics too, ``created`` ms since 1970: params are strings, and cannot be compared as numbers."""
    return [Point(key, float(value), created, 0) for key, value in _figures(candidate).items()]


def epoch_points(epochs: Iterable[Mapping[str, Any]]) -> list[Point]:
    return [
        Point(key, float(epoch[name]), int(epoch["ts"]), epoch["epoch"])
        for epoch in epochs
        for key, name in EPOCH_METRICS.items()
        if _finite(epoch.get(name))
    ]


def result_points(result: Mapping[str, Any]) -> list[Point]:
    last, metrics = result["epochs"][-1] if result["epochs"] else None, result["metrics"]
    if last is None:
        return []
    final = [(f"final_{name}", metrics.get(name)) for name in ("top1", "top5")]
    return [
        Point(name, float(value), int(last["ts"]), last["epoch"])
        for name, value in final
        if _finite(value)
    ]


def result_tags(result: Mapping[str, Any]) -> dict[str, str]:
    """Why a trial failed; nothing for one that did not."""
    return {key: str(result[key])[:LONGEST] for key in ("reason", "detail") if result.get(key)}


def begun_ms(epochs: list[dict[str, Any]], result: Mapping[str, Any] | None) -> int:
    """When the trial began: a resumed trial's result knows its last attempt only."""
    starts = [int(epochs[0]["ts"] - 1000 * epochs[0].get("seconds", 0))] if epochs else []
    starts += [int(result["started"] * 1000)] if result else []
    return min(starts)


def ended_ms(result: Mapping[str, Any]) -> int:
    return int(result["ended"] * 1000)


def _figures(candidate: Candidate) -> dict[str, Any]:
    r, d, w = candidate.spec.rdw
    network = candidate.network
    # Candidates written before peak memory was counted have none.
    whole = [key for key in ("macs", "params", "resolution", "activation_bytes") if key in network]
    return {"r": r, "d": d, "w": w, "c": network["c"], **{key: network[key] for key in whole}}


def _finite(value: Any) -> bool:
    """MLflow would turn infinity into the largest float there is."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def plain(name: str) -> str:
    """A name as MLflow takes it anywhere."""
    return re.sub(r"[^\w.@=+-]", "-", name)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _note(plan: Mapping[str, Any]) -> str:
    space, recipe = plan["space"], plan["recipe"]
    return (
        f"**Search `{plan['search']}`** over resolution, depth and width (r, d, w) of `{space['name']}`: each child run is one "
        f"trained network, by the recipe `{recipe['name']}`, {recipe['epochs']} epochs.\n\n"
        f"- Frontier: filter `tags.{FRONTIER_TAG} = 'true'`, or in Python `frontier_models({plan['search']!r})`.\n"
        "- `c` is FLOPs (multiply-adds) over the baseline's, `macs` the multiply-adds, `resolution` pixels.\n"
        "- `activation_bytes` is the peak memory of feature maps in inference at batch 1, float32.\n"
        "- `final_top1` (percent) is the last epoch's, which ranks.\n"
        "- Artifacts: `frontier.json`, `frontier.csv`, `formula.json`; the formula is the registered model `tiny-formula`.\n"
    )
