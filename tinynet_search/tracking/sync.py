"""Publishes an existing directory of a search or a training job to MLflow: ``tinynet sync``."""

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
from tinynet_search.store.train_job import read_job, started_jobs
from tinynet_search.tracking.job_publisher import JobPublisher
from tinynet_search.tracking.projection import ended_ms
from tinynet_search.tracking.publisher import Publisher
from trainables.storage.documents import MAX_EPOCHS
from trainables.storage.folder import open_folder


@dataclass(frozen=True)
class SyncReport:
    """The outcome of a sync.

    Attributes:
        search: name of the search or job.
        runs: number of runs now in MLflow: trials and finals of a search, trainings of a job.
        epochs: number of epochs sent by this call.
        link: URL of the page in MLflow.
        held: the driver that holds the directory and publishes it; nothing was sent if it is set.
    """

    search: str
    runs: int
    epochs: int
    link: str | None
    held: str | None = None


def stored_names(storage: str) -> list[str]:
    """Return the names of the searches and jobs in a storage folder.

    Raises:
        RequestError: there are none.
    """
    folder = open_folder(storage)
    # Folders with other names do not belong to this project.
    candidates = [name for name in folder.names() if re.fullmatch(NAME, name)]
    names = [
        name
        for name in candidates
        if folder.exists(f"{name}/{PLAN}") or folder.exists(f"{name}/{JOB}")
    ]
    if not names:
        raise RequestError(
            f"no searches or jobs at {folder.url}: "
            "run tinynet search first, or tinynet train, or pass a different --storage"
        )
    return names


def sync_stored(store: SearchStore, uri: str, space: str | None = None) -> SyncReport:
    """Publish a directory unless a driver holds it; see ``sync_search`` and ``sync_job``.

    Args:
        store: the directory.
        uri: MLflow's tracking URI.
        space: the ``module:attribute`` of a user-defined space, given again by the user. Importing
            a name that was read from a file would run code.
    """
    if holder := live_holder(store.folder):
        return SyncReport(store.name, 0, 0, None, holder.described)
    kind, sync = ("job", sync_job) if store.folder.exists(JOB) else ("search", sync_search)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(Lease(store.folder, f"{kind} {store.url}", "sync"))
        except RequestError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            # A directory that cannot be written has no driver, so no lease is needed.
        return sync(store, uri, space)


def sync_job(store: SearchStore, uri: str, space: str | None = None) -> SyncReport:
    """Publish everything of a job that its process could not send.

    Must not be called while the job trains, which ``sync_stored`` checks.

    Raises:
        TrackingError: MLflow does not respond, or rejects a request.
        RequestError: there is no job, or a file of it is damaged.
    """
    job = read_job(store, space)
    if job is None:
        raise RequestError(f"no job at {store.url}: select one with --search and --storage")
    trained = started_jobs(store, job)
    if not trained:
        return SyncReport(job.name, 0, 0, None)
    publisher = JobPublisher(store, trained, uri, warn=lambda line: None)
    publisher.sync_once()
    runs = publisher.finish("KILLED", int(time.time() * 1000))
    return SyncReport(job.name, runs, publisher.epochs_sent, publisher.link)


def sync_search(store: SearchStore, uri: str, space: str | None = None) -> SyncReport:
    """Publish everything of a search that its driver could not send.

    Must not be called while the driver runs, which ``sync_stored`` checks.

    Raises:
        TrackingError: MLflow does not respond, or rejects a request.
        RequestError: there is no search, or a file of it is damaged.
    """
    from tinynet_search.plan.candidates import candidates_of, final_candidates

    plan = store.plan(space)
    if plan is None:
        raise RequestError(f"no search at {store.url}: select one with --search and --storage")
    ended, started = store.finished(), store.started()
    drawn = candidates_of(plan, store)
    finals = final_candidates(store, space)
    budgets = sorted({run.epochs for run in started if run.epochs <= MAX_EPOCHS})
    trials = [
        candidate
        for epochs in budgets
        for candidate in candidates_of(plan, store, epochs)
        if candidate.run in started
    ]
    publisher = Publisher(store, plan, uri, warn=lambda line: None)
    publisher.watch([*trials, *finals])
    publisher.conclude(store.frontier_rows(), _formula_text(store), store.final_rows())
    publisher.sync_once()
    trained = {c.id for c in trials if c.run in ended}
    runs_ended = {c.run for c in [*trials, *finals]} <= ended
    complete = {c.id for c in drawn} <= trained and runs_ended
    results = store.summaries(ended).values()
    end = max((ended_ms(result) for result in results), default=int(time.time() * 1000))
    runs = publisher.finish("FINISHED" if complete else "KILLED", end)
    return SyncReport(plan.search, runs, publisher.epochs_sent, publisher.link)


def _formula_text(store: SearchStore) -> str | None:
    """Return the content of formula.json, None if it does not exist.

    Raises:
        RequestError: the file is damaged.
    """
    try:
        text = store.folder.read(FORMULA, MAX_BYTES).decode()
        parse(text)
        return text
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RequestError(
            f"{store.url_of(FORMULA)} is damaged ({one_line(error, 200)}): "
            "remove it: the next run writes it again"
        ) from error
