"""Previews the candidates of a configuration and their cost, without writing files.

Called by ``tinynet search --dry-run``, ``tinynet check`` and ``tinynet submit``.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from tinynet_search.config import PlanInputs
from tinynet_search.plan.candidates import (
    CHECKPOINT_BYTES_PER_PARAM,
    candidate_of,
    planned_networks,
    training_macs,
)
from tinynet_search.plan.plan import make_plan, packing_warning, require_same_plan
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.schema import PlannedData, PlannedSampler, PlannedSpace
from trainables.recipe import Recipe


@dataclass(frozen=True)
class PreviewRow:
    """A candidate and its cost.

    Attributes:
        id: the id of the trial.
        r, d, w: the multipliers of resolution, depth and width.
        resolution: in pixels.
        macs: multiply-adds of one forward pass.
        params: the number of parameters.
        activations: elements of all feature maps.
        activation_bytes: peak memory of feature maps in inference at batch 1, float32.
        c: the FLOPs as a fraction of the baseline's.
        training_macs: multiply-adds of the complete training.
        done: whether the candidate has a result.
    """

    id: str
    r: float
    d: float
    w: float
    resolution: int
    macs: int
    params: int
    activations: int
    activation_bytes: int
    c: float
    training_macs: int
    done: bool


@dataclass(frozen=True)
class Preview:
    """The trainings of a search and their cost.

    Attributes:
        search: the name of the search.
        directory: the URL of the search directory.
        space, sampler, recipe, data: as in the plan.
        trials: the total number of trials.
        adaptive: whether the candidates are drawn while the search runs; ``candidates`` is empty
            then.
        candidates: the candidates and their cost.
        warning: the message of ``packing_warning``, None without a warning.
        training_macs_left: training multiply-adds of the candidates without a result.
        continued: one line on the longer training of the frontier's models, None without one.
        checkpoint_bytes_peak: the largest size of the checkpoints of one running trial.
        weights_bytes: the weights of all remaining trials at the end.
        kept_bytes: the checkpoints that all remaining trials keep at the end.
    """

    search: str
    directory: str
    space: PlannedSpace
    sampler: PlannedSampler
    recipe: Recipe
    data: PlannedData
    trials: int
    adaptive: bool
    candidates: list[PreviewRow]
    warning: str | None
    training_macs_left: int
    continued: str | None
    checkpoint_bytes_peak: int
    weights_bytes: int
    kept_bytes: int

    def to_json(self) -> dict[str, Any]:
        return _PREVIEW.dump_python(self, mode="json", exclude_none=False) | {
            "sampler": {"name": self.sampler.name, **self.sampler.options},
            "recipe": asdict(self.recipe),
            "data": self.data.to_json(),
        }

    @classmethod
    def from_json(cls, values: Any) -> "Preview":
        """The preview in the output of ``tinynet check --json``.

        Raises:
            ValueError: the values are not a preview.
        """
        return _PREVIEW.validate_python(values)


_PREVIEW = TypeAdapter(Preview)


def preview(inputs: PlanInputs) -> Preview:
    """Preview a search without writing files. Candidates with a result are marked as done.

    Raises:
        RequestError: as ``load_or_create_plan``.
    """
    plan, search = make_plan(inputs), inputs.search
    store = SearchStore(inputs.url)
    existing = store.written_plan()
    if existing is not None:
        require_same_plan(store, existing, plan)
    networks = [] if inputs.adaptive else planned_networks(plan, search.trials)
    finished = store.finished()
    rows = [
        _row(
            candidate,
            training_macs(candidate, plan.data.train, plan.data.val),
            candidate.run in finished,
        )
        for candidate in (candidate_of(plan, network) for network in networks)
    ]
    remaining = [row for row in rows if not row.done]
    params = sum(row.params for row in remaining)
    return Preview(
        search=plan.search,
        directory=store.url,
        space=plan.space,
        sampler=plan.sampler,
        recipe=plan.recipe,
        data=plan.data,
        trials=search.trials,
        adaptive=inputs.adaptive,
        candidates=rows,
        warning=packing_warning(plan.data.largest_pixels, (row.resolution for row in rows)),
        training_macs_left=sum(row.training_macs for row in remaining),
        continued=_continued(store, inputs),
        checkpoint_bytes_peak=max((row.params for row in remaining), default=0)
        * CHECKPOINT_BYTES_PER_PARAM,
        weights_bytes=params * 4,
        kept_bytes=params * CHECKPOINT_BYTES_PER_PARAM // 2 if plan.recipe.extendable else 0,
    )


def _row(candidate: Candidate, macs: int, done: bool) -> PreviewRow:
    (r, d, w), network = candidate.spec.rdw, candidate.network
    return PreviewRow(
        candidate.id,
        r,
        d,
        w,
        network.resolution,
        network.macs,
        network.params,
        network.activations,
        network.activation_bytes,
        network.c,
        macs,
        done,
    )


def _continued(store: SearchStore, inputs: PlanInputs) -> str | None:
    """One line on the trainings that ``search.frontier_epochs`` adds, None if it is not set."""
    epochs = inputs.search.frontier_epochs
    if epochs is None:
        return None
    first = 0 if inputs.search.from_scratch else inputs.recipe.epochs
    span = f"from epoch {first} to {epochs}" if first else f"for {epochs} epochs, from the start"
    finished, models = store.finished(), store.frontier_rows()
    if models is None:
        return f"then the frontier's models train {span}"
    remaining = [row for row in models if row.run.with_epochs(epochs) not in finished]
    return f"then {len(remaining)} of the frontier's {len(models)} models train {span}"
