"""Weights out of a checkpoint: the folder that a trial leaves while it trains."""

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
from tinynet_search.store.train_job import ended_or_begun, job_around, read_job
from trainables.run_name import RunName
from trainables.storage.documents import LARGE, MOST_EPOCHS
from trainables.storage.folder import open_folder, read_file
from trainables.trial_folder import PROGRESS, checkpoints


def of_job(folder: Path, space: str | None = None) -> Path:
    """The trial's folder in a job's: of the finished one with the most epochs, else of the one with the newest checkpoint.

    Raises:
        RequestError: the job has neither, or its job.json is damaged.
    """
    store = SearchStore(str(folder))
    job = read_job(store, space)
    at = {each.spec.run: each for each in ended_or_begun(store, job)} if job else {}
    finished = [run for run, result in store.results(at).items() if result.finished]
    if finished:
        return folder / at[max(finished, key=lambda run: at[run].recipe.epochs)].spec.folder
    written = [
        (file.stat().st_mtime_ns, file.parent.parent)
        for run in at
        for file in (folder / "trials" / run).glob(f"*/{PROGRESS}")
    ]
    if not written:
        raise RequestError(f"job {str(folder)!r} has no result and no checkpoint: train it first")
    return max(written)[1]


def checkpoint_subject(folder: Path, space: str | None = None) -> Subject:
    """The network of a job's checkpoint ``epoch-<k>``, or of the newest whole one in a trial's folder.

    Raises:
        RequestError: there is none, it is damaged, or no job around it says which network it is of.
    """
    from trainables.checkpoint import Progress, checkpoint_name, newest_checkpoint

    if not (folder / PROGRESS).is_file():
        place = open_folder(folder)
        newest = newest_checkpoint(place, folder.resolve().name) if checkpoints(place) else (0, 0)
        if not any(newest):
            raise RequestError(
                f"{str(folder)!r} holds no weights: give the folder of a job, a trial, an export or a checkpoint"
            )
        folder = folder / checkpoint_name(*newest)
    job = job_around(folder.parent, space)
    try:
        progress = Progress.from_json(read_file(folder / PROGRESS, LARGE))
        epochs = RunName.parse(progress.trial).epochs
        if file_digest(folder / WEIGHTS) != progress.files[WEIGHTS]:
            raise ValueError(f"{WEIGHTS} is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"checkpoint {str(folder)!r} is damaged ({one_line(error, 100)}): give another"
        ) from error
    if job is None:
        raise RequestError(
            f"no {JOB} around {str(folder)!r} says which network it is of: give a checkpoint in its job's folder"
        )
    if epochs > MOST_EPOCHS:
        raise RequestError(
            f"checkpoint {str(folder)!r} is damaged (of {epochs} epochs): give another"
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
        job.network,
        spec.space,
        spec.network(),
        folder / WEIGHTS,
        f"checkpoint {folder.name}",
        trained,
    )


def checkpoint_of(source: Source) -> str | None:
    """The name of the checkpoint that weights lie in, None where they lie in none."""
    folder = source.path.parent
    return folder.name if source.path.name == WEIGHTS and (folder / PROGRESS).is_file() else None


@contextlib.contextmanager
def plain_weights(source: Source, ranks: str) -> Iterator[Source]:
    """The same weights in a file that ``load_weights`` takes: of a checkpoint's two sets those that rank.

    Args:
        ranks: ``raw`` or ``ema``.
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
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / WEIGHTS
        save_file(chosen, file)
        yield replace(source, path=file)
