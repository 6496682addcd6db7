"""Creates search directories without training, and reads searches with MLflow's own client.

Used by the tests of tracking and by the benchmarks.
"""

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from search_spaces import get_space
from search_spaces.efficientnet import EfficientNetSpace
from tinynet_search.formula.gaussian_process import Kernel
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.plan.candidates import candidate_of
from tinynet_search.store.directory import PLAN, Candidate, SearchStore
from tinynet_search.store.schema import FrontierRow, Plan, new_id
from tinynet_search.tracking.publisher import Publisher
from tinynet_search.tracking.registered_formula import DEFAULT_REGISTRATION, Registration
from trainables.recipe import RECIPES
from trainables.result import EpochRecord, TrialResult
from trainables.trial_folder import result_name

# SQLAlchemy 2.1 deprecates a loader that MLflow 3.17 still uses.
SQLALCHEMY = (
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

OWNER = "me"
# The registered model of the formulas of these searches.
MODEL = "tiny-formula-efficientnet_mini"
CLASS_NAMES = [str(number) for number in range(10)]
CREATED = 1_760_000_000
EPOCH_METRICS = {
    "top1",
    "top1_raw",
    "top1_ema",
    "train_loss",
    "lr",
    "images_per_s",
    "epoch_seconds",
}
RDWS = [(0.86, 1.2, 1.0), (1.0, 1.0, 1.0), (0.6, 0.8, 0.9), (1.1, 0.7, 0.6), (0.75, 1.4, 0.5)]
RANGES = {"r": [0.35, 2.8], "d": [0.35, 3.2], "w": [0.35, 2.2]}


def formula_text(
    count: int = 6, scatter: float = 0.0, space: str = "efficientnet_mini", label: str = ""
) -> str:
    """Return a usable formula, made without a fit.

    Args:
        count: number of points.
        scatter: how far its points are from smooth curves, which its leave-one-out error shows.
        space: the name that its space gives itself.
        label: in its provenance, to make formulas distinct.
    """
    points = [
        (0.1 + 0.15 * i, 1.0 + scatter * (-1) ** i, 1.0 - scatter * (-1) ** i) for i in range(count)
    ]
    forms = {
        form: dict.fromkeys("rd", Kernel(0.1, 1.0, 0.01, mean, mean == 1.0))
        for form, mean in (("paper", 0.0), ("default", 1.0))
    }
    return TinyFormula(space, 1, 10, tuple(points), forms, {"label": label}).to_json()


FORMULA_TEXT = formula_text()


@contextmanager
def tracking_environment() -> Iterator[None]:
    """Set the environment variables of a publisher, and restore the previous ones on exit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        patch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
        patch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        patch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        yield


class Search:
    """A search directory that is created without training.

    Args:
        folder: the storage folder.
        name: name of the search.
        trials: number of candidates.
        space: name of the space.
        epochs: epochs of the recipe.
        owner: owner of the search.
        data: fingerprint of the data.
        id: id of the search, random by default.
        experiment: MLflow experiment that the user has chosen.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        trials: int = 3,
        space: str = "efficientnet_mini",
        epochs: int = 4,
        owner: str = OWNER,
        data: str = "petals-1",
        id: str | None = None,
        experiment: str | None = None,
    ) -> None:
        self.store = SearchStore(str(folder / name))
        loaded_space = get_space(space)
        document = {
            "schema": 1,
            "search": name,
            "id": id or new_id(),
            "owner": owner,
            "space": {
                "name": space,
                "version": loaded_space.version,
                "num_classes": 10,
                "ranges": RANGES,
                "band": [0.03, 1.05],
            },
            "sampler": {"name": "stratified"},
            "recipe": asdict(RECIPES["short"]) | {"epochs": epochs},
            "data": {
                "settings": {"name": "petals"},
                "fingerprint": data,
                "train": 400,
                "val": 100,
                "class_names": CLASS_NAMES,
            },
            "seed": 0,
            "frontier": {"fraction": 0.2, "minimum": 6},
            "ranks": "ema",
            "created": CREATED,
        }
        if experiment:
            document["experiment"] = experiment
        self.store.write_json(PLAN, document, once=True)
        self.plan = Plan.from_json(document)
        self.candidates = [
            candidate_of(self.plan, loaded_space.network(rdw, 10)) for rdw in RDWS[:trials]
        ]
        self.store.add_batch(0, self.candidates)

    def commit(
        self, candidate: Candidate, epochs: int, *, again: int | None = None
    ) -> list[EpochRecord]:
        """Write the checkpoint of a trial after some epochs.

        Epochs from ``again`` on are those of a repetition.
        """
        records = epoch_records(candidate, epochs, again)
        rows = [record.to_json() for record in records]
        progress = json.dumps({"schema": 1, "trial": candidate.run, "epochs": rows})
        self.store.folder.write(
            f"trials/{candidate.run}/epoch-{epochs:04d}/progress.json", progress.encode()
        )
        return records

    def end(
        self,
        candidate: Candidate,
        epochs: int | None = None,
        *,
        failed: bool = False,
        again: int | None = None,
    ) -> TrialResult:
        """Write the checkpoint and the result of a trial."""
        count = candidate.spec.recipe.epochs if epochs is None else epochs
        records = self.commit(candidate, count, again=again) if count else []
        result = TrialResult(
            run=candidate.run,
            kind=candidate.spec.kind,
            space=candidate.spec.space,
            rdw=candidate.spec.rdw,
            network=candidate.network,
            seed=candidate.spec.seed,
            workers=1,
            execution=None,
            host="a-host",
            started=CREATED + 50.5,
            ended=CREATED + (700.25 if again else 500.25),
            status="failed" if failed else "finished",
            reason="diverged" if failed else None,
            detail="loss nan at epoch 3, step 1 of 10" if failed else None,
            metrics=None if failed else records[-1],
            epochs=records,
        )
        self.store.write_json(result_name(candidate.run), result.to_json(), once=True)
        return result

    def rows(self, candidates: list[Candidate]) -> list[FrontierRow]:
        """Return frontier rows of these candidates."""
        return [
            FrontierRow(
                run=c.run,
                rdw=c.spec.rdw,
                c=c.c,
                macs=c.network.macs,
                params=c.network.params,
                resolution=c.network.resolution,
                top1=80.0 + i,
                pareto_rank=1 + i,
            )
            for i, c in enumerate(candidates)
        ]

    def publisher(
        self,
        uri: str,
        warnings: list[str] | None = None,
        watched: Sequence[Candidate] | None = None,
        registration: Registration = DEFAULT_REGISTRATION,
    ) -> Publisher:
        """Return a publisher that watches all candidates, or the given ones."""
        publisher = Publisher(
            self.store,
            self.plan,
            uri,
            warn=(warnings if warnings is not None else []).append,
            registration=registration,
        )
        publisher.watch(self.candidates if watched is None else watched)
        return publisher


