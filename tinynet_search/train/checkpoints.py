"""Reads the weights of a training checkpoint, the folder that a trial writes while it trains.

Called by ``--eval-only``.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from search_spaces import RequestError
from search_spaces.weights import Source, read_weights
from tinynet_search.errors import one_line
from tinynet_search.export.document import TrainedBy
from tinynet_search.export.subject import WEIGHTS, Subject, file_digest
from tinynet_search.store.directory import JOB, SearchStore
from tinynet_search.store.train_job import job_of_trial, read_job, started_jobs
from trainables.run_name import RunName
from trainables.storage.documents import LARGE, MAX_EPOCHS
from trainables.storage.folder import open_folder, read_file
from trainables.trial_folder import PROGRESS, checkpoints


def job_trial_folder(folder: Path, space: str | None = None) -> Path:
    """The folder of a job's trial.

    This is the finished trial with the most epochs, or the trial with the newest checkpoint if none
    has finished.

    Raises:
        RequestError: The job has neither, or its job.json is damaged.
    """
    store = SearchStore(str(folder))
    job = read_job(store, space)
    jobs = {each.spec.run: each for each in started_jobs(store, job)} if job else {}
    finished = [run for run, result in store.results(jobs).items() if result.finished]
    if finished:
        return folder / jobs[max(finished, key=lambda run: jobs[run].recipe.epochs)].spec.folder
    written = [
        (file.stat().st_mtime_ns, file.parent.parent)
        for run in jobs
        for file in (folder / "trials" / run).glob(f"*/{PROGRESS}")
    ]
    if not written:
        raise RequestError(f"job {str(folder)!r} has no result and no checkpoint: train it first")
    return max(written)[1]


def checkpoint_subject(folder: Path, space: str | None = None) -> Subject:
    """The network of a checkpoint ``epoch-<k>``, or of the newest complete one in a trial's folder.

    Raises:
        RequestError: No checkpoint exists, it is damaged, or no surrounding job identifies its
            network.
    """
    from trainables.checkpoint import Progress, checkpoint_name, newest_checkpoint

    if not (folder / PROGRESS).is_file():
        trial = open_folder(folder)
        newest = newest_checkpoint(trial, folder.resolve().name) if checkpoints(trial) else (0, 0)
        if not any(newest):
            raise RequestError(
                f"{str(folder)!r} contains no weights: "
                "pass the folder of a job, a trial, an export or a checkpoint"
            )
        folder = folder / checkpoint_name(*newest)
    job = job_of_trial(folder.parent, space)
    try:
        progress = Progress.from_json(read_file(folder / PROGRESS, LARGE))
        epochs = RunName.parse(progress.trial).epochs
        if file_digest(folder / WEIGHTS) != progress.files[WEIGHTS]:
            raise ValueError(f"the checksum of {WEIGHTS} does not match")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"checkpoint {str(folder)!r} is damaged ({one_line(error, 100)}): "
            "pass a different checkpoint"
        ) from error
    if job is None:
        raise RequestError(
            f"no {JOB} above {str(folder)!r} identifies its network: "
            "pass a checkpoint inside its job's folder"
        )
    if epochs > MAX_EPOCHS:
        raise RequestError(
            f"checkpoint {str(folder)!r} is damaged ({epochs} epochs): pass a different checkpoint"
        )
    job = job.with_epochs(epochs)
    spec = job.spec
    trained = TrainedBy(
        recipe=job.recipe,
        data=dict(spec.data),
        data_fingerprint=spec.data_fingerprint,
        seed=spec.seed,
    )
    return Subject(
        name=job.network,
        space=spec.space,
        network=spec.network(),
        weights=folder / WEIGHTS,
        class_names=list(job.class_names),
        origin=f"checkpoint {folder.name}",
        trained=trained,
    )


def checkpoint_of(source: Source) -> str | None:
    """The name of the checkpoint that contains the weights, None if there is none."""
    folder = source.path.parent
    return folder.name if source.path.name == WEIGHTS and (folder / PROGRESS).is_file() else None


@contextlib.contextmanager
def plain_weights(source: Source, ranks: str) -> Iterator[Source]:
    """The weights as a file that ``load_weights`` accepts.

    A checkpoint contains two sets of weights, ``raw`` and ``ema``; one of them is extracted to a
    temporary file. Other weights are returned unchanged.

    Args:
        ranks: The set to extract, ``raw`` or ``ema``.
    """
    if checkpoint_of(source) is None:
        yield source
        return
    from safetensors.torch import save_file

    chosen = {
        name.removeprefix(f"{ranks}."): value
        for name, value in read_weights(source).items()
        if name.startswith(f"{ranks}.")
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / WEIGHTS
        save_file(chosen, file)
        yield replace(source, path=file)
