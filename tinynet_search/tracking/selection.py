"""Selects one search in MLflow by name, owner, key or the directory in a storage folder.

Used by ``queries``. A name that belongs to several searches is an error, since the newest of them
may belong to another user.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from search_spaces.errors import RequestError
from tinynet_search.commands import sync_storage_command
from tinynet_search.errors import one_line
from tinynet_search.mlflow_client.connection import address
from tinynet_search.mlflow_client.reading import RunReader, RunRecord
from tinynet_search.store.directory import JOB, PLAN, SearchStore
from tinynet_search.store.schema import NAME, Plan
from tinynet_search.tracking.projection import KEY, KIND, OWNER, SEARCH, SPACE, STORAGE, search_key
from trainables.storage.documents import MAX_TIMESTAMP
from trainables.storage.folder import child_url, open_folder, parent_and_name

DEFAULT_STORAGE = "searches"
# Number of searches that a message lists.
MAX_LISTED = 10


@dataclass(frozen=True)
class Selection:
    """What the user has given to select a search.

    Attributes:
        uri: MLflow's tracking URI.
        search: name of the search, its key, or the name of its directory in ``storage``; None
            selects the newest.
        space: consider only searches of this space.
        owner: consider only searches of this owner.
        storage: consider only searches whose directory is in this folder; None for all in MLflow.
    """

    uri: str
    search: str | None = None
    space: str | None = None
    owner: str | None = None
    storage: str | None = None

    @property
    def location(self) -> str:
        """Where the search is expected, for messages."""
        space = f" of space {self.space}" if self.space else ""
        owner = f" of owner {self.owner}" if self.owner else ""
        return f"{address(self.uri)}{space}{owner}"


def storage_and_search(storage: str, search: str | None) -> tuple[str, str | None]:
    """Return the storage folder and the name of a directory in it.

    Messages and MLflow show the directory of a search, so it may be given in place of the folder.
    A name or a key of another search keeps both arguments as they are.
    """
    folder = open_folder(storage)
    if not (folder.exists(PLAN) or folder.exists(JOB)):
        return storage, search
    ends_in_dots = "://" not in folder.url and Path(folder.url).name == ".."
    parent, name = parent_and_name(str(Path(folder.url).resolve()) if ends_in_dots else folder.url)
    if search not in (None, name):
        plan = SearchStore(folder.url).written_plan()
        if plan is None or search not in (plan.search, search_key(plan)):
            return storage, search
    return parent, name


def keys_in_storage(selection: Selection, storage: str) -> list[str]:
    """Return the keys of the selected searches in a storage folder, from their plans.

    Raises:
        RequestError: there is no such search, or its plan is damaged.
    """
    plans = _plans(storage, selection.search)
    if plans:
        return [search_key(plan) for plan in plans]
    shown = one_line(open_folder(storage).url)
    directories = _directories(storage)
    if not directories:
        raise RequestError(
            f"no searches at {shown}: pass a different --storage, "
            "or for a folder of another machine --owner, or a key as --search"
        )
    raise RequestError(
        f"no search {one_line(selection.search, 80)!r} at {shown}: "
        f"expected one of {', '.join(directories)}"
    )


def keys_in_database_folder(selection: Selection, storage: str) -> list[str] | None:
    """Return the key of the selected search in the folder of the database that is read.

    None if there is no such directory: the database has searches whose directory was removed.

    Raises:
        RequestError: its plan is damaged.
    """
    if selection.search is None:
        return None
    return [search_key(plan) for plan in _plans(storage, selection.search)] or None


def _plans(storage: str, search: str | None) -> list[Plan]:
    """Return the plans in a storage folder: all, or those of a directory, a name or a key.

    A search keeps its name if its directory is renamed. The name of a directory takes precedence.
    """
    directories = _directories(storage)
    if search in directories:
        directories = [search]
    stores = [SearchStore(child_url(storage, name)) for name in directories]
    plans = [plan for store in stores if (plan := store.written_plan())]
    if directories == [search]:
        return plans
    return [plan for plan in plans if search in (None, plan.search, search_key(plan))]


def _directories(storage: str) -> list[str]:
    folder = open_folder(storage)
    names = [name for name in folder.names() if re.fullmatch(NAME, name)]
    return [name for name in names if folder.exists(f"{name}/{PLAN}")]


def find_search(reader: RunReader, selection: Selection, keys: Collection[str] | None) -> RunRecord:
    """Return the parent run of the selected search.

    Args:
        reader: reads MLflow.
        selection: what the user has given.
        keys: keys of the searches to choose from; None selects by name.

    Raises:
        RequestError: there is no such search, or several owners or storage folders have one.
    """
    experiments = [number for number, _ in reader.experiments()]
    runs = reader.runs(experiments, f"tags.`{KIND}` = 'search'") if experiments else []
    if keys is not None:
        runs = [run for run in runs if run.tags.get(KEY) in keys]
    parents = [
        run
        for run in runs
        if selection.space in (None, run.tags.get(SPACE))
        and selection.owner in (None, run.tags.get(OWNER))
    ]
    if keys is not None and not runs:
        raise RequestError(_not_published(selection))
    if keys is not None and not parents:
        listed = "; ".join(described(run) for run in runs[:MAX_LISTED])
        raise RequestError(f"no such search at {selection.location}: --storage has {listed}")
    if not parents:
        raise RequestError(
            f"no searches at {selection.location}: run tinynet search first, "
            "or pass --storage or --tracking"
        )
    if keys is None:
        parents = _matching(parents, selection)
    return parents[0]


def _matching(parents: Sequence[RunRecord], selection: Selection) -> Sequence[RunRecord]:
    """Return the runs with the selected name or key, newest first.

    Raises:
        RequestError: there are none, or they belong to different owners or storage folders.
    """
    search = selection.search
    for run in parents:
        if search is not None and run.tags.get(KEY) == search:
            return [run]
    matching = [run for run in parents if search in (None, run.tags.get(SEARCH))]
    if not matching:
        names = sorted({one_line(run.tags.get(SEARCH, ""), 64) for run in parents})
        raise RequestError(
            f"no search {search!r} at {selection.location}: expected one of {', '.join(names)}"
        )
    tags = (OWNER,) if search is None else (OWNER, STORAGE)
    if len({tuple(run.tags.get(tag) for tag in tags) for run in matching}) > 1:
        raise RequestError(_ambiguous(matching, selection))
    return matching


def _ambiguous(runs: Sequence[RunRecord], selection: Selection) -> str:
    listed = "; ".join(described(run) for run in runs[:MAX_LISTED])
    more = f"; and {len(runs) - MAX_LISTED} more" if len(runs) > MAX_LISTED else ""
    problem = "searches of several owners"
    if selection.search is not None:
        problem = f"several searches {selection.search!r}"
    return (
        f"{problem} at {selection.location}: {listed}{more}: "
        "select one with --owner or --storage, or pass its key as --search"
    )


def described(run: RunRecord) -> str:
    """Return owner, storage, date and key of a search; any client may have written the tags."""
    # Seconds of the years 1970 to 9999, which datetime can represent.
    start = min(max(run.start // 1000, 0), int(MAX_TIMESTAMP))
    date = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d %H:%M")
    owner, storage, key = (
        one_line(run.tags.get(tag, "unknown"), 100) for tag in (OWNER, STORAGE, KEY)
    )
    return f"{key} of {owner} in {storage}, {date} UTC"


def _not_published(selection: Selection) -> str:
    storage, search = selection.storage or DEFAULT_STORAGE, selection.search
    subject = f"search {search} of {storage} is not" if search else f"no search of {storage} is"
    command = sync_storage_command(storage, search, selection.uri)
    return f"{one_line(subject)} in MLflow at {selection.location}: run {command}"
