"""Names and contents of a trial's files: its result, its checkpoints, its progress.

Called by the training, the driver and the publishers.
"""

import logging
import re
from collections.abc import Iterable

from search_spaces import RequestError
from trainables.result import EpochRecord, TrialResult, epochs_from
from trainables.run_name import RunName
from trainables.spec import TrialSpec
from trainables.storage.documents import LARGE, parsed
from trainables.storage.folder import Folder, StorageError, below

log = logging.getLogger("tinynet")
# As they are written, and no other spelling of the same numbers.
_CHECKPOINT = re.compile(r"epoch-(\d{4}|[1-9]\d{4,5})(?:-step-(\d{6}|[1-9]\d{6,8}))?", re.ASCII)
WEIGHTS_FILE, CONFIG_FILE, PROGRESS = "weights.safetensors", "config.json", "progress.json"


def result_name(run: str) -> str:
    return f"results/{run}.json"


def read_result(root: Folder, run: str) -> TrialResult | None:
    """A trial's result, or None where it has none yet.

    Raises:
        RequestError: the file is there and is not a result.
    """
    try:
        return TrialResult.from_json(parsed(root.read(result_name(run), LARGE)), run)
    except FileNotFoundError:
        return None
    except ValueError as error:
        place = below(root.url, result_name(run))
        raise RequestError(
            f"result {place} is damaged ({error}): remove it to train the trial again"
        ) from error


def checkpoints(folder: Folder) -> list[str]:
    """Names of a trial folder's checkpoints, oldest first; one is whole once it has its ``progress.json``."""
    found = [name for name in folder.names() if _CHECKPOINT.fullmatch(name)]
    return sorted(found, key=position)


def position(checkpoint: str) -> tuple[int, int]:
    """(epochs done, steps done of the next) by a checkpoint's name."""
    found = _CHECKPOINT.fullmatch(checkpoint)
    assert found
    return int(found[1]), int(found[2] or 0)


def shorter_budgets(root: Folder, spec: TrialSpec) -> list[RunName]:
    """Runs of the same trial for fewer epochs that have a folder, the longest first."""
    own = spec.run
    runs = [run for run in RunName.parsed(root.names("trials")) if run.id == own.id]
    shorter = [run for run in runs if run.epochs < own.epochs]
    return sorted(shorter, key=lambda run: run.epochs, reverse=True)


def newest_progress(folder: Folder) -> list[EpochRecord]:
    """Every committed epoch's figures, read without touching weights; empty where nothing was committed."""
    for name in reversed(checkpoints(folder)):
        try:
            return epochs_from(parsed(folder.read(f"{name}/{PROGRESS}", LARGE))["epochs"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
    return []


def make_room(folder: Folder, names: Iterable[str]) -> None:
    """Remove checkpoints that are not needed any more, and what a killed writer left.

    Storage that fails at it is said, and no reason to lose a training: what stays takes room and harms nothing.
    """
    try:
        for name in names:
            folder.remove(name)
        folder.sweep()
    except StorageError as error:
        log.warning("%s; it is not needed any more and only takes room", error)
