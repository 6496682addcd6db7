"""Weights out of a checkpoint: the folder that a trial leaves while it trains."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from search_spaces import RequestError
from search_spaces.weights import Source, read_weights
from tinynet_search.exporting.subject import WEIGHTS, Subject
from tinynet_search.store import JOB, SearchStore
from tinynet_search.training.job import Job, read_job
from trainables.folder import open_folder
from trainables.trial import PROGRESS, checkpoints


def job_around(trial: Path) -> Job | None:
    """The job whose trial's folder it is, None where there is none.

    Raises:
        RequestError: its job.json is damaged.
    """
    root = trial.resolve().parent.parent
    return read_job(SearchStore(str(root))) if (root / JOB).is_file() else None


def checkpoint_subject(folder: Path) -> Subject:
    """The network of a job's checkpoint ``epoch-<k>``, or of the newest one in a trial's folder.

    Raises:
        RequestError: there is none, or no job around it says which network it is of.
    """
    if not (folder / PROGRESS).is_file():
        whole = [name for name in checkpoints(open_folder(folder)) if (folder / name / PROGRESS).is_file()]
        if not whole:
            raise RequestError(f"{str(folder)!r} holds no weights: give the folder of a trial, an export or a checkpoint")
        folder = folder / whole[-1]
    job = job_around(folder.parent)
    try:
        epochs = int(str(json.loads((folder / PROGRESS).read_bytes())["trial"]).rpartition("-e")[2])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"checkpoint {str(folder)!r} is damaged ({error}): give another") from error
    if job is None:
        raise RequestError(f"no {JOB} around {str(folder)!r} says which network it is of: give a checkpoint in its job's folder")
    spec = job.with_epochs(epochs).spec
    trained = {"recipe": spec.recipe, "data": spec.data, "data_fingerprint": spec.data_fingerprint, "seed": spec.seed}
    return Subject(job.network, spec.space, spec.network(), folder / WEIGHTS, f"checkpoint {folder.name}", trained)


@contextlib.contextmanager
def plain_weights(source: Source, ranks: str) -> Iterator[Source]:
    """The same weights in a file that ``load_weights`` takes: of a checkpoint's two sets those that rank.

    Args:
        ranks: ``raw`` or ``ema``.
    """
    if not (source.path.parent / PROGRESS).is_file() or source.path.name != WEIGHTS:
        yield source
        return
    from safetensors.torch import save_file

    chosen = {name.removeprefix(f"{ranks}."): value for name, value in read_weights(source).items() if name.startswith(f"{ranks}.")}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / WEIGHTS
        save_file(chosen, file)
        yield replace(source, path=file)
