"""The MLflow runs of a search: the parent run and one run per trial. Used by ``Publisher``.

Ten thousand trials are many pages of runs. So the parent of a completely published search has a tag
with the digest of the results. If the digest is unchanged, a new process does not query the trials.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from tinynet_search.errors import TrackingError
from tinynet_search.mlflow_client.connection import address
from tinynet_search.mlflow_client.experiments import experiment_name
from tinynet_search.store.schema import Plan
from tinynet_search.tracking.projection import (
    KEY,
    PARENT,
    created_ms,
    search_key,
    search_params,
    search_tags,
)
from tinynet_search.tracking.runs import Child, NewRun, Runs
from trainables.run_name import RunName

if TYPE_CHECKING:
    from mlflow.entities import Run

COMPLETE_TAG, TAGS_DIGEST_TAG = "tinynet.whole", "tinynet.marked"


class SearchRuns(Runs):
    """The parent run of a search and the runs of its trials.

    Attributes:
        complete_runs: the runs that the digest on the parent covers. They are complete in MLflow,
            and may be missing in ``children``.
        listed: whether ``children`` has all runs; if not, ``complete_runs`` are not in it.
        tags: tags of the parent.
    """

    def __init__(
        self,
        uri: str,
        plan: Plan,
        storage: str,
        results: Callable[[], tuple[set[RunName], str]],
    ) -> None:
        """Query the runs.

        Args:
            uri: MLflow's tracking URI.
            plan: plan of the search.
            storage: address of the search directory.
            results: returns the runs that have a result in the search directory, and the digest of
                the results; called only if the parent has a digest.
        """
        self.plan, self.key = plan, search_key(plan)
        self._results, self._storage = results, address(storage)
        self.listed, self.complete_runs = False, set[RunName]()
        self.tags: dict[str, str] = {}
        self._parent: Run | None = None
        experiment = plan.experiment or experiment_name(plan.space.name, plan.owner)
        super().__init__(uri, experiment, f"search {plan.search}")

    @property
    def parent(self) -> "Run":
        assert self._parent is not None
        return self._parent

    @property
    def parent_id(self) -> str:
        return self.parent.info.run_id

    @property
    def _published(self) -> str:
        return f"tags.`{KEY}` = '{self.key}'"

    @property
    def _filter(self) -> str:
        return f"tags.`{PARENT}` = '{self.parent_id}'"

    def refresh(self) -> None:
        self._find_parent()
        if published_digest := self.tags.get(COMPLETE_TAG, ""):
            names, digest = self._results()
            if published_digest == digest:
                self.complete_runs, self.listed, self.children = names, False, {}
                self.settle()
                if not any(run_of(key) in names for key in self.children):
                    return  # otherwise a complete run has a duplicate
        self.list_all()

    def list_all(self) -> None:
        """Query every trial."""
        super().refresh()
        self.listed, self.complete_runs = True, set[RunName]()

    def ensure(self, runs: Iterable[NewRun]) -> None:
        missing = [run for run in runs if run.tags[KEY] not in self.children]
        if missing:
            self.clear_complete()
        super().ensure(missing)

    def discard(self, child: Child) -> None:
        self.clear_complete()
        super().discard(child)

    def set_parent_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the parent run."""
        self.log_run(self.parent_id, tags=tags)
        self.tags |= tags

    def finish(self, status: str, end: int) -> None:
        super().finish(status, end)
        self._find_parent()
        if self.parent.info.status != status:
            self.client.set_terminated(self.parent_id, status, end)

    def clear_complete(self) -> None:
        """Remove the digest from the parent before trials change.

        A process that starts after a crash then queries all trials. The request is sent even if
        the digest is not known to be set, since another publisher may have set it.
        """
        self.set_parent_tags({COMPLETE_TAG: "", TAGS_DIGEST_TAG: ""})

    def _find_parent(self) -> None:
        tags = search_tags(self.plan, self._storage)
        runs = self._search(self._published)
        if not runs:
            self._create(NewRun(self.plan.search, created_ms(self.plan), tags))
            runs = self._search(self._published)
        if not runs:
            raise TrackingError(f"MLflow at {address(self.uri)} lost a run of {self.what}")
        self._parent = self._keep_one(runs)
        self.tags = dict(self.parent.data.tags)
        new = {
            key: value
            for key, value in search_params(self.plan).items()
            if key not in self.parent.data.params
        }
        stale = {key: value for key, value in tags.items() if self.tags.get(key) != value}
        if new or stale:
            self.log_run(self.parent_id, params=new, tags=stale)
            self.tags |= stale


def run_of(key: str) -> str:
    """Return the run name in the key of a trial; any text if another program created the run."""
    return key.rpartition("/")[2]
