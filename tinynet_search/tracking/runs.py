"""Finds the MLflow runs of a search or a job by tag, and creates missing ones without duplicates.

A server may create a run and lose its response; the client then repeats the request. So after each
creation the running runs are queried (a new run is running), and of several runs with the same key
all but one are deleted. There must be only one publisher per search or job at a time. Used by the
publishers and by ``evaluations``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tinynet_search.errors import TrackingError
from tinynet_search.mlflow_client.connection import address, connect, database_file, search_runs
from tinynet_search.mlflow_client.experiments import MARK, artifact_folder, marked_experiments
from tinynet_search.mlflow_client.sqlite import ARTIFACTS
from tinynet_search.tracking.projection import (
    FRONTIER_TAG,
    KEY,
    LABEL_TAG,
    RANK_TAG,
    STATUS,
    Point,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

METRICS_PER_BATCH, OTHERS_PER_BATCH = 1000, 100
UNFINISHED, ENDED = ("RUNNING", "SCHEDULED"), tuple(STATUS.values())
_KEPT_TAGS = (FRONTIER_TAG, RANK_TAG, LABEL_TAG)


def published_experiment(client: "MlflowClient", query: str) -> "Experiment | None":
    """Return the experiment that has a run which matches a filter, None if there is none."""
    experiments = {each.experiment_id: each for each in marked_experiments(client)}
    runs = client.search_runs(list(experiments), query, max_results=1) if experiments else []
    return experiments[runs[0].info.experiment_id] if runs else None


def named_experiment(client: "MlflowClient", uri: str, name: str) -> "Experiment":
    """Return the experiment with a name, created if it does not exist.

    Raises:
        TrackingError: the experiment is deleted.
    """
    from mlflow.exceptions import MlflowException

    path = database_file(uri)
    location = None
    if path is not None:
        # Without a server, the client chooses the artifact location; MLflow's default would be the
        # working directory.
        path.parent.mkdir(parents=True, exist_ok=True)
        location = (path.parent / ARTIFACTS / artifact_folder(name)).as_uri()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            client.create_experiment(name, artifact_location=location, tags={MARK: "true"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name} at {address(uri)} is deleted: "
            "restore it (mlflow experiments restore), or use another server"
        )
    if MARK not in experiment.tags:  # an administrator may have created it
        client.set_experiment_tag(experiment.experiment_id, MARK, "true")
    return experiment


class NewRun(NamedTuple):
    """A run to create if it does not exist; ``start`` in ms since 1970."""

    name: str
    start: int
    tags: Mapping[str, str]


@dataclass(slots=True)
class Child:
    """The state of a run that is kept in memory.

    MLflow's own object takes tens of kilobytes, and a search has thousands of runs.

    Attributes:
        run_id: id of the run.
        key: its key tag.
        status: its MLflow status.
        end: end time in ms since 1970, None before the run has ended.
        tags: the tags that may change.
        params: names of the params that exist, for a run that has not ended.
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
        kept = {key: tags[key] for key in _KEPT_TAGS if key in tags}
        params = set() if info.status in ENDED else set(run.data.params)
        return cls(
            info.run_id, tags.get(KEY, info.run_id), info.status, info.end_time, kept, params
        )

    @property
    def ended(self) -> bool:
        """Whether the final status was sent, which is sent after everything else."""
        return self.status in ENDED


