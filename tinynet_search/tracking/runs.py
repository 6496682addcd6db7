"""The runs of a search or a job in MLflow: found by tag, created where missing, never twice.

A server may commit a run whose answer is lost, and the client then asks again. So every creation is followed by
another look, and of several runs under one key all but one are deleted. One publisher a search or job at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tinynet_search.errors import TrackingError
from tinynet_search.tracking.connection import address, connect, database_file, search_runs
from tinynet_search.tracking.projection import (
    KEY,
    PARENT,
    Point,
    created_ms,
    experiment_name,
    search_key,
    search_params,
    search_tags,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

METRICS_A_BATCH, OTHERS_A_BATCH = 1000, 100
UNFINISHED = ("RUNNING", "SCHEDULED")


class Runs(ABC):
    """Runs of one space's experiment, by key. To be used within ``reaching``; ``what`` is a search or job, for messages."""

    def __init__(self, uri: str, space: str, what: str) -> None:
        self.uri, self.what = uri, what
        self.client = connect(uri)
        self.experiment = _experiment(self.client, uri, space)
        self.children: dict[str, Run] = {}
        self.refresh()

    @property
    def experiment_id(self) -> str:
        return self.experiment.experiment_id

    @abstractmethod
    def refresh(self) -> None:
        """Look at the runs anew, and delete the losers of lost answers."""

    def finish(self, status: str, end: int) -> None:
        """Leave no training running; ``end`` in ms, ``status`` that of what they belong to."""
        for run in self.children.values():
            if run.info.status in UNFINISHED:
                self.client.set_terminated(run.info.run_id, "KILLED", end)

    def ensure(self, name: str, start: int, tags: Mapping[str, str]) -> "Run":
        """The run under ``tags[KEY]``, created if there is none; ``start`` in ms."""
        key = tags[KEY]
        if key not in self.children:
            self.children[key] = self._created(name, start, tags)
        return self.children[key]

    def log(
        self, run: "Run", points: Sequence[Point] = (), params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """Send points, params that are not there yet (they cannot be changed), then tags; as few calls as MLflow takes."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = run.info.run_id
        new = [Param(key, value) for key, value in (params or {}).items() if key not in run.data.params]
        for part in _parts(new, OTHERS_A_BATCH)[1:]:
            self.client.log_batch(run_id, params=part)
        batches = _parts([Metric(*point) for point in points], METRICS_A_BATCH)
        for batch in batches[:-1]:
            self.client.log_batch(run_id, metrics=batch)
        marks = [RunTag(key, value) for key, value in (tags or {}).items()]
        if batches[-1] or new or marks:
            self.client.log_batch(run_id, metrics=batches[-1], params=new[:OTHERS_A_BATCH], tags=marks)

    def reopen(self, run: "Run") -> None:
        """A child that ended goes on."""
        self.client.update_run(run.info.run_id, status="RUNNING")
        self.children[run.data.tags[KEY]] = self.client.get_run(run.info.run_id)

    def _created(self, name: str, start: int, tags: Mapping[str, str]) -> "Run":
        self.client.create_run(self.experiment_id, start_time=start, tags=dict(tags), run_name=name)
        return self._only(self._under(KEY, tags[KEY]))

    def _by_key(self, tag: str, value: str) -> "dict[str, Run]":
        by_key: dict[str, list[Run]] = {}
        for run in self._under(tag, value):
            by_key.setdefault(run.data.tags.get(KEY, run.info.run_id), []).append(run)
        return {key: self._only(runs) for key, runs in by_key.items()}

    def _under(self, tag: str, value: str) -> "list[Run]":
        return search_runs(self.client, [self.experiment_id], f"tags.`{tag}` = '{value}'")

    def _only(self, runs: "list[Run]") -> "Run":
        """The run to keep: one that holds something before an empty one, then the smallest id."""
        if not runs:
            raise TrackingError(f"MLflow at {address(self.uri)} lost a run of {self.what}")
        kept, *losers = sorted(runs, key=lambda run: (not run.data.params, run.info.run_id))
        for run in losers:
            self.client.delete_run(run.info.run_id)
        return kept


class TaggedRuns(Runs):
    """The runs that carry a tag: of a training job, one for each number of epochs."""

    def __init__(self, uri: str, space: str, what: str, tag: str, value: str) -> None:
        self._tag, self._value = tag, value
        super().__init__(uri, space, what)

    def refresh(self) -> None:
        self.children = self._by_key(self._tag, self._value)


class SearchRuns(Runs):
    """The parent run of a search and its trials."""

    def __init__(self, uri: str, plan: Mapping[str, Any]) -> None:
        self.plan, self.key = plan, search_key(plan)
        self._known: Run | None = None
        super().__init__(uri, plan["space"]["name"], f"search {plan['search']}")

    @property
    def parent(self) -> "Run":
        assert self._known is not None
        return self._known

    @property
    def parent_id(self) -> str:
        return self.parent.info.run_id

    def refresh(self) -> None:
        if self._known is None:
            self._make_parent()
        self._known = self._only(self._under(KEY, self.key))
        self.children = self._by_key(PARENT, self.parent_id)

    def finish(self, status: str, end: int) -> None:
        super().finish(status, end)
        if self.parent.info.status != status:
            self.client.set_terminated(self.parent_id, status, end)

    def _make_parent(self) -> None:
        tags = search_tags(self.plan)
        found = self._under(KEY, self.key)
        run = self._only(found) if found else self._created(self.plan["search"], created_ms(self.plan), tags)
        stale = {key: value for key, value in tags.items() if run.data.tags.get(key) != value}
        self.log(run, params=search_params(self.plan), tags=stale)


def _experiment(client: "MlflowClient", uri: str, space: str) -> "Experiment":
    from mlflow.exceptions import MlflowException

    name = experiment_name(space)
    path = database_file(uri)
    place = None
    if path is not None:
        # Without a server the artifacts' place is ours to choose: MLflow's default is the working directory.
        path.parent.mkdir(parents=True, exist_ok=True)
        place = (path.parent / "mlartifacts" / name).as_uri()
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
        raise TrackingError(f"{where} is deleted: restore it (mlflow experiments restore), or name another server")
    return found


def _parts(values: Sequence[Any], size: int) -> list[list[Any]]:
    """At least one part, which may be empty."""
    return [list(values[i : i + size]) for i in range(0, max(len(values), 1), size)]


def by_run(children: Mapping[str, "Run"]) -> Iterable[tuple[str, "Run"]]:
    """(``<id>-e<epochs>``, run) of each child."""
    return ((key.rsplit("/", 1)[-1], run) for key, run in children.items())
