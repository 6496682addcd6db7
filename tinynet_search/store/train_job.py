"""Reads and writes a training job: ``<storage>/<name>/job.json``, which is written once.

The directory also contains the ``trials/`` and ``results/`` of ``trainables.trial``. Used by
``tinynet train``, ``tinynet sync`` and the export.

Repeating a command must describe the same training. A different number of epochs is a different
training of the same job, with a separate result, since the schedules of a recipe depend on the
number of epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search_spaces import RequestError
from tinynet_search.store.directory import JOB, PLAN, Candidate, SearchStore
from tinynet_search.store.schema import SCHEMA, JobDocument, new_id, untrusted_space_error
from trainables.recipe import Recipe
from trainables.spec import TrialSpec
from trainables.storage.documents import MAX_EPOCHS


@dataclass(frozen=True)
class TrainJob:
    """A training job.

    Attributes:
        name: name of the job and its directory.
        owner: who started the job.
        network: label of the network, also used in the model registry (``tinynet_e``).
        spec: specification of the trial; its kind is ``final``.
        train: number of training images.
        val: number of validation images.
        class_names: names of the classes in the order of the labels.
        created: seconds since 1970.
        experiment: MLflow experiment that the user has chosen, None for the default.
        id: random id, which identifies the job in MLflow wherever its directory is.
    """

    name: str
    owner: str
    network: str
    spec: TrialSpec
    train: int
    val: int
    class_names: Sequence[str]
    created: int
    experiment: str | None = None
    id: str = field(default_factory=new_id)

    @property
    def candidate(self) -> Candidate:
        return Candidate.of(self.spec)

    @property
    def recipe(self) -> Recipe:
        return self.spec.recipe

    def with_epochs(self, epochs: int) -> "TrainJob":
        return replace(self, spec=self.spec.with_epochs(epochs))

    def to_json(self) -> dict[str, Any]:
        images = {"train": self.train, "val": self.val, "class_names": list(self.class_names)}
        figures = self.candidate.network.to_json()
        head = {
            "schema": SCHEMA,
            "job": self.name,
            "id": self.id,
            "owner": self.owner,
            **({"experiment": self.experiment} if self.experiment else {}),
            "network": self.network,
            "created": self.created,
        }
        return {**head, "figures": figures, "images": images, "trial": self.spec.to_json()}

    @classmethod
    def from_json(cls, values: Any, space: str | None = None) -> "TrainJob":
        """Parse a job.

        Args:
            values: the content of job.json.
            space: the ``module:attribute`` of a user-defined space, given again by the user.
                Importing a name that was read from a file would run code.

        Raises:
            ValueError: the values are not a valid job, or it uses a user-defined space other than
                ``space``.
        """
        document = JobDocument.from_json(values)
        spec, images = document.trial.spec(), document.images
        if refusal := untrusted_space_error(spec.space, space):
            raise ValueError(refusal)
        network = spec.network()
        if network.space.version != spec.space_version:
            raise ValueError(
                f"expected version {network.space.version} of the space {spec.space}, "
                f"got version {spec.space_version}"
            )
        if network.macs != document.figures.macs:
            raise ValueError(
                f"expected {network.macs} multiply-adds for its r, d, w, "
                f"got {document.figures.macs}"
            )
        return cls(
            name=document.job,
            owner=document.owner,
            network=document.network,
            spec=spec,
            train=images.train,
            val=images.val,
            class_names=images.class_names,
            created=document.created,
            experiment=document.experiment,
            id=document.id,
        )


def read_job(store: SearchStore, space: str | None = None) -> TrainJob | None:
    """Return the job of a directory, None if it has none.

    Args:
        store: the directory.
        space: as in ``TrainJob.from_json``.

    Raises:
        RequestError: the job is damaged, or uses a user-defined space other than ``space``.
    """
    values = store.read_json(JOB)
    if values is None and not store.folder.exists(JOB):
        return None
    try:
        return TrainJob.from_json(values, space)
    except ValueError as error:
        message = " ".join(str(error).split())[:400]
        raise RequestError(
            f"job {store.url_of(JOB)} is damaged ({message}): "
            "restore it, or pass a different --name"
        ) from error


def load_or_create_job(store: SearchStore, requested: TrainJob) -> TrainJob:
    """Return the job of the directory, with the requested epochs, data location and experiment.

    job.json is written if it does not exist, or if the existing job has never trained anything.

    Raises:
        RequestError: the directory is that of a search, or of a different job.
    """
    job = matching_job(store, requested)
    if job is None:
        store.write_json(JOB, requested.to_json(), once=not store.folder.exists(JOB))
        job = matching_job(store, requested) or requested
    return job


def matching_job(store: SearchStore, requested: TrainJob) -> TrainJob | None:
    """Return what ``load_or_create_job`` returns, or None if it would write job.json.

    Raises:
        RequestError: the directory is that of a search, or of a different job.
    """
    if store.folder.exists(PLAN):
        raise RequestError(f"{store.url} is a search: pass a different --name for the training job")
    existing = read_job(store, requested.spec.space)
    if existing is None:
        return None
    old, new = _identity(existing), _identity(requested)
    changed = [key for key in new | old if old.get(key) != new.get(key)]
    if changed and not (store.folder.names("trials") or store.folder.names("results")):
        return None
    if changed:
        labels: dict[str, str] = {}
        if {existing.recipe.lr_batch, requested.recipe.lr_batch} != {None}:
            labels["recipe.lr"] = "recipe.lr (scaled to the batch)"
        shown = "; ".join(
            f"{labels.get(key, key)} was {old.get(key)!r}, now {new.get(key)!r}" for key in changed
        )
        raise RequestError(
            f"job {store.url} is a different training: {shown}; "
            "pass a different --name, or the original settings"
        )
    experiment = requested.experiment or existing.experiment
    return replace(existing, spec=requested.spec, experiment=experiment)


def started_jobs(store: SearchStore, job: TrainJob) -> list[TrainJob]:
    """Return the job at each number of epochs that has a result or a checkpoint."""
    runs = store.started()
    budgets = sorted({run.epochs for run in runs if run.epochs <= MAX_EPOCHS})
    return [each for each in map(job.with_epochs, budgets) if each.spec.run in runs]


def _identity(job: TrainJob) -> dict[str, object]:
    spec, network = job.spec, job.spec.network()
    recipe = {f"recipe.{key}": value for key, value in job.recipe.identity().items()}
    classes = {"network": job.network, "space": spec.space, "network's shape": network.key}
    return {**classes, "data": spec.data_fingerprint, "seed": spec.seed, **recipe}


def job_of_trial(trial: Path, space: str | None = None) -> TrainJob | None:
    """Return the job that contains a trial folder, None if there is none.

    Args:
        trial: the trial folder.
        space: as in ``TrainJob.from_json``.

    Raises:
        RequestError: job.json is damaged, or uses a user-defined space other than ``space``.
    """
    root = trial.resolve().parent.parent
    return read_job(SearchStore(str(root)), space) if (root / JOB).is_file() else None
