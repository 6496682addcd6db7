"""Publishes a training job to MLflow.

A job has one run per number of epochs in the experiment of its space, and a model version of its
weights. The run is RUNNING while the job trains, is reopened when the job resumes, and gets its
final status after everything was sent. Used by ``tinynet train`` and ``tinynet sync``.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from tinynet_search.commands import sync_command
from tinynet_search.mlflow_client.connection import mlflow_access
from tinynet_search.mlflow_client.experiments import experiment_name
from tinynet_search.mlflow_client.names import plain
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.train_job import TrainJob
from tinynet_search.text import epoch_count
from tinynet_search.tracking.background import BackgroundPublisher
from tinynet_search.tracking.feed import Feed, ProgressReader, RunContents, TrainingUpdate
from tinynet_search.tracking.projection import (
    ID,
    KEY,
    KIND,
    NOTE,
    OWNER,
    Point,
    begun_ms,
    epoch_points,
    figure_points,
    flat_params,
    owner_tags,
    result_tags,
    trial_params,
)
from tinynet_search.tracking.registered_models import (
    CLASS_NAMES_FILE,
    DATA_TAG,
    TOP1_TAG,
    class_names_text,
    promote_weights,
    register_weights,
)
from tinynet_search.tracking.runs import UNFINISHED, Child, NewRun, TaggedRuns
from tinynet_search.tracking.view import page_of
from trainables.result import EpochRecord, TrialResult

JOB_TAG, JOB_KEY, NETWORK, DATA = (
    "tinynet.job",
    "tinynet.job_key",
    "tinynet.network",
    "tinynet.data",
)


def job_key(job: TrainJob) -> str:
    """Return the permanent key of a job, independent of its directory and number of epochs."""
    return f"job/{plain(job.name)}/{job.id}"


def seconds_left(epochs: Sequence[EpochRecord], total: int) -> float:
    """Estimate the remaining seconds from the mean duration of the epochs so far."""
    return (total - len(epochs)) * sum(epoch.seconds for epoch in epochs) / max(len(epochs), 1)


def result_params(result: TrialResult) -> dict[str, str]:
    """Return the params that describe on what a training was computed."""
    precision = {"precision": result.execution.precision} if result.execution else {}
    return flat_params({**precision, "workers": result.workers})


def job_contents(job: TrainJob, epochs: Sequence[EpochRecord]) -> RunContents:
    """Return the content of the run of a job after some epochs."""
    candidate, spec = job.candidate, job.spec
    total = spec.recipe.epochs
    remaining = [
        Point("eta_s", round(seconds_left(epochs[:n], total), 1), epochs[n - 1].ts, n)
        for n in range(1, len(epochs) + 1)
    ]
    tags = {
        KEY: f"{job_key(job)}/{spec.run}",
        KIND: "train",
        ID: spec.id,
        JOB_TAG: job.name,
        JOB_KEY: job_key(job),
        **owner_tags(job.owner),
        NETWORK: job.network,
        DATA: spec.data_fingerprint,
        NOTE: _note(job),
        "mlflow.source.name": "tinynet train",
        "mlflow.source.type": "LOCAL",
    }
    recipe = {
        f"recipe.{key}": value
        for key, value in asdict(spec.recipe).items()
        if key not in ("name", "epochs")
    }
    data = {
        "fingerprint": spec.data_fingerprint,
        "train": job.train,
        "val": job.val,
        "classes": spec.num_classes,
    }
    job_params = flat_params(
        {
            "network": job.network,
            "space": spec.space,
            "data": data,
            "peak_lr": job.recipe.peak_lr,
            **recipe,
        }
    )
    figures = figure_points(candidate, 1000 * job.created)
    return RunContents(
        f"{job.name} · {epoch_count(total)}",
        tags,
        trial_params(candidate) | job_params,
        figures,
        [*epoch_points(epochs), *remaining],
    )


class JobPublisher(BackgroundPublisher[TaggedRuns]):
    """Publishes one job at given numbers of epochs; see ``BackgroundPublisher``.

    Attributes:
        at: the job at each number of epochs.
        promoted: the version of the weights that was promoted, ``models:/name/version``.
    """

    def __init__(
        self,
        store: SearchStore,
        jobs: Sequence[TrainJob],
        uri: str,
        *,
        warn: Callable[[str], None],
        promote: bool = False,
    ) -> None:
        space = jobs[0].spec.space
        super().__init__(uri, "training", sync_command(store.url, uri, space), warn)
        self._store, self.jobs, self._promote = store, jobs, promote
        self._feed, self._reader = Feed(), ProgressReader(store)
        self._done: set[str] = set()
        self.promoted: str | None = None

    @property
    def epochs_sent(self) -> int:
        return self._feed.epochs

    def sync_once(self) -> None:
        with mlflow_access(self._uri):
            runs = self._connected()
            if runs.unsettled:
                runs.settle()
        waiting = {
            job.candidate.run: job.candidate
            for job in self.jobs
            if job.candidate.run not in self._done
        }
        faults: list[Exception] = []
        updates = {update.candidate.run: update for update in self._reader.update(waiting, faults)}
        if faults:
            raise faults[0]
        with mlflow_access(self._uri):
            for job in self.jobs:
                update = updates.get(job.candidate.run)
                if update is None and self._training and job.candidate.run in waiting:
                    # A job that trains has a running run, also before its first epoch.
                    child = runs.children.get(f"{job_key(job)}/{job.spec.run}")
                    if child is None or child.status not in UNFINISHED:
                        update = TrainingUpdate(job.candidate, [], None)
                if update:
                    self._publish(runs, job, update)

    def finish(self, status: str, end: int) -> int:
        count = super().finish(status, end)
        if self._promote:
            with mlflow_access(self._uri):
                self._promote_longest(self._connected())
        return count

    def _promote_longest(self, runs: TaggedRuns) -> None:
        """Make the weights of the longest training with registered weights the champion."""
        for job in sorted(self.jobs, key=lambda job: job.spec.recipe.epochs, reverse=True):
            model, key = plain(job.network), f"{job_key(job)}/{job.spec.run}"
            if version := promote_weights(runs.client, model, key):
                self.promoted = f"models:/{model}/{version}"
                return

    def _connect(self) -> TaggedRuns:
        job = self.jobs[0]
        experiment = job.experiment or experiment_name(job.spec.space, job.owner)
        return TaggedRuns(self._uri, experiment, f"job {job.name}", JOB_KEY, job_key(job))

    def _publish(self, runs: TaggedRuns, job: TrainJob, update: TrainingUpdate) -> None:
        contents, result = job_contents(job, update.epochs), update.result
        child = runs.children.get(contents.tags[KEY])
        if child and self._feed.differs(runs, child, update):
            self._feed.forget(child)
            runs.discard(child)
        child = runs.get_or_create(NewRun(contents.name, self._begun(update), contents.tags))
        self.link = page_of(self._uri, runs.experiment_id, child.run_id)
        if not child.ended:
            if self._training and not result and child.status not in UNFINISHED:
                runs.reopen(child)
            self._feed.send(runs, child, contents, update, result_tags(result) if result else None)
            if result:
                self._end(runs, child, job, result)
        self._reader.mark_sent(update)
        if result:
            self._done.add(job.candidate.run)

    def _end(self, runs: TaggedRuns, child: Child, job: TrainJob, result: TrialResult) -> None:
        runs.client.log_text(child.run_id, class_names_text(job.class_names), CLASS_NAMES_FILE)
        if result.top1 is not None:
            tags = {
                KEY: child.key,
                JOB_TAG: job.name,
                OWNER: job.owner,
                DATA_TAG: job.spec.data_fingerprint,
                "run_id": child.run_id,
                TOP1_TAG: f"{result.top1:.4f}",
                "epochs": str(job.spec.recipe.epochs),
            }
            register_weights(
                runs, child, self._store.folder.sub(job.spec.folder), plain(job.network), tags
            )
        runs.log(child, params=result_params(result))
        self._feed.end(runs, child, result)

    def _begun(self, update: TrainingUpdate) -> int:
        if update.epochs or update.result:
            return begun_ms(update.epochs, update.result)
        return int(time.time() * 1000)


def _note(job: TrainJob) -> str:
    spec, model = job.spec, plain(job.network)
    return (
        f"**Job `{job.name}`**: `{job.network}` of `{spec.space}` with the recipe "
        f"`{spec.recipe.name}`, {epoch_count(spec.recipe.epochs)} on `{spec.data_fingerprint}` "
        f"({job.train} training and {job.val} validation images).\n\n"
        "- `top1` and `top5` (percent) and `val_loss` are those of the weights that are ranked; "
        "the suffixes `_raw` and `_ema` are those of both sets of weights.\n"
        "- `final_top1` is that of the last epoch; `eta_s` is the remaining time in seconds, "
        "estimated from the mean of the epochs before.\n"
        "- The weights are the artifacts `model/` and a version of the registered model "
        f"`{model}`. Its alias `champion` moves by itself only to a version with a higher `top1` "
        "on the same data; `--promote` of `tinynet sync` moves it in any case.\n"
        "- `class_names.json` has the names of the classes in the order of the labels.\n"
    )
