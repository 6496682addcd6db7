"""A training job in MLflow: one run of its space's experiment for each number of epochs, and a model version of its weights.

The run is RUNNING while it trains, is taken up where the job is, and has its last status once everything was sent.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from tinynet_search.mlflow_client.connection import reaching
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.train_job import TrainJob
from tinynet_search.text import counted
from tinynet_search.tracking.background import Background
from tinynet_search.tracking.feed import Feed, News, ProgressReader, Sheet
from tinynet_search.tracking.projection import (
    ID,
    KEY,
    KIND,
    NOTE,
    Point,
    begun_ms,
    epoch_points,
    figure_points,
    flat_params,
    plain,
    result_tags,
    trial_params,
)
from tinynet_search.tracking.registered_models import deliver
from tinynet_search.tracking.runs import UNFINISHED, Child, TaggedRuns, Wanted
from tinynet_search.tracking.view import page_of
from trainables.result import EpochRecord, TrialResult

JOB_TAG, JOB_KEY, NETWORK, DATA = (
    "tinynet.job",
    "tinynet.job_key",
    "tinynet.network",
    "tinynet.data",
)


def job_key(job: TrainJob) -> str:
    """Names a job for good, wherever its directory is reached or moved to; its epochs are not in it."""
    decides = json.dumps([job.name, job.spec.id, job.created])
    return f"job/{plain(job.name)}/{hashlib.sha256(decides.encode()).hexdigest()[:10]}"


def seconds_left(epochs: Sequence[EpochRecord], total: int) -> float:
    """The epochs that are left, at the mean of those that were."""
    return (total - len(epochs)) * sum(epoch.seconds for epoch in epochs) / max(len(epochs), 1)


def result_params(result: TrialResult) -> dict[str, str]:
    """What a training was computed on."""
    precision = {"precision": result.execution.precision} if result.execution else {}
    return flat_params({**precision, "workers": result.workers})


def job_sheet(job: TrainJob, epochs: Sequence[EpochRecord]) -> Sheet:
    candidate, spec = job.candidate, job.spec
    total = spec.recipe.epochs
    left = [
        Point("eta_s", round(seconds_left(epochs[:n], total), 1), epochs[n - 1].ts, n)
        for n in range(1, len(epochs) + 1)
    ]
    tags = {
        KEY: f"{job_key(job)}/{spec.run}",
        KIND: "train",
        ID: spec.id,
        JOB_TAG: job.name,
        JOB_KEY: job_key(job),
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
    own = flat_params(
        {
            "network": job.network,
            "space": spec.space,
            "data": data,
            "peak_lr": job.recipe.peak_lr,
            **recipe,
        }
    )
    figures = figure_points(candidate, 1000 * job.created)
    return Sheet(
        f"{job.name} · {counted(total)}",
        tags,
        trial_params(candidate) | own,
        figures,
        [*epoch_points(epochs), *left],
    )


class JobPublisher(Background[TaggedRuns]):
    """Publishes one job, at the numbers of epochs that are given; see ``Background``.

    Attributes:
        at: the job at each number of epochs.
    """

    def __init__(
        self, store: SearchStore, at: Sequence[TrainJob], uri: str, *, warn: Callable[[str], None]
    ) -> None:
        super().__init__(uri, "training", warn)
        self._store, self.at = store, at
        self._feed, self._reader = Feed(), ProgressReader(store)
        self._done: set[str] = set()

    @property
    def epochs_sent(self) -> int:
        return self._feed.epochs

    def sync_once(self) -> None:
        with reaching(self._uri):
            runs = self._connected()
            if runs.unsettled:
                runs.settle()
        waiting = {
            job.candidate.run: job.candidate
            for job in self.at
            if job.candidate.run not in self._done
        }
        faults: list[Exception] = []
        found = {news.candidate.run: news for news in self._reader.news(waiting, faults)}
        if faults:
            raise faults[0]
        with reaching(self._uri):
            for job in self.at:
                news = found.get(job.candidate.run)
                if news is None and self._live and job.candidate.run in waiting:
                    child = runs.children.get(f"{job_key(job)}/{job.spec.run}")
                    news = (
                        News(job.candidate, [], None)
                        if child is None or child.status not in UNFINISHED
                        else None
                    )
                if news:
                    self._publish(runs, job, news)

    def _connect(self) -> TaggedRuns:
        job = self.at[0]
        return TaggedRuns(self._uri, job.spec.space, f"job {job.name}", JOB_KEY, job_key(job))

    def _publish(self, runs: TaggedRuns, job: TrainJob, news: News) -> None:
        sheet, result = job_sheet(job, news.epochs), news.result
        child = runs.children.get(sheet.tags[KEY])
        if child and self._feed.differs(runs, child, news):
            self._feed.forget(child)
            runs.discard(child)
        child = runs.one(Wanted(sheet.name, self._begun(news), sheet.tags))
        self.link = page_of(self._uri, runs.experiment_id, child.run_id)
        if not child.ended:
            if self._live and not result and child.status not in UNFINISHED:
                runs.reopen(child)
            self._feed.tell(runs, child, sheet, news, result_tags(result) if result else None)
            if result:
                self._end(runs, child, job, result)
        self._reader.told(news)
        if result:
            self._done.add(job.candidate.run)

    def _end(self, runs: TaggedRuns, child: Child, job: TrainJob, result: TrialResult) -> None:
        if result.top1 is not None:
            tags = {
                KEY: child.key,
                JOB_TAG: job.name,
                "data": job.spec.data_fingerprint,
                "run_id": child.run_id,
            }
            tags |= {
                "top1": f"{result.top1:.4f}",
                "epochs": str(job.spec.recipe.epochs),
            }
            deliver(runs, child, self._store.folder.sub(job.spec.folder), plain(job.network), tags)
        runs.log(child, params=result_params(result))
        self._feed.end(runs, child, result)

    def _begun(self, news: News) -> int:
        return (
            begun_ms(news.epochs, news.result)
            if news.epochs or news.result
            else int(time.time() * 1000)
        )


def _note(job: TrainJob) -> str:
    spec, model = job.spec, plain(job.network)
    return (
        f"**Job `{job.name}`**: `{job.network}` of `{spec.space}` by the recipe `{spec.recipe.name}`, {counted(spec.recipe.epochs)} "
        f"on `{spec.data_fingerprint}` ({job.train} training and {job.val} validation images).\n\n"
        "- `top1` and `top5` (percent) and `val_loss` are of the weights that rank; `_raw` and `_ema` of both.\n"
        "- `final_top1` is the last epoch's; `eta_s` what was left at the mean of the epochs before.\n"
        f"- The weights are the artifacts `model/`, and a version of the registered model `{model}`, whose alias `champion` is the "
        "version of the highest `top1` on the images of the version registered last.\n"
    )
