"""A search's runs: the parent and its trials.

Ten thousand trials are pages of runs, so a parent whose search was published whole carries a digest of the results it
was published from. Where they are still the same, a new process need not look at the trials to know them all.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from tinynet_search.errors import TrackingError
from tinynet_search.mlflow_client.connection import address
from tinynet_search.store.schema import Plan
from tinynet_search.tracking.projection import (
    KEY,
    PARENT,
    created_ms,
    search_key,
    search_params,
    search_tags,
)
from tinynet_search.tracking.runs import Child, Runs, Wanted
from trainables.run_name import RunName

if TYPE_CHECKING:
    from mlflow.entities import Run

SEAL, MARKED = "tinynet.whole", "tinynet.marked"


class SearchRuns(Runs):
    """The parent run of a search and its trials.

    Attributes:
        sealed: the runs that the parent's seal covers: they are in MLflow whole, and need not be among ``children``.
        listed: whether ``children`` are all; else they are those beside the sealed ones.
        tags: the parent's.
    """

    def __init__(
        self, uri: str, plan: Plan, results: Callable[[], tuple[set[RunName], str]]
    ) -> None:
        """``results`` tells which there are in the search directory and their digest; asked where the parent is sealed."""
        self.plan, self.key = plan, search_key(plan)
        self._results = results
        self.listed, self.sealed = False, set[RunName]()
        self.tags: dict[str, str] = {}
        self._known: Run | None = None
        super().__init__(uri, plan.space.name, f"search {plan.search}")

    @property
    def parent(self) -> "Run":
        assert self._known is not None
        return self._known

    @property
    def parent_id(self) -> str:
        return self.parent.info.run_id

    @property
    def _mine(self) -> str:
        return f"tags.`{PARENT}` = '{self.parent_id}'"

    def refresh(self) -> None:
        self._find_parent()
        if seal := self.tags.get(SEAL, ""):
            names, digest = self._results()
            if seal == digest:
                self.sealed, self.listed, self.children = names, False, {}
                self.settle()
                if not any(run_of(key) in names for key in self.children):
                    return  # else a run that is sealed has a double
        self.list_all()

    def list_all(self) -> None:
        """Look at every trial."""
        super().refresh()
        self.listed, self.sealed = True, set[RunName]()

    def ensure(self, wanted: Iterable[Wanted]) -> None:
        missing = [run for run in wanted if run.tags[KEY] not in self.children]
        if missing:
            self.unseal()
        super().ensure(missing)

    def discard(self, child: Child) -> None:
        self.unseal()
        super().discard(child)

    def tell(self, tags: Mapping[str, str]) -> None:
        """Set tags of the parent."""
        self.log_run(self.parent_id, tags=tags)
        self.tags |= tags

    def finish(self, status: str, end: int) -> None:
        super().finish(status, end)
        self._find_parent()
        if self.parent.info.status != status:
            self.client.set_terminated(self.parent_id, status, end)

    def unseal(self) -> None:
        """Before trials change: whoever comes after a crash has to look at all of them.

        Sent whatever is known of the parent: another publisher may have sealed it since.
        """
        self.tell({SEAL: "", MARKED: ""})

    def _find_parent(self) -> None:
        tags = search_tags(self.plan)
        found = self._found(f"tags.`{KEY}` = '{self.key}'")
        if not found:
            self._created(Wanted(self.plan.search, created_ms(self.plan), tags))
            found = self._found(f"tags.`{KEY}` = '{self.key}'")
        if not found:
            raise TrackingError(f"MLflow at {address(self.uri)} lost a run of {self.what}")
        self._known = self._only(found)
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
    """The run name in a trial's key; of a run that somebody else wrote it may be any text."""
    return key.rpartition("/")[2]