class Runs(ABC):
    """Runs of one experiment, by key. Must be used within ``mlflow_access``.

    What has been published stays in its experiment. Otherwise the experiment is created if it does
    not exist.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the experiment.
        what: the search or job, for messages.

    Attributes:
        children: the runs by key.
        unsettled: whether the response to a creation may have been lost; then ``settle`` must be
            called next.
    """

    def __init__(self, uri: str, experiment: str, what: str) -> None:
        self.uri, self.what = uri, what
        self.client = connect(uri)
        self.experiment = published_experiment(self.client, self._published) or named_experiment(
            self.client, uri, experiment
        )
        self.children: dict[str, Child] = {}
        self.unsettled = False
        self._uncertain_keys: set[str] = set()
        self.refresh()

    @property
    def experiment_id(self) -> str:
        return self.experiment.experiment_id

    @property
    @abstractmethod
    def _published(self) -> str:
        """The MLflow filter that matches a run if anything was published."""

    @property
    @abstractmethod
    def _filter(self) -> str:
        """The MLflow filter that matches the children."""

    def refresh(self) -> None:
        """Query all children from scratch, and delete duplicates that lost responses have left."""
        self.children = {}
        self._merge(self._search(self._filter))
        self.unsettled, self._uncertain_keys = False, set()

    def settle(self) -> None:
        """Merge what lost responses have left, and delete duplicates.

        These are running runs, and runs whose deletion may have failed.
        """
        self._merge(self._search(f"{self._filter} and attributes.status = 'RUNNING'"))
        for key in sorted(self._uncertain_keys):
            self._merge(self._search(f"tags.`{KEY}` = '{key}'"))
            self._uncertain_keys.discard(key)
        self.unsettled = False

    def ensure(self, runs: Iterable[NewRun]) -> None:
        """Create the runs whose ``tags[KEY]`` does not exist, and query once for duplicates."""
        missing = {run.tags[KEY]: run for run in runs if run.tags[KEY] not in self.children}
        if not missing:
            return
        self.unsettled = True
        created = {key: self._create(run) for key, run in missing.items()}
        self.settle()
        for run in created.values():  # a lagging replica of the server may not return them yet
            self.children.setdefault(run.data.tags[KEY], Child.of(run))

    def discard(self, child: Child) -> None:
        """Delete a child whose history differs from storage; its key can be used again."""
        self.children.pop(child.key, None)
        self._uncertain_keys.add(child.key)
        self.unsettled = True
        self.client.delete_run(child.run_id)
        self._uncertain_keys.discard(child.key)

    def log(
        self,
        child: Child,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send points, then params that do not exist yet (they cannot be changed), then tags."""
        self.log_run(
            child.run_id,
            points,
            {key: value for key, value in (params or {}).items() if key not in child.params},
            tags,
        )
        child.params |= set(params or ())
        child.tags |= {key: value for key, value in (tags or {}).items() if key in _KEPT_TAGS}

    def log_run(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send to any run, with as few requests as MLflow's limits allow."""
        from mlflow.entities import Metric, Param, RunTag

        new = _chunks(
            [Param(key, value) for key, value in (params or {}).items()], OTHERS_PER_BATCH
        )
        for batch in new[1:]:
            self.client.log_batch(run_id, params=batch)
        batches = _chunks(
            [Metric(*point) for point in points], METRICS_PER_BATCH - 2 * OTHERS_PER_BATCH
        )
        for batch in batches[:-1]:
            self.client.log_batch(run_id, metrics=batch)
        run_tags = [RunTag(key, value) for key, value in (tags or {}).items()]
        if batches[-1] or new[0] or run_tags:
            self.client.log_batch(run_id, metrics=batches[-1], params=new[0], tags=run_tags)

    def delete_tag(self, child: Child, tag: str) -> None:
        """Delete a tag; if an earlier response was lost, it may be deleted already."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_tag(child.run_id, tag)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        child.tags.pop(tag, None)

    def end(self, child: Child, status: str, end: int) -> None:
        """Set the final status of a run, after everything else was sent.

        Args:
            child: the run.
            status: MLflow status.
            end: end time in ms since 1970.
        """
        self.client.set_terminated(child.run_id, status, end)
        child.status, child.end, child.params = status, end, set()

    def reopen(self, child: Child) -> None:
        """Set a child that had ended to RUNNING again."""
        self.client.update_run(child.run_id, status="RUNNING")
        child.status = "RUNNING"

    def finish(self, status: str, end: int) -> None:
        """Set the trainings that are still running to KILLED, after a last query.

        Args:
            status: MLflow status of the search or job.
            end: end time in ms since 1970.
        """
        self.settle()
        for child in self.children.values():
            if child.status in UNFINISHED:
                self.end(child, "KILLED", end)

    def _create(self, run: NewRun) -> "Run":
        return self.client.create_run(
            self.experiment_id, start_time=run.start, tags=dict(run.tags), run_name=run.name
        )

    def _search(self, query: str) -> "list[Run]":
        return search_runs(self.client, [self.experiment_id], query)

    def _merge(self, runs: "Iterable[Run]") -> None:
        """Keep one run per key, the known one or else the best, and delete the others."""
        by_key: dict[str, list[Run]] = {}
        for run in runs:
            by_key.setdefault(run.data.tags.get(KEY, run.info.run_id), []).append(run)
        for key, same_key in by_key.items():
            known = self.children.get(key)
            if known is None:
                self.children[key] = Child.of(self._keep_one(same_key))
            else:
                self._delete(run for run in same_key if run.info.run_id != known.run_id)

    def _keep_one(self, runs: "list[Run]") -> "Run":
        """Return the best run, and delete the others.

        It is one that has ended, else one that has params, else the one with the smallest id.
        """
        kept, *duplicates = sorted(
            runs,
            key=lambda run: (run.info.status not in ENDED, not run.data.params, run.info.run_id),
        )
        self._delete(duplicates)
        return kept

    def _delete(self, runs: "Iterable[Run]") -> None:
        for run in runs:
            self.client.delete_run(run.info.run_id)


class TaggedRuns(Runs):
    """The runs with a given tag, such as those of a training job: one per number of epochs."""

    def __init__(self, uri: str, experiment: str, what: str, tag: str, value: str) -> None:
        self._tag, self._value = tag, value
        super().__init__(uri, experiment, what)

    @property
    def _published(self) -> str:
        return self._filter

    @property
    def _filter(self) -> str:
        return f"tags.`{self._tag}` = '{self._value}'"

    def get_or_create(self, run: NewRun) -> Child:
        """Return the run with a key, created if it does not exist."""
        self.ensure([run])
        return self.children[run.tags[KEY]]


def _chunks(values: Sequence[Any], size: int) -> list[list[Any]]:
    """Split values into chunks; the result has at least one chunk, which may be empty."""
    return [list(values[i : i + size]) for i in range(0, max(len(values), 1), size)]
