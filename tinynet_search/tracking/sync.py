"""Publishing a directory that is already there, a search's or a training job's: what ``tinynet sync`` does."""

import contextlib
import re
import time
from dataclasses import dataclass

from search_spaces.errors import RequestError
from tinynet_search.errors import one_line
from tinynet_search.formula.files import MAX_BYTES, parse
from tinynet_search.store.directory import FORMULA, JOB, PLAN, SearchStore
from tinynet_search.store.lease import Lease, live_holder
from tinynet_search.store.schema import NAME
from tinynet_search.store.train_job import ended_or_begun, read_job
from tinynet_search.tracking.job_publisher import JobPublisher
from tinynet_search.tracking.projection import ended_ms
from tinynet_search.tracking.publisher import Publisher
from trainables.storage.documents import MOST_EPOCHS
from trainables.storage.folder import open_folder


@dataclass(frozen=True)
class SyncReport:
    """What a sync did.

    Attributes:
        search: its name, or the job's.
        runs: trials and finals of the search now in MLflow, trainings of the job.
        epochs: epochs sent by this call.
        link: where to look.
        held: who drives the directory, and keeps MLflow up to date; then nothing was sent.
    """

    search: str
    runs: int
    epochs: int
    link: str | None
    held: str | None = None


def stored(storage: str) -> list[str]:
    """Names of the searches and jobs in a storage folder.

    Raises:
        RequestError: there are none.
    """
    folder = open_folder(storage)
    ours = [
        name for name in folder.names() if re.fullmatch(NAME, name)
    ]  # a folder of another name is somebody else's
    names = [
        name for name in ours if folder.exists(f"{name}/{PLAN}") or folder.exists(f"{name}/{JOB}")
    ]
    if not names:
        raise RequestError(
            f"no searches and no jobs at {folder.url}: run tinynet search first, or tinynet train, or give --storage"
        )
    return names


def sync_stored(store: SearchStore, uri: str, space: str | None = None) -> SyncReport:
    """Publish what a directory holds, unless its driver does; see ``sync_search`` and ``sync_job``.

    Args:
        space: repeats a user's own ``module:attribute``, since importing what a file names would run code.
    """
    if holder := live_holder(store.folder):
        return SyncReport(store.name, 0, 0, None, holder.described)
    kind, sync = ("job", sync_job) if store.folder.exists(JOB) else ("search", sync_search)
    with contextlib.ExitStack() as alone:
        try:
            alone.enter_context(Lease(store.folder, f"{kind} {store.url}", "sync"))
        except RequestError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            # Where nobody can write nobody drives either.
        return sync(store, uri, space)


def sync_job(store: SearchStore, uri: str, space: str | None = None) -> SyncReport:
    """Publish a whole job, whatever its process could not send. Not while it trains: ``sync_stored`` looks.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
        RequestError: there is no job, or a file of it is damaged.
    """
    job = read_job(store, space)
    if job is None:
        raise RequestError(f"no job at {store.url}: name one by --search and --storage")
    trained = ended_or_begun(store, job)
    if not trained:
        return SyncReport(job.name, 0, 0, None)
    publisher = JobPublisher(store, trained, uri, warn=lambda line: None)
    publisher.sync_once()
    runs = publisher.finish("KILLED", int(time.time() * 1000))
    return SyncReport(job.name, runs, publisher.epochs_sent, publisher.link)


def sync_search(store: SearchStore, uri: str, space: str | None = None) -> SyncReport:
    """Publish a whole search directory, whatever its driver could not send. Not while its driver runs: ``sync_stored`` looks.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
        RequestError: there is no search, or a file of it is damaged.
    """
    from tinynet_search.plan.candidates import candidates_of, final_candidates

    plan = store.plan(space)
    if plan is None:
        raise RequestError(f"no search at {store.url}: name one by --search and --storage")
    ended, there = store.finished(), store.begun()
    drawn = candidates_of(plan, store)
    finals = final_candidates(store, space)
    budgets = sorted({run.epochs for run in there if run.epochs <= MOST_EPOCHS})
    trials = [
        candidate
        for epochs in budgets
        for candidate in candidates_of(plan, store, epochs)
        if candidate.run in there
    ]
    publisher = Publisher(store, plan, uri, warn=lambda line: None)
    publisher.watch([*trials, *finals])
    publisher.conclude(store.frontier_rows(), _formula_text(store), store.final_rows())
    publisher.sync_once()
    whole = {c.id for c in drawn} <= {c.id for c in trials if c.run in ended} and {
        c.run for c in [*trials, *finals]
    } <= ended
    results = store.summaries(ended).values()
    end = max((ended_ms(result) for result in results), default=int(time.time() * 1000))
    runs = publisher.finish("FINISHED" if whole else "KILLED", end)
    return SyncReport(plan.search, runs, publisher.epochs_sent, publisher.link)


def _formula_text(store: SearchStore) -> str | None:
    """Raises RequestError where it is damaged."""
    try:
        text = store.folder.read(FORMULA, MAX_BYTES).decode()
        parse(text)
        return text
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RequestError(
            f"{store.at(FORMULA)} is damaged ({one_line(error, 200)}): remove it, it is made anew"
        ) from error
