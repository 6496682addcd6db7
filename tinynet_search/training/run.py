"""A job from its directory to its result: in this process, or on a Ray cluster; idempotent either way."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces import RequestError
from tinynet_search.config import Config, ScalingSection
from tinynet_search.errors import require
from tinynet_search.store import Candidate, SearchStore
from tinynet_search.tracking.connection import address, resolve_uri
from tinynet_search.training.job import Job, agreed_job
from tinynet_search.training.lines import EpochLines

# Seconds: how long a training waits for MLflow's first answer.
PATIENCE = 20.0
# A publisher that has weights to send gets this long at the end, and an interrupted one that.
DELIVERY, FAREWELL = 120.0, 15.0
# Multiply-adds of a forward pass from which several threads are worth it on a CPU.
THREADED_FROM = 1e9


@dataclass
class Outcome:
    """What a job came to.

    Attributes:
        result: of the trial; None where its processes were lost too often.
        trained: whether this call trained any of it.
        link: of the job's page in MLflow, where that was reached.
    """

    job: Job
    store: SearchStore
    result: dict[str, Any] | None
    trained: bool
    tracking: str
    link: str | None


def run_job(config: Config, asked: Job, *, tracking: str | None, say: Callable[[str], None]) -> Outcome:
    """Train a job to its end, or take it up where it was left; MLflow follows where it can.

    Args:
        tracking: MLflow's URI, before MLFLOW_TRACKING_URI and the configuration's.
        say: called with one line for each thing worth knowing.

    Raises:
        RequestError: the directory holds something else, or the job cannot run here; nothing was lost.
    """
    on_ray = config.run.executor == "ray_train" or config.run.address is not None
    require("torch", "timm", "safetensors", *(["ray"] if on_ray else []))
    from tinynet_search.tracking.jobs import JobPublisher

    store = SearchStore(config.url)
    uri = resolve_uri(tracking, config.tracking.uri, config.storage.path)
    job = agreed_job(store, asked)
    candidate = job.candidate
    there = store.result(candidate.run)
    publisher = JobPublisher(store, [job], uri, warn=say)
    killed = True
    try:
        if there is None:
            publisher.start()
            publisher.settle(PATIENCE)
            train = train_on_ray if on_ray else train_here
            train(config, store.url, candidate, _lines(store, job, say))
        killed = False
    finally:
        sent = publisher.close(FAREWELL if killed else DELIVERY)
    if not sent:
        say(f"MLflow at {address(uri)} has not everything yet: the same command, or tinynet sync --search {job.name}, catches up")
    result = store.result(candidate.run)
    return Outcome(job, store, result, there is None, address(uri), publisher.link)


def _lines(store: SearchStore, job: Job, say: Callable[[str], None]) -> EpochLines:
    """Say what is going to be trained, and where it goes on."""
    network, recipe = job.spec.network(), job.recipe
    size = f"{network.resolution} px, {network.macs / 1e6:.1f}M FLOPs, {network.params / 1e6:.2f}M params"
    images = f"{job.train} training and {job.val} validation images of {network.num_classes} classes"
    say(f"{job.network}: {size}; recipe {recipe.name}, {recipe.epochs} epochs; {images}")
    done = store.progress(job.spec.run)
    say(f"{store.url}" + (f": goes on after epoch {len(done)}" if done else ""))
    return EpochLines(done, recipe.epochs, say)


def train_on_ray(config: Config, root: str, candidate: Candidate, lines: EpochLines) -> None:
    from tinynet_search.training import on_ray

    on_ray.train_on_ray(config, root, candidate, lines)


def train_here(config: Config, root: str, candidate: Candidate, lines: EpochLines) -> None:
    """The whole training in this process, which needs no Ray."""
    from trainables.execution import Execution
    from trainables.trial import run_trial

    loaders = take_machine(config.scaling, candidate.network["macs"] * candidate.spec.recipe["micro_batch"])
    with _failure_unsaid():
        run_trial(candidate.spec, root, lines, Execution(**config.execution.model_dump(), loader_workers=loaders))


def take_machine(scaling: ScalingSection, macs: float) -> int:
    """Keep to what ``[scaling]`` names; what it does not name is the machine's own: its GPU, its CPUs where they help.

    Args:
        macs: multiply-adds of one forward pass: threads that share a small one wait for each other longer than they work.

    Returns:
        Processes that read images: as named, else one a CPU but one where a GPU waits for them.

    Raises:
        RequestError: a GPU is named, and there is none.
    """
    named = scaling.model_fields_set
    if "gpus" in named and not scaling.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if scaling.gpus and not torch.cuda.is_available():
        raise RequestError(f"scaling.gpus = {scaling.gpus:g}, and torch finds no GPU here: leave it out, or train on a machine with one")
    if "cpus" in named or macs < THREADED_FROM:
        torch.set_num_threads(max(1, int(scaling.cpus)))
    if "loader_workers" in named or not torch.cuda.is_available():
        return scaling.loader_workers
    return max(0, len(os.sched_getaffinity(0)) - 1)


@contextlib.contextmanager
def _failure_unsaid() -> Iterator[None]:
    """The trial's failure is in its result, and is said from there."""
    log = logging.getLogger("tinynet")

    def quiet(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("trial ") or record.levelno != logging.WARNING

    log.addFilter(quiet)
    try:
        yield
    finally:
        log.removeFilter(quiet)


def summary(outcome: Outcome) -> dict[str, Any]:
    """The outcome as one JSON document."""
    job, result = outcome.job, outcome.result or {}
    r, d, w = job.spec.rdw
    known: Mapping[str, Any] = {key: result.get(key) for key in ("status", "reason", "detail", "metrics", "workers", "host")}
    return {
        "job": job.name,
        "directory": outcome.store.url,
        "network": {"name": job.network, "space": job.spec.space, "r": r, "d": d, "w": w, **job.candidate.network},
        "recipe": dict(job.spec.recipe),
        "data": {"settings": dict(job.spec.data), "fingerprint": job.spec.data_fingerprint, "train": job.train, "val": job.val},
        "seed": job.spec.seed,
        "run": job.spec.run,
        **known,
        "epochs": len(result.get("epochs", [])),
        "training_seconds": round(sum(epoch["seconds"] for epoch in result.get("epochs", [])), 1),
        "trained_now": outcome.trained,
        "weights": f"{outcome.store.url}/{job.spec.folder}" if result.get("status") == "finished" else None,
        "tracking": outcome.tracking,
        "link": outcome.link,
    }
