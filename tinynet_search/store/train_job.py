"""A training job: ``<storage>/<name>/job.json``, written once, beside the ``trials/`` and ``results/`` of ``trainables.trial``.

The same command again must describe the same training. Another number of epochs is another training of the same job,
with a result of its own: a recipe's curves depend on how many there are.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from search_spaces import RequestError
from tinynet_search.store.directory import JOB, PLAN, Candidate, SearchStore
from tinynet_search.store.schema import SCHEMA, JobDocument, foreign_space
from trainables.recipe import Recipe
from trainables.spec import TrialSpec
from trainables.storage.documents import MOST_EPOCHS


@dataclass(frozen=True)
class TrainJob:
    """What is trained.

    Attributes:
        name: of the job's directory.
        network: the network's label, as people and the model registry know it (``tinynet_e``).
        spec: the trial; its kind is ``final``.
        train, val: images.
        created: seconds since 1970.
    """

    name: str
    network: str
    spec: TrialSpec
    train: int
    val: int
    created: int

    @property
    def candidate(self) -> Candidate:
        return Candidate.of(self.spec)

    @property
    def recipe(self) -> Recipe:
        return self.spec.recipe

    def with_epochs(self, epochs: int) -> "TrainJob":
        return replace(self, spec=self.spec.with_epochs(epochs))

    def to_json(self) -> dict[str, Any]:
        images = {"train": self.train, "val": self.val}
        figures = self.candidate.network.to_json()
        head = {
            "schema": SCHEMA,
            "job": self.name,
            "network": self.network,
            "created": self.created,
        }
        return {**head, "figures": figures, "images": images, "trial": self.spec.to_json()}

    @classmethod
    def from_json(cls, values: Any, space: str | None = None) -> "TrainJob":
        """Read a job.

        Args:
            space: repeats a user's own ``module:attribute``, since importing what a file names would run code.

        Raises:
            ValueError: it is none, or is of a user's own space that ``space`` does not repeat.
        """
        document = JobDocument.from_json(values)
        spec, images = document.trial.spec(), document.images
        if foreign := foreign_space(spec.space, space):
            raise ValueError(foreign)
        network = spec.network()
        if (network.space.version, network.macs) != (spec.space_version, document.figures.macs):
            raise ValueError(
                f"its network is of version {spec.space_version} of {spec.space}, or not the one of its own r, d, w"
            )
        created = document.created
        return cls(document.job, document.network, spec, images.train, images.val, created)


def read_job(store: SearchStore, space: str | None = None) -> TrainJob | None:
    """The job of a directory, None where there is none; ``space`` as ``TrainJob.from_json`` takes it.

    Raises:
        RequestError: it is damaged, or of a user's own space that ``space`` does not repeat.
    """
    found = store.read_json(JOB)
    if found is None and not store.folder.exists(JOB):
        return None
    try:
        return TrainJob.from_json(found, space)
    except ValueError as error:
        said = " ".join(str(error).split())[:400]
        raise RequestError(
            f"job {store.at(JOB)} is damaged ({said}): restore it, or train under another --name"
        ) from error


def agreed_job(store: SearchStore, asked: TrainJob) -> TrainJob:
    """The job of the directory: written now if there is none, or one of which nothing was ever trained; else the one that is
    there with the epochs and the data's place that were asked for.

    Raises:
        RequestError: the name is a search's, or the job there is another.
    """
    there = found_job(store, asked)
    if there is None:
        store.write_json(JOB, asked.to_json(), once=not store.folder.exists(JOB))
        there = found_job(store, asked) or asked
    return there


def found_job(store: SearchStore, asked: TrainJob) -> TrainJob | None:
    """``agreed_job`` where nothing needs to be written, else None.

    Raises:
        RequestError: the name is a search's, or the job there is another.
    """
    if store.folder.exists(PLAN):
        raise RequestError(f"{store.url} is a search: give the training job another --name")
    there = read_job(store, asked.spec.space)
    if there is None:
        return None
    old, new = _decisive(there), _decisive(asked)
    changed = [key for key in new | old if old.get(key) != new.get(key)]
    if changed and not (store.folder.names("trials") or store.folder.names("results")):
        return None
    if changed:
        label = (
            {"recipe.lr": "recipe.lr (scaled to the batch)"}
            if {there.recipe.lr_batch, asked.recipe.lr_batch} != {None}
            else {}
        )
        shown = "; ".join(
            f"{label.get(key, key)} was {old.get(key)!r}, now {new.get(key)!r}" for key in changed
        )
        raise RequestError(
            f"job {store.url} is another training: {shown}; give another --name, or what it was started with"
        )
    return replace(there, spec=asked.spec)


def ended_or_begun(store: SearchStore, job: TrainJob) -> list[TrainJob]:
    """The job at each number of epochs of which there is a result or a checkpoint."""
    runs = store.begun()
    budgets = sorted({run.epochs for run in runs if run.epochs <= MOST_EPOCHS})
    return [each for each in map(job.with_epochs, budgets) if each.spec.run in runs]


def _decisive(job: TrainJob) -> dict[str, object]:
    spec, network = job.spec, job.spec.network()
    recipe = {f"recipe.{key}": value for key, value in job.recipe.identity().items()}
    classes = {"network": job.network, "space": spec.space, "network's shape": network.key}
    return {**classes, "data": spec.data_fingerprint, "seed": spec.seed, **recipe}


def job_around(trial: Path, space: str | None = None) -> TrainJob | None:
    """The job whose trial's folder it is, None where there is none; ``space`` repeats a user's own.

    Raises:
        RequestError: its job.json is damaged, or of a user's own space that ``space`` does not repeat.
    """
    root = trial.resolve().parent.parent
    return read_job(SearchStore(str(root)), space) if (root / JOB).is_file() else None
