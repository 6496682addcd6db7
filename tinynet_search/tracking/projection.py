"""Maps a search and its trials to MLflow names, tags, params and metric points, as plain values.

Every point has the time stamp of the trial or the plan, so sending it again changes nothing. Used
by the publishers and the queries.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tinynet_search.mlflow_client.names import plain
from tinynet_search.store.directory import Candidate
from tinynet_search.store.schema import Plan
from trainables.result import EpochRecord, ResultSummary, TrialResult
from trainables.storage.documents import Json

KEY, KIND, SEARCH, ID = "tinynet.key", "tinynet.kind", "tinynet.search", "tinynet.id"
OWNER, STORAGE, SPACE = "tinynet.owner", "tinynet.storage", "tinynet.space"
PARENT, NOTE, USER = "mlflow.parentRunId", "mlflow.note.content", "mlflow.user"
FRONTIER_TAG, RANK_TAG, LABEL_TAG = "frontier", "pareto_rank", "label"

# Field of an epoch record by MLflow metric.
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
MAX_TAG_LENGTH = 500


class Point(NamedTuple):
    """One value of one metric; ``ts`` in ms since 1970."""

    key: str
    value: float
    ts: int
    step: int


def search_key(plan: Plan) -> str:
    """Return the permanent key of a search, which is independent of its directory."""
    return f"{plain(plan.search)}/{plan.id}"


def created_ms(plan: Plan) -> int:
    return plan.created * 1000


def search_tags(plan: Plan, storage: str) -> dict[str, str]:
    """Return the tags of the parent run.

    Args:
        plan: the plan.
        storage: address of the search directory, without credentials.
    """
    return {
        KEY: search_key(plan),
        KIND: "search",
        SEARCH: plan.search,
        SPACE: plan.space.name,
        STORAGE: storage,
        **owner_tags(plan.owner),
        NOTE: _note(plan),
        "mlflow.source.name": "tinynet search",
        "mlflow.source.type": "LOCAL",
    }


def owner_tags(owner: str) -> dict[str, str]:
    """Return the tags of a run's owner; MLflow's pages show its own tag."""
    return {OWNER: owner, USER: owner}


def search_params(plan: Plan) -> dict[str, str]:
    """Return the plan as params with dotted names: ``recipe.lr``, ``space.band``, ..."""
    values = {
        key: value
        for key, value in plan.to_json().items()
        if key not in ("schema", "search", "id", "owner", "experiment")
    }
    # A thousand class names are longer than a param may be.
    data = {key: value for key, value in values["data"].items() if key != "class_names"}
    return flat_params({**values, "data": data})


def flat_params(values: Mapping[str, Json]) -> dict[str, str]:
    """Return nested values as params with dotted names."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in _flat(values)
    }


def trial_name(candidate: Candidate) -> str:
    """Return a name that describes the network: by default, MLflow's table shows only the name."""
    r, d, w = candidate.spec.rdw
    final = "final · " if candidate.spec.kind == "final" else ""
    return f"{final}r{r:.2f} d{d:.2f} w{w:.2f} · {candidate.network.resolution}px"


def trial_tags(plan: Plan, candidate: Candidate, parent_id: str) -> dict[str, str]:
    return {
        KEY: trial_key(plan, candidate.run),
        KIND: candidate.spec.kind,
        SEARCH: plan.search,
        ID: candidate.id,
        PARENT: parent_id,
    }


def trial_key(plan: Plan, run: str) -> str:
    return f"{search_key(plan)}/{run}"


def trial_params(candidate: Candidate) -> dict[str, str]:
    spec = candidate.spec
    settings = {"epochs": spec.recipe.epochs, "recipe": spec.recipe.name, "seed": spec.seed}
    return {key: str(value) for key, value in (_figures(candidate) | settings).items()}


def figure_points(candidate: Candidate, created: int) -> list[Point]:
    """Return the figures of the network as metrics.

    They are params as well, but params are strings and cannot be compared as numbers.

    Args:
        candidate: the trial.
        created: time stamp in ms since 1970.
    """
    return [Point(key, float(value), created, 0) for key, value in _figures(candidate).items()]


def epoch_points(epochs: Iterable[EpochRecord]) -> list[Point]:
    return [
        Point(key, float(value), epoch.ts, epoch.epoch)
        for epoch in epochs
        for key, name in EPOCH_METRICS.items()
        # MLflow would convert infinity to the largest float.
        if math.isfinite(value := getattr(epoch, name))
    ]


def result_points(result: TrialResult) -> list[Point]:
    last = result.metrics
    if last is None:
        return []
    figures = {"final_top1": last.top1, "final_top5": last.top5}
    return [
        Point(name, float(value), last.ts, last.epoch)
        for name, value in figures.items()
        if math.isfinite(value)
    ]


def result_tags(result: TrialResult) -> dict[str, str]:
    """Return the reason of a failure as tags; empty if the trial did not fail."""
    texts = {"reason": result.reason, "detail": result.detail}
    return {key: text[:MAX_TAG_LENGTH] for key, text in texts.items() if text}


def begun_ms(epochs: Sequence[EpochRecord], result: TrialResult | None) -> int:
    """Return when a trial started, in ms since 1970.

    The first epoch counts, because the result of a resumed trial has the start of its last attempt
    only.
    """
    starts = [int(epochs[0].ts - 1000 * epochs[0].seconds)] if epochs else []
    starts += [int(result.started * 1000)] if result else []
    return min(starts)


def ended_ms(result: TrialResult | ResultSummary) -> int:
    return int(result.ended * 1000)


def _figures(candidate: Candidate) -> dict[str, int | float]:
    (r, d, w), network = candidate.spec.rdw, candidate.network
    names = ("c", "macs", "params", "resolution", "activation_bytes")
    return {"r": r, "d": d, "w": w, **{name: getattr(network, name) for name in names}}


def _flat(values: Mapping[str, Json], prefix: str = "") -> Iterable[tuple[str, Json]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _note(plan: Plan) -> str:
    space, recipe = plan.space, plan.recipe
    return (
        f"**Search `{plan.search}`** over resolution, depth and width (r, d, w) of "
        f"`{space.name}`: each child run is one trained network, with the recipe `{recipe.name}` "
        f"and {recipe.epochs} epochs.\n\n"
        f"- Frontier: filter `tags.{FRONTIER_TAG} = 'true'`, or in Python "
        f"`frontier_models({plan.search!r})`.\n"
        "- `c` is the FLOPs (multiply-adds) relative to the baseline, `macs` the multiply-adds, "
        "`resolution` in pixels.\n"
        "- `activation_bytes` is the peak memory of feature maps in inference at batch 1, "
        "float32.\n"
        "- `final_top1` (percent) is that of the last epoch, by which trials are ranked.\n"
        "- Artifacts: `frontier.json`, `frontier.csv`, `formula.json`; the formula is a version "
        "of the registered model that the tag `tinynet.model` names.\n"
    )