def epoch_records(candidate: Candidate, epochs: int, again: int | None = None) -> list[EpochRecord]:
    """Return epochs with distinct time stamps and values.

    Epochs from ``again`` on are one second later, with the same values.
    """
    start = 1000 * CREATED + 1000 * round(100 * candidate.c)
    return [
        EpochRecord(
            epoch=epoch,
            ts=start + 10_000 * epoch + (1000 if again and epoch >= again else 0),
            lr=0.1 / epoch,
            train_loss=2.0 / epoch,
            top1=50 + 10 * candidate.c + epoch,
            top5=90.0 + epoch / 2,
            val_loss=1.5 / epoch,
            top1_raw=49.0 + epoch,
            top5_raw=89.0 + epoch / 2,
            val_loss_raw=1.6 / epoch,
            top1_ema=50 + 10 * candidate.c + epoch,
            top5_ema=90.0 + epoch / 2,
            val_loss_ema=1.5 / epoch,
            seconds=9.5,
            images_per_s=1234.5,
        )
        for epoch in range(1, epochs + 1)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(
    done: Callable[[], bool], seconds: float, between_checks: Callable[[], object] = lambda: None
) -> None:
    end = time.monotonic() + seconds
    while not done():
        between_checks()
        assert time.monotonic() < end, f"not done after {seconds} s"
        time.sleep(0.05)


class MlflowSearch:
    """The runs of one search, read with MLflow's own client."""

    def __init__(self, uri: str, name: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiments = [
            e.experiment_id
            for e in self.client.search_experiments(filter_string="name LIKE 'tinynet-%'")
        ]
        self.parents = list(
            self.client.search_runs(
                experiments, f"tags.`tinynet.kind` = 'search' and tags.`tinynet.search` = '{name}'"
            )
        )
        (self.parent,) = self.parents
        runs = self.client.search_runs(
            [self.parent.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{self.parent.info.run_id}'",
        )
        self.runs = {run.data.tags["tinynet.key"].rpartition("/")[2]: run for run in runs}
        assert len(self.runs) == len(runs)

    def points(self, run: str) -> dict[str, list[tuple[int, float, int]]]:
        """Return (step, value, timestamp in ms) of every point of each epoch metric."""
        run_id = self.runs[run].info.run_id
        histories = {
            key: self.client.get_metric_history(run_id, key)
            for key in EPOCH_METRICS & set(self.runs[run].data.metrics)
        }
        return {
            key: sorted((m.step, m.value, m.timestamp) for m in history)
            for key, history in histories.items()
        }

    def statuses(self) -> list[str]:
        return sorted(run.info.status for run in self.runs.values())


def expected_points(epochs: Iterable[EpochRecord]) -> dict[str, list[tuple[int, float, int]]]:
    names = {key: "seconds" if key == "epoch_seconds" else key for key in EPOCH_METRICS}
    records = list(epochs)
    return {
        key: [(e.epoch, getattr(e, name), e.ts) for e in records] for key, name in names.items()
    }


class PrivateMini(EfficientNetSpace):
    """A custom space: a built-in one under another name."""

    def __init__(self) -> None:
        vars(self).update(vars(get_space("efficientnet_mini")))
        self.name = "private_mini"
