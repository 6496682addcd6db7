"""Publishing a directory that is already there, a search's or a training job's: what ``tinynet sync`` does."""

import time
from dataclasses import dataclass

from search_spaces.errors import RequestError
from tinynet_search.store import FINALS, FORMULA, FRONTIER, JOB, PLAN, SearchStore
from tinynet_search.tracking.jobs import JobPublisher
from tinynet_search.tracking.projection import ended_ms
from tinynet_search.tracking.publisher import Publisher
from tinynet_search.training.job import ended_or_begun, read_job
from trainables.folder import open_folder


@dataclass(frozen=True)
class SyncReport:
    """What a sync did.

    Attributes:
        search: its name, or the job's.
        runs: trials and finals of the search now in MLflow, trainings of the job.
        epochs: epochs sent by this call.
        link: where to look.
    """

    search: str
    runs: int
    epochs: int
    link: str | None


def stored(storage: str) -> list[str]:
    """Names of the searches and jobs in a storage folder.

    Raises:
        RequestError: there are none.
    """
    folder = open_folder(storage)
    names = [name for name in folder.names() if folder.exists(f"{name}/{PLAN}") or folder.exists(f"{name}/{JOB}")]
    if not names:
        raise RequestError(f"no searches and no jobs at {folder.url}: run tinynet search first, or tinynet train, or give --storage")
    return names


def sync_stored(store: SearchStore, uri: str) -> SyncReport:
    """Publish what a directory holds; see ``sync_search`` and ``sync_job``."""
    return sync_job(store, uri) if store.folder.exists(JOB) else sync_search(store, uri)


def sync_job(store: SearchStore, uri: str) -> SyncReport:
    """Publish a whole job, whatever its process could not send. Not while it trains.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
        RequestError: there is no job, or a file of it is damaged.
    """
    job = read_job(store)
    if job is None:
        raise RequestError(f"no job at {store.url}: name one by --search and --storage")
    trained = ended_or_begun(store, job)
    if not trained:
        return SyncReport(job.name, 0, 0, None)
    publisher = JobPublisher(store, trained, uri, warn=lambda line: None)
    publisher.sync_once()
    runs = publisher.finish("KILLED", int(time.time() * 1000))
    return SyncReport(job.name, runs, publisher.epochs_sent, publisher.link)


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
