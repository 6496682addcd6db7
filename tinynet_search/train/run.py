"""A job from its directory to its result: in this process, or on a Ray cluster; idempotent either way."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from search_spaces import Network
from tinynet_search.config import Config, refuse_sync_bn
from tinynet_search.errors import require
from tinynet_search.mlflow_client.connection import address, resolve_uri
from tinynet_search.plan.candidates import training_macs
from tinynet_search.plan.plan import too_large
from tinynet_search.signals import stoppable
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.lease import Lease
from tinynet_search.store.train_job import TrainJob, agreed_job, ended_or_begun, found_job
from tinynet_search.text import counted, millions
from tinynet_search.train.local import Drive, take_machine, train_here
from tinynet_search.train.progress import EpochLines
from trainables.data import ImageData, opened_data
from trainables.result import TrialResult
from trainables.trial_folder import PROGRESS, checkpoints, position, result_name, shorter_budgets

# Seconds: how long a training waits for MLflow's first answer.
PATIENCE = 20.0
# A publisher that has weights to send gets this long at the end, and an interrupted one that.
DELIVERY, FAREWELL = 120.0, 15.0


Train = Callable[[Drive, EpochLines], None]


@dataclass
class TrainOutcome:
    """What a job came to.

    Attributes:
        result: of the trial; None where its processes were lost too often.
        trained: whether this call trained any of it.
        stopped: why it ended before its work was done.
        warning: that the data were packed for fewer pixels than the network wants.
        link: of the job's page in MLflow, where that was reached.
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
    config: Config, asked: TrainJob, *, tracking: str | None, say: Callable[[str], None]
) -> TrainOutcome:
    """Train a job to its end, or take it up where it was left; MLflow follows where it can.

    Args:
        tracking: MLflow's URI, before MLFLOW_TRACKING_URI and the configuration's.
        say: called with one line for each thing worth knowing.

    Raises:
        RequestError: the directory holds something else, or the job cannot run here; nothing was lost.
    """
    on_ray = config.run.executor == "ray_train" or config.run.address is not None
    require("torch", "timm", "safetensors", *(["ray"] if on_ray else []))
    from tinynet_search.tracking.job_publisher import JobPublisher

    store = SearchStore(config.url)
    uri = resolve_uri(tracking, config.tracking.uri, config.storage.path)
    found = found_job(store, asked)
    candidate = asked.candidate
    new = found is None or store.result(candidate.run) is None
    warning = pixels_warning(
        opened_data(asked.spec.data, asked.spec.data_fingerprint), asked.spec.network()
    )
    # What is refused leaves nothing behind: the machine comes before the job is written.
    with (
        stoppable(say) as stopping,
        contextlib.ExitStack() as driving,
        contextlib.ExitStack() as held,
    ):
        lease = None
        if new:
            begin = held.enter_context(
                _cluster(config, asked, say) if on_ray else _machine(config, candidate)
            )
            lease = driving.enter_context(Lease(store.folder, f"job {store.url}", "train"))
            lease.when_lost(lambda: stopping.ask("another process has taken this job over"))
            train, job = (
                partial(begin, Drive(config, store.url, candidate, lease, stopping)),
                agreed_job(store, asked),
            )
        else:
            train, job = None, found or asked
        publisher = JobPublisher(store, [job], uri, warn=say if new else lambda line: None)
        if lease is not None:
            publisher.only_while(lease.held)
        killed = True
        try:
            if train is not None:
                publisher.start()
                publisher.settle(PATIENCE)
                if warning:
                    say(f"warning: {warning}")
                train(_lines(store, job, say))
                stopping.deliver()
            killed = False
        finally:
            held.close()
            sent = publisher.close((0.0 if stopping.insisted else FAREWELL) if killed else DELIVERY)
    if not sent:
        fault = None if new else publisher.fault
        missing = fault or f"MLflow at {address(uri)} has not everything yet"
        say(f"{missing}: the same command, or tinynet sync --search {job.name}, catches up")
    return TrainOutcome(
        job,
        store,
        store.result(candidate.run),
        new,
        address(uri),
        publisher.link,
        warning,
        stopping.why,
    )


