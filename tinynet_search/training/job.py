"""A training job: ``<storage>/<name>/job.json``, written once, beside the ``trials/`` and ``results/`` of ``trainables.trial``.

The same command again must describe the same training. Another number of epochs is another training of the same job,
with a result of its own: a recipe's curves depend on how many there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from search_spaces import RequestError
from tinynet_search.store import JOB, PLAN, Candidate, SearchStore
from trainables.recipe import Recipe
from trainables.trial import TrialSpec, describe

SCHEMA = 1


@dataclass(frozen=True)
class Job:
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
        return Candidate(self.spec, describe(self.spec.network()))

    @property
    def recipe(self) -> Recipe:
        return self.spec.get_recipe()

    def with_epochs(self, epochs: int) -> "Job":
        return replace(self, spec=replace(self.spec, recipe={**self.spec.recipe, "epochs": epochs}))

    def to_json(self) -> dict[str, Any]:
        images = {"train": self.train, "val": self.val}
        figures = describe(self.spec.network())
        head = {"schema": SCHEMA, "job": self.name, "network": self.network, "created": self.created}
        return {**head, "figures": figures, "images": images, "trial": self.spec.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Job":
        """Read a job.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema is {values['schema']!r}, this version reads {SCHEMA}")
        spec = TrialSpec.from_json(values["trial"])
        images = values["images"]
        job = cls(str(values["job"]), str(values["network"]), spec, int(images["train"]), int(images["val"]), int(values["created"]))
        if not isinstance(spec.seed, int) or not isinstance(spec.data, Mapping) or not isinstance(spec.data_fingerprint, str):
            raise TypeError("trial: seed, data or data_fingerprint")
        spec.get_recipe()
        network = spec.network()
        if (network.space.version, network.macs) != (spec.space_version, values["figures"]["macs"]):
            raise ValueError(f"its network is of version {spec.space_version} of {spec.space}, or not the one of its own r, d, w")
        return job


def read_job(store: SearchStore) -> Job | None:
    """The job of a directory, None where there is none.

    Raises:
        RequestError: it is damaged.
    """
    found = store.read_json(JOB)
    if found is None and not store.folder.exists(JOB):
        return None
    try:
        if not isinstance(found, Mapping):
            raise TypeError("no object")
        return Job.from_json(found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise RequestError(f"job {store.url}/{JOB} is damaged ({said}): restore it, or train under another --name") from error


def agreed_job(store: SearchStore, asked: Job) -> Job:
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


def found_job(store: SearchStore, asked: Job) -> Job | None:
    """``agreed_job`` where nothing needs to be written, else None.

    Raises:
        RequestError: the name is a search's, or the job there is another.
    """
    if store.folder.exists(PLAN):
        raise RequestError(f"{store.url} is a search: give the training job another --name")
    there = read_job(store)
    if there is None:
        return None
    old, new = _decisive(there), _decisive(asked)
    changed = [key for key in new | old if old.get(key) != new.get(key)]
    if changed and not (store.folder.names("trials") or store.folder.names("results")):
        return None
    if changed:
        label = {"recipe.lr": "recipe.lr (scaled to the batch)"} if {there.recipe.lr_batch, asked.recipe.lr_batch} != {None} else {}
        shown = "; ".join(f"{label.get(key, key)} was {old.get(key)!r}, now {new.get(key)!r}" for key in changed[:3])
        raise RequestError(f"job {store.url} is another training: {shown}; give another --name, or what it was started with")
    return replace(there, spec=asked.spec)


def ended_or_begun(store: SearchStore, job: Job) -> list[Job]:
    """The job at each number of epochs of which there is a result or a checkpoint."""
    runs = {name.removesuffix(".json") for name in store.folder.names("results")} | set(store.folder.names("trials"))
    budgets = sorted({int(tail) for _, mark, tail in (run.rpartition("-e") for run in runs) if mark and tail.isdigit()})
    jobs = [job.with_epochs(epochs) for epochs in budgets]
    return [each for each in jobs if each.spec.run in runs]


def _decisive(job: Job) -> dict[str, Any]:
    spec, network = job.spec, job.spec.network()
    recipe = {f"recipe.{key}": value for key, value in job.recipe.identity().items()}
    classes = {"network": job.network, "space": spec.space, "network's shape": network.key}
    return {**classes, "data": spec.data_fingerprint, "seed": spec.seed, **recipe}
