"""Runs a training job to its result, in this process or on a Ray cluster.

Called by ``tinynet train``. Running the same job again resumes it, or returns its result.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from search_spaces import Network
from tinynet_search.commands import absolute, sync_command, tinynet
from tinynet_search.config import Config, check_sync_bn
from tinynet_search.errors import require
from tinynet_search.mlflow_client.connection import address, resolve_uri
from tinynet_search.plan.candidates import training_macs
from tinynet_search.plan.plan import packing_warning
from tinynet_search.signals import stoppable
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.lease import Lease
from tinynet_search.store.train_job import TrainJob, load_or_create_job, matching_job, started_jobs
from tinynet_search.text import epoch_count, millions
from tinynet_search.train.local import JobRun, configure_process, train_here
from tinynet_search.train.progress import EpochLines
from trainables.data import ImageData, open_data_cached
from trainables.result import TrialResult
from trainables.trial_folder import PROGRESS, checkpoints, position, result_name, shorter_budgets

# Seconds that a training waits for the first response of MLflow.
FIRST_RESPONSE_TIMEOUT = 20.0
# Seconds that closing the publisher may take, and the same for an interrupted training. The
# publisher may have weights to send.
CLOSE_TIMEOUT, INTERRUPTED_CLOSE_TIMEOUT = 120.0, 15.0


Train = Callable[[JobRun, EpochLines], None]


@dataclass
class TrainOutcome:
    """The outcome of a job.

    Attributes:
        result: Result of the trial, None if its processes were lost too often.
        trained: Whether this call trained any part of it.
        link: URL of the job in MLflow, None if MLflow was not reached.
        warning: Warning that the data were packed for fewer pixels than the network uses.
        stopped: Why the job stopped early.
    """

    job: TrainJob
    store: SearchStore
    result: TrialResult | None
    trained: bool
    tracking: str
    link: str | None
    warning: str | None = None
    stopped: str | None = None


def run_job(
    config: Config, requested: TrainJob, *, tracking: str | None, log: Callable[[str], None]
) -> TrainOutcome:
    """Train a job to its end, or resume it, and report it to MLflow if MLflow is reachable.

    Args:
        tracking: MLflow URI; overrides MLFLOW_TRACKING_URI and the configuration.
        log: Called with one line per message.

    Raises:
        RequestError: The directory contains a different job or search, or the job cannot run here.
            Existing files are kept.
    """
    on_ray = config.run.executor == "ray_train" or config.run.address is not None
    require("torch", "timm", "safetensors", *(["ray"] if on_ray else []))
    from tinynet_search.tracking.job_publisher import JobPublisher

    store = SearchStore(config.url)
    uri = resolve_uri(tracking, config.tracking.uri, config.storage.path)
    existing = matching_job(store, requested)
    candidate = requested.candidate
    new = existing is None or store.result(candidate.run) is None
    warning = pixels_warning(
        open_data_cached(requested.spec.data, requested.spec.data_fingerprint),
        requested.spec.network(),
    )
    # Resources are checked before the job is written, so a rejected request leaves no files.
    with (
        stoppable(log) as stopping,
        contextlib.ExitStack() as leases,
        contextlib.ExitStack() as resources,
    ):
        lease = None
        if new:
            train_job = resources.enter_context(
                _cluster(config, requested, log) if on_ray else _machine(config, candidate)
            )
            lease = leases.enter_context(Lease(store.folder, f"job {store.url}", "train"))
            lease.when_lost(lambda: stopping.request_stop("another driver has taken over this job"))
            train = partial(train_job, JobRun(config, store.url, candidate, lease, stopping))
            job = load_or_create_job(store, requested)
        else:
            train, job = None, existing or requested
        publisher = JobPublisher(
            store,
            [job],
            uri,
            warn=log if new else lambda line: None,
            promote=config.tracking.promote,
        )
        if lease is not None:
            publisher.only_while(lease.held)
        killed = True
        try:
            if train is not None:
                publisher.start()
                publisher.wait_for_first_attempt(FIRST_RESPONSE_TIMEOUT)
                if warning:
                    log(f"warning: {warning}")
                train(_log_start(store, job, log))
                stopping.reraise()
            killed = False
        finally:
            resources.close()
            sent = publisher.close(
                (0.0 if stopping.forced else INTERRUPTED_CLOSE_TIMEOUT) if killed else CLOSE_TIMEOUT
            )
    if not sent:
        fault = None if new else publisher.last_error
        problem = fault or f"MLflow at {address(uri)} is not up to date"
        log(
            f"{problem}: to send the rest, run the same command again, or "
            f"{sync_command(store.url, uri, job.spec.space)}"
        )
    return TrainOutcome(
        job,
        store,
        store.result(candidate.run),
        new,
        address(uri),
        publisher.link,
        warning,
        stopping.reason,
    )


def pixels_warning(data: ImageData, network: Network) -> str | None:
    """A one-line warning if the data were packed for fewer pixels than the network uses."""
    return packing_warning(data.largest_pixels, [network.resolution])


def _log_start(store: SearchStore, job: TrainJob, log: Callable[[str], None]) -> EpochLines:
    """Log the network, the recipe, the data and the epoch from which the training resumes."""
    network, recipe = job.spec.network(), job.recipe
    size = (
        f"{network.resolution} px, {millions(network.macs)} FLOPs, "
        f"{millions(network.params, 2)} params"
    )
    images = (
        f"{job.train} training and {job.val} validation images of {network.num_classes} classes"
    )
    log(f"{job.network}: {size}; recipe {recipe.name}, {epoch_count(recipe.epochs)}; {images}")
    done, checkpoint = store.progress(job.spec.run), _resume_position(store, job)
    log(f"{store.url}" + (f": resuming after {checkpoint}" if checkpoint else ""))
    finished = [] if checkpoint else _finished(store, job)
    if finished:
        kept = ", ".join(map(str, finished))
        log(
            f"training for {epoch_count(recipe.epochs)} starts from scratch; "
            f"existing results are kept (epochs: {kept})"
        )
    return EpochLines(done, recipe.epochs, log)


def _resume_position(store: SearchStore, job: TrainJob) -> str | None:
    """The position of the newest checkpoint from which the training resumes, None without one.

    With a recipe that can be continued, this may be a checkpoint of a training with fewer epochs.
    """
    spec = job.spec
    for run in [spec.run, *(shorter_budgets(store.folder, spec) if job.recipe.extendable else [])]:
        folder = store.folder.sub(f"trials/{run}")
        for name in reversed(checkpoints(folder)):
            if folder.exists(f"{name}/{PROGRESS}"):
                epoch, step = position(name)
                place = f"epoch {epoch}, step {step}" if step else f"epoch {epoch}"
                own = run == spec.run
                return place if own else f"{place} of the training for {epoch_count(run.epochs)}"
    return None


def _finished(store: SearchStore, job: TrainJob) -> list[int]:
    """The numbers of epochs for which the job has a finished result."""
    epochs = {each.spec.run: each.recipe.epochs for each in started_jobs(store, job)}
    return sorted(epochs[run] for run, result in store.results(epochs).items() if result.finished)


@contextlib.contextmanager
def _cluster(config: Config, job: TrainJob, log: Callable[[str], None]) -> Iterator[Train]:
    from tinynet_search.train import on_ray

    macs = training_macs(job.candidate, job.train, job.val)
    request = on_ray.ClusterRequest.of(config, config.resolve())
    with on_ray.connected_cluster(request, macs, log) as placed:
        yield partial(on_ray.train_on_ray, request=placed)


@contextlib.contextmanager
def _machine(config: Config, candidate: Candidate) -> Iterator[Train]:
    if config.scaling.auto:
        check_sync_bn(candidate.spec.recipe, config.scaling)
    loaders = configure_process(
        config.scaling, candidate.network.macs * candidate.spec.recipe.micro_batch
    )
    yield partial(train_here, loaders=loaders)


def advice(job: TrainJob, store: SearchStore, result: TrialResult) -> str:
    """Advice for a failed job, by its failure reason."""
    retry = f"remove {store.url_of(result_name(job.spec.run))} to try again"
    known = {
        "unreadable data": f"fix the file, or {_skipping(job)} and train under another --name",
        "diverged": "try a lower recipe.lr under another --name",
        "data changed": "train on the changed data under another --name, "
        "or restore the original data",
        "out of memory": f"set the suggested micro-batch under another --name, or {retry}",
    }
    return known.get(result.reason or "", retry)


def _skipping(job: TrainJob) -> str:
    """How to train on the readable images only."""
    path = job.spec.data.get("path")
    if path is None:
        return "remove it"
    source = absolute(str(path))
    packed = f"{source.rstrip('/')}-packed"
    command = tinynet(["data", "pack", "--data", source, "--out", packed, "--on-error", "skip"])
    return f"skip it: run {command}, pass its folder as --data"


def job_summary(outcome: TrainOutcome) -> dict[str, Any]:
    """The outcome as one JSON document."""
    job, result = outcome.job, outcome.result
    r, d, w = job.spec.rdw
    names = ("status", "reason", "detail", "metrics", "workers", "host")
    ended: dict[str, object] = {name: getattr(result, name, None) for name in names}
    if result is not None:
        ended["metrics"] = result.metrics.to_json() if result.metrics else {}
    epochs = result.epochs if result else ()
    return {
        "job": job.name,
        "directory": outcome.store.url,
        "network": {
            "name": job.network,
            "space": job.spec.space,
            "r": r,
            "d": d,
            "w": w,
            **job.candidate.network.to_json(),
        },
        "recipe": asdict(job.spec.recipe),
        "data": {
            "settings": dict(job.spec.data),
            "fingerprint": job.spec.data_fingerprint,
            "train": job.train,
            "val": job.val,
        },
        "seed": job.spec.seed,
        "run": job.spec.run,
        **ended,
        "epochs": len(epochs),
        "training_seconds": round(sum(epoch.seconds for epoch in epochs), 1),
        "trained_now": outcome.trained,
        "weights": outcome.store.url_of(job.spec.folder) if result and result.finished else None,
        "warning": outcome.warning,
        "tracking": outcome.tracking,
        "link": outcome.link,
    }
