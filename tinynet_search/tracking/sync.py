"""Publishes an existing directory of a search or a training job to MLflow: ``tinynet sync``."""

import contextlib
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from search_spaces.errors import RequestError
from tinynet_search.errors import TrackingError, one_line
from tinynet_search.formula.files import MAX_BYTES, parse
from tinynet_search.mlflow_client.connection import RejectedRequestError, database_file
from tinynet_search.mlflow_client.experiments import chosen_experiment
from tinynet_search.store.directory import FORMULA, JOB, PLAN, SearchStore
from tinynet_search.store.lease import Lease, live_holder
from tinynet_search.store.schema import NAME
from tinynet_search.store.train_job import read_job, started_jobs
from tinynet_search.tracking.job_publisher import JobPublisher
from tinynet_search.tracking.projection import ended_ms
from tinynet_search.tracking.publisher import Publisher
from tinynet_search.tracking.registered_formula import DEFAULT_REGISTRATION, Registration
from tinynet_search.tracking.search_metrics import search_metrics
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
        promoted: the version of a registered model that ``promote`` made the champion.
    """

    search: str
    runs: int
    epochs: int
    link: str | None
    held: str | None = None
    promoted: str | None = None


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


def require_stored(storage: str, name: str) -> None:
    """Raise RequestError unless a storage folder has a search or a job in a directory."""
    folder = open_folder(storage)
    valid = re.fullmatch(NAME, name)
    if not valid or not (folder.exists(f"{name}/{PLAN}") or folder.exists(f"{name}/{JOB}")):
        raise RequestError(
            f"no search or job {one_line(name, 80)!r} at {folder.url}: "
            f"expected one of {', '.join(stored_names(storage))}"
        )


def missing_default_database(tracking: str | None, uri: str) -> Path | None:
    """Return the SQLite database in the storage folder if it is used by default and does not exist.

    Args:
        tracking: the value of ``--tracking``.
        uri: the tracking URI that results from it.
    """
    if tracking or os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    file = database_file(uri)
    return file if file and not file.exists() else None


def has_nothing_to_publish(store: SearchStore, space: str | None) -> bool:
    """Whether a directory has no results and no checkpoints, and no driver that holds it.

    Args:
        store: the directory.
        space: as for ``sync_stored``.

    Raises:
        RequestError: the plan or the job is damaged.
    """
    if store.started() or live_holder(store.folder):
        return False
    return (store.plan(space) or read_job(store, space)) is not None


def sync_stored(
    store: SearchStore,
    uri: str,
    space: str | None = None,
    registration: Registration = DEFAULT_REGISTRATION,
) -> SyncReport:
    """Publish a directory unless a driver holds it; see ``sync_search`` and ``sync_job``.

    Args:
        store: the directory.
        uri: MLflow's tracking URI.
        space: the ``module:attribute`` of a user-defined space, given again by the user. Importing
            a name that was read from a file would run code.
        registration: how a formula is registered, and whether it, or the weights of a job, become
            the champion.

    Raises:
        RequestError: there is nothing to promote, or a driver holds the directory.
    """
    holder = live_holder(store.folder)
    if holder and registration.promote:
        raise RequestError(
            f"{store.name} cannot be promoted: held by {holder.described}; run the command again "
            "when it has ended, or set tracking.promote = true in its configuration"
        )
    if holder:
        return SyncReport(store.name, 0, 0, None, holder.described)
    kind, sync = ("job", sync_job) if store.folder.exists(JOB) else ("search", sync_search)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(Lease(store.folder, f"{kind} {store.url}", "sync"))
        except RequestError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            # A directory that cannot be written has no driver, so no lease is needed.
        return sync(store, uri, space, registration)


def sync_job(
    store: SearchStore,
    uri: str,
    space: str | None = None,
    registration: Registration = DEFAULT_REGISTRATION,
) -> SyncReport:
    """Publish everything of a job that its process could not send.

    Must not be called while the job trains, which ``sync_stored`` checks.

    Raises:
        TrackingError: MLflow does not respond, or rejects a request.
        RequestError: there is no job, a file of it is damaged, or there are no weights to promote.
    """
    job = read_job(store, space)
    if job is None:
        raise RequestError(f"no job at {store.url}: select one with --search and --storage")
    trained = started_jobs(store, job)
    if not trained:
        if registration.promote:
            raise _nothing_to_promote(job.name)
        return SyncReport(job.name, 0, 0, None)
    experiment = chosen_experiment(None, job.spec.space, job.owner) or job.experiment
    trained = [replace(each, experiment=experiment) for each in trained]
    publisher = JobPublisher(
        store, trained, uri, warn=lambda line: None, promote=registration.promote
    )
    publisher.sync_once()
    runs = publisher.finish("KILLED", int(time.time() * 1000))
    if registration.promote and publisher.promoted is None:
        raise _nothing_to_promote(job.name)
    return SyncReport(
        job.name, runs, publisher.epochs_sent, publisher.link, promoted=publisher.promoted
    )


def _nothing_to_promote(job: str) -> RequestError:
    return RequestError(
        f"job {job} has no registered weights to promote: run tinynet train to its end first"
    )


def sync_search(
    store: SearchStore,
    uri: str,
    space: str | None = None,
    registration: Registration = DEFAULT_REGISTRATION,
) -> SyncReport:
    """Publish everything of a search that its driver could not send.

    Must not be called while the driver runs, which ``sync_stored`` checks.

    Raises:
        TrackingError: MLflow does not respond, or rejects a request.
        RequestError: there is no search, a file of it is damaged, or there is no usable formula to
            promote.
    """
    from tinynet_search.plan.candidates import candidates_of, final_candidates

    plan = store.plan(space)
    if plan is None:
        raise RequestError(
            f"no search or job at {store.url}: "
            "pass the name of a directory as --search, and its folder as --storage"
        )
    formula = _formula_text(store)
    if registration.promote and (formula is None or parse(formula).reason is not None):
        raise RequestError(
            f"search {plan.search} has no usable formula to promote: run more trials"
        )
    experiment = chosen_experiment(None, plan.space.name, plan.owner) or plan.experiment
    plan = plan.model_copy(update={"experiment": experiment})
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
    results = store.summaries(ended)
    frontier = store.frontier_rows()
    metrics = search_metrics(plan, {candidate.id for candidate in drawn}, results, frontier)
    publisher = Publisher(store, plan, uri, warn=lambda line: None, registration=registration)
    publisher.watch([*trials, *finals])
    publisher.conclude(frontier, formula, store.final_rows(), metrics)
    trained = {c.id for c in trials if c.run in ended}
    runs_ended = {c.run for c in [*trials, *finals]} <= ended
    complete = {c.id for c in drawn} <= trained and runs_ended
    end = max((ended_ms(result) for result in results.values()), default=int(time.time() * 1000))
    status = "FINISHED" if complete else "KILLED"
    try:
        publisher.sync_once()
    except RejectedRequestError:
        # The account may have no permission on a registered model: its runs still end.
        with contextlib.suppress(TrackingError):
            publisher.finish(status, end)
        raise
    runs = publisher.finish(status, end)
    promoted = publisher.registered if registration.promote else None
    return SyncReport(plan.search, runs, publisher.epochs_sent, publisher.link, promoted=promoted)


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
