"""Publishing a search directory that is already there: what ``tinynet sync`` does."""

import time
from dataclasses import dataclass

from search_spaces.errors import RequestError
from tinynet_search.store import FINALS, FORMULA, FRONTIER, SearchStore
from tinynet_search.tracking.projection import ended_ms
from tinynet_search.tracking.publisher import Publisher


@dataclass(frozen=True)
class SyncReport:
    """What ``sync_search`` did.

    Attributes:
        search: its name.
        runs: trials and finals of the search now in MLflow.
        epochs: epochs sent by this call.
        link: where to look.
    """

    search: str
    runs: int
    epochs: int
    link: str | None


def sync_search(store: SearchStore, uri: str) -> SyncReport:
    """Publish a whole search directory, whatever its driver could not send. Not while its driver runs.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
        RequestError: there is no search, or a file of it is damaged.
    """
    from tinynet_search.plan import candidates_of, final_candidates

    plan = store.plan()
    if plan is None:
        raise RequestError(f"no search at {store.url}: name one by --search and --storage")
    ended = {name.removesuffix(".json") for name in store.folder.names("results")}
    there = ended | set(store.folder.names("trials"))
    drawn = candidates_of(plan, store)
    finals = final_candidates(store)
    budgets = sorted({int(run.rpartition("-e")[2]) for run in there})
    trials = [candidate for epochs in budgets for candidate in candidates_of(plan, store, epochs) if candidate.run in there]
    publisher = Publisher(store, plan, uri, warn=lambda line: None)
    publisher.watch([*trials, *finals])
    publisher.conclude(store.read_json(FRONTIER), _formula_text(store), store.read_json(FINALS) or [], None)
    publisher.sync_once()
    whole = {c.id for c in drawn} <= {c.id for c in trials if c.run in ended} and {c.run for c in [*trials, *finals]} <= ended
    results = store.results(ended).values()
    end = max((ended_ms(result) for result in results), default=int(time.time() * 1000))
    runs = publisher.finish("FINISHED" if whole else "KILLED", end)
    return SyncReport(plan["search"], runs, publisher.epochs_sent, publisher.link)


def _formula_text(store: SearchStore) -> str | None:
    try:
        return store.folder.read(FORMULA).decode()
    except FileNotFoundError:
        return None
