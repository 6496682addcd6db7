"""The runs of a search or a job in MLflow: found by tag, created where missing, never twice.

A server may commit a run whose answer is lost, and the client then asks again. So every creation is followed by
another look at what is running, as a new run is, and of several runs under one key all but one are deleted. One
publisher a search or job at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tinynet_search.errors import TrackingError
from tinynet_search.mlflow_client.connection import address, connect, database_file, search_runs
from tinynet_search.mlflow_client.sqlite import ARTIFACTS
from tinynet_search.tracking.projection import (
    FRONTIER_TAG,
    KEY,
    LABEL_TAG,
    RANK_TAG,
    STATUS,
    Point,
    experiment_name,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

METRICS_A_BATCH, OTHERS_A_BATCH = 1000, 100
UNFINISHED, ENDED = ("RUNNING", "SCHEDULED"), tuple(STATUS.values())
_REMEMBERED = (FRONTIER_TAG, RANK_TAG, LABEL_TAG)


def experiment_of(client: "MlflowClient", uri: str, space: str) -> "Experiment":
    """Every search and job of a space is in one experiment.

    Raises:
        TrackingError: someone has deleted it.
    """
    from mlflow.exceptions import MlflowException

    name = experiment_name(space)
    path = database_file(uri)
    place = None
    if path is not None:
        # Without a server the artifacts' place is ours to choose: MLflow's default is the working directory.
        path.parent.mkdir(parents=True, exist_ok=True)
        place = (path.parent / ARTIFACTS / name).as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        where = f"experiment {name} at {address(uri)}"
        raise TrackingError(
            f"{where} is deleted: restore it (mlflow experiments restore), or name another server"
        )
    return found


class Wanted(NamedTuple):
    """A run that there is to be; ``start`` in ms."""

    name: str
    start: int
    tags: Mapping[str, str]


@dataclass(slots=True)
class Child:
    """What is remembered of a run: MLflow's own record takes tens of kilobytes, and a search has thousands.

    Attributes:
        end: in ms, None before there is one.
        tags: those that may change.
        params: names of the params that are there, of a run that has not ended.
    """

    run_id: str
    key: str
    status: str
    end: int | None
    tags: dict[str, str]
    params: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, run: "Run") -> "Child":
        info, tags = run.info, run.data.tags
        remembered = {key: tags[key] for key in _REMEMBERED if key in tags}
        params = set() if info.status in ENDED else set(run.data.params)
        return cls(
            info.run_id, tags.get(KEY, info.run_id), info.status, info.end_time, remembered, params
        )

    @property
    def ended(self) -> bool:
        """Whether its last status was sent, and with it everything."""
        return self.status in ENDED


class Runs(ABC):
    """Runs of one space's experiment, by key. To be used within ``reaching``; ``what`` is a search or job, for messages.

    Attributes:
        unsettled: an answer to a creation may have been lost, so the next thing to do is ``settle``.
    """

    def __init__(self, uri: str, space: str, what: str) -> None:
        self.uri, self.what = uri, what
        self.client = connect(uri)
        self.experiment = experiment_of(self.client, uri, space)
        self.children: dict[str, Child] = {}
        self.unsettled = False
        self._doubtful: set[str] = set()
        self.refresh()

    @property
    def experiment_id(self) -> str:
        return self.experiment.experiment_id

    @property
    @abstractmethod
    def _mine(self) -> str:
        """The filter that finds the children."""

    def refresh(self) -> None:
        """Look at all children anew, and delete the losers of lost answers."""
        self.children = {}
        self._adopt(self._found(self._mine))
        self.unsettled, self._doubtful = False, set()

    def settle(self) -> None:
        """Take up what lost answers left: the runs that run, and those whose deletion may have failed."""
        self._adopt(self._found(f"{self._mine} and attributes.status = 'RUNNING'"))
        for key in sorted(self._doubtful):
            self._adopt(self._found(f"tags.`{KEY}` = '{key}'"))
            self._doubtful.discard(key)
        self.unsettled = False

    def ensure(self, wanted: Iterable[Wanted]) -> None:
        """Create the runs that are missing, by ``tags[KEY]``, and look once for what lost answers doubled."""
        missing = {run.tags[KEY]: run for run in wanted if run.tags[KEY] not in self.children}
        if not missing:
            return
        self.unsettled = True
        made = {key: self._created(run) for key, run in missing.items()}
        self.settle()
        for run in made.values():  # a replica that lags does not show them yet
            self.children.setdefault(run.data.tags[KEY], Child.of(run))

    def discard(self, child: Child) -> None:
        """Delete a child whose history is no longer the storage's; another may be created under its key."""
        self.children.pop(child.key, None)
        self._doubtful.add(child.key)
        self.unsettled = True
        self.client.delete_run(child.run_id)
        self._doubtful.discard(child.key)

    def log(
        self,
        child: Child,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send points, params that are not there yet (they cannot be changed), then tags."""
        self.log_run(
            child.run_id,
            points,
            {key: value for key, value in (params or {}).items() if key not in child.params},
            tags,
        )
        child.params |= set(params or ())
        child.tags |= {key: value for key, value in (tags or {}).items() if key in _REMEMBERED}

    def log_run(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send to any run, in as few calls as MLflow takes."""
        from mlflow.entities import Metric, Param, RunTag

        new = _parts([Param(key, value) for key, value in (params or {}).items()], OTHERS_A_BATCH)
        for part in new[1:]:
            self.client.log_batch(run_id, params=part)
        batches = _parts([Metric(*point) for point in points], METRICS_A_BATCH - 2 * OTHERS_A_BATCH)
        for batch in batches[:-1]:
            self.client.log_batch(run_id, metrics=batch)
        marks = [RunTag(key, value) for key, value in (tags or {}).items()]
        if batches[-1] or new[0] or marks:
            self.client.log_batch(run_id, metrics=batches[-1], params=new[0], tags=marks)

    def unmark(self, child: Child, tag: str) -> None:
        """Delete a tag; where the answer was lost it is gone already."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_tag(child.run_id, tag)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        child.tags.pop(tag, None)

    def end(self, child: Child, status: str, end: int) -> None:
        """The status is the last that is sent: a run that has it has everything; ``end`` in ms."""
        self.client.set_terminated(child.run_id, status, end)
        child.status, child.end, child.params = status, end, set()

    def reopen(self, child: Child) -> None:
        """A child that ended goes on."""
        self.client.update_run(child.run_id, status="RUNNING")
        child.status = "RUNNING"

    def finish(self, status: str, end: int) -> None:
        """Leave no training running, after a last look; ``end`` in ms, ``status`` that of what they belong to."""
        self.settle()
        for child in self.children.values():
            if child.status in UNFINISHED:
                self.end(child, "KILLED", end)

    def _created(self, run: Wanted) -> "Run":
        return self.client.create_run(
            self.experiment_id, start_time=run.start, tags=dict(run.tags), run_name=run.name
        )

    def _found(self, wanted: str) -> "list[Run]":
        return search_runs(self.client, [self.experiment_id], wanted)

    def _adopt(self, found: "Iterable[Run]") -> None:
        """Of the runs under one key keep the one that is known, else the best, and delete the others."""
        by_key: dict[str, list[Run]] = {}
        for run in found:
            by_key.setdefault(run.data.tags.get(KEY, run.info.run_id), []).append(run)
        for key, runs in by_key.items():
            known = self.children.get(key)
            if known is None:
                self.children[key] = Child.of(self._only(runs))
            else:
                self._delete(run for run in runs if run.info.run_id != known.run_id)

    def _only(self, runs: "list[Run]") -> "Run":
        """The run to keep: one that has ended, else one that holds something, else the smallest id."""
        kept, *losers = sorted(
            runs,
            key=lambda run: (run.info.status not in ENDED, not run.data.params, run.info.run_id),
        )
        self._delete(losers)
        return kept

    def _delete(self, losers: "Iterable[Run]") -> None:
        for run in losers:
            self.client.delete_run(run.info.run_id)


class TaggedRuns(Runs):
    """The runs that carry a tag: of a training job, one for each number of epochs."""

    def __init__(self, uri: str, space: str, what: str, tag: str, value: str) -> None:
        self._tag, self._value = tag, value
        super().__init__(uri, space, what)

    @property
    def _mine(self) -> str:
        return f"tags.`{self._tag}` = '{self._value}'"

    def one(self, wanted: Wanted) -> Child:
        """The run under a key, created if there is none."""
        self.ensure([wanted])
        return self.children[wanted.tags[KEY]]


def _parts(values: Sequence[Any], size: int) -> list[list[Any]]:
    """At least one part, which may be empty."""
    return [list(values[i : i + size]) for i in range(0, max(len(values), 1), size)]
