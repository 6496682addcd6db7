"""What a configuration would train and what that costs, with nothing written.

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
from tinynet_search.plan.plan import make_plan, refuse_difference, too_large
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.schema import PlannedData, PlannedSampler, PlannedSpace
from trainables.recipe import Recipe


@dataclass(frozen=True)
class PreviewRow:
    """A candidate and its cost.

    Attributes:
        training_macs: multiply-adds of its whole training; done: whether it has a result.
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
    """What a search will train.

    Attributes:
        trials: in all; adaptive: whether they are drawn while the search runs, so that ``candidates`` is empty.
        warning: that networks want more pixels than the data were packed for; continued: what follows on the frontier.
        checkpoint_bytes_peak: of one running trial; weights_bytes, kept_bytes: of all at the end.
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
        """Of another machine's ``tinynet check``. Raises ValueError where it is not one."""
        return _PREVIEW.validate_python(values)


_PREVIEW = TypeAdapter(Preview)


def preview(inputs: PlanInputs) -> Preview:
    """The candidates of a configuration and their cost, with nothing written; those that have a result are marked."""
    plan, search = make_plan(inputs), inputs.search
    store = SearchStore(inputs.url)
    if (there := store.written_plan()) is not None:
        refuse_difference(store, there, plan)
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
    left = [row for row in rows if not row.done]
    params = sum(row.params for row in left)
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
        warning=too_large(plan.data.largest_pixels, (row.resolution for row in rows)),
        training_macs_left=sum(row.training_macs for row in left),
        continued=_continued(store, inputs),
        checkpoint_bytes_peak=max((row.params for row in left), default=0)
        * CHECKPOINT_BYTES_PER_PARAM,
        weights_bytes=params * 4,
        kept_bytes=params * CHECKPOINT_BYTES_PER_PARAM // 2 if plan.recipe.continues else 0,
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
    """What ``search.frontier_epochs`` adds."""
    epochs = inputs.search.frontier_epochs
    if epochs is None:
        return None
    since = 0 if inputs.search.anew else inputs.recipe.epochs
    how = f"from epoch {since} to {epochs}" if since else f"for {epochs} epochs, from the start"
    finished, models = store.finished(), store.frontier_rows()
    if models is None:
        return f"then the frontier's models train {how}"
    left = [row for row in models if row.run.with_epochs(epochs) not in finished]
    return f"then {len(left)} of the frontier's {len(models)} models train {how}"