def pixels_warning(data: ImageData, network: Network) -> str | None:
    """One line where packed data were made for fewer pixels than the network wants."""
    return too_large(data.largest_pixels, [network.resolution])


def _lines(store: SearchStore, job: TrainJob, say: Callable[[str], None]) -> EpochLines:
    """Say what is going to be trained, and where it goes on."""
    network, recipe = job.spec.network(), job.recipe
    size = f"{network.resolution} px, {millions(network.macs)} FLOPs, {millions(network.params, 2)} params"
    images = (
        f"{job.train} training and {job.val} validation images of {network.num_classes} classes"
    )
    say(f"{job.network}: {size}; recipe {recipe.name}, {counted(recipe.epochs)}; {images}")
    done, at = store.progress(job.spec.run), _left_at(store, job)
    say(f"{store.url}" + (f": goes on after {at}" if at else ""))
    others = [] if at else _finished(store, job)
    if others:
        own = (
            "epochs are a training of their own"
            if recipe.epochs > 1
            else "epoch is a training of its own"
        )
        stays = (
            f"the result for {others[0]} stays"
            if len(others) == 1
            else f"the results for {', '.join(map(str, others))} stay"
        )
        say(f"{recipe.epochs} {own}, from the start; {stays}")
    return EpochLines(done, recipe.epochs, say)


def _left_at(store: SearchStore, job: TrainJob) -> str | None:
    """Where the newest checkpoint is that the training goes on from, its own or a shorter one's; None before the first."""
    spec = job.spec
    for run in [spec.run, *(shorter_budgets(store.folder, spec) if job.recipe.continues else [])]:
        folder = store.folder.sub(f"trials/{run}")
        for name in reversed(checkpoints(folder)):
            if folder.exists(f"{name}/{PROGRESS}"):
                epoch, step = position(name)
                at = f"epoch {epoch}, step {step}" if step else f"epoch {epoch}"
                return at if run == spec.run else f"{at} of the training for {run.epochs}"
    return None


def _finished(store: SearchStore, job: TrainJob) -> list[int]:
    """The numbers of epochs of which there is a finished result."""
    at = {each.spec.run: each.recipe.epochs for each in ended_or_begun(store, job)}
    return sorted(at[run] for run, result in store.results(at).items() if result.finished)


@contextlib.contextmanager
def _cluster(config: Config, job: TrainJob, say: Callable[[str], None]) -> Iterator[Train]:
    from tinynet_search.train import on_ray

    macs = training_macs(job.candidate, job.train, job.val)
    request = on_ray.ClusterRequest.of(config, config.resolve())
    with on_ray.joined(request, macs, say) as placed:
        yield partial(on_ray.train_on_ray, request=placed)


@contextlib.contextmanager
def _machine(config: Config, candidate: Candidate) -> Iterator[Train]:
    if config.scaling.auto:
        refuse_sync_bn(candidate.spec.recipe, config.scaling)
    loaders = take_machine(
        config.scaling, candidate.network.macs * candidate.spec.recipe.micro_batch
    )
    yield partial(train_here, loaders=loaders)


def advice(job: TrainJob, store: SearchStore, result: TrialResult) -> str:
    """What to do after a failure, by its reason."""
    again = f"remove {store.at(result_name(job.spec.run))} to try again"
    known = {
        "unreadable data": "mend it, or leave it out with tinynet data pack --on-error skip, and train under another --name",
        "diverged": "try a lower recipe.lr under another --name",
        "data changed": "train what the data is now under another --name, or bring back what it was",
        "out of memory": f"set the micro-batch it names under another --name, or {again}",
    }
    return known.get(result.reason or "", again)


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
        "weights": outcome.store.at(job.spec.folder) if result and result.finished else None,
        "warning": outcome.warning,
        "tracking": outcome.tracking,
        "link": outcome.link,
    }
