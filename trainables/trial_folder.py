"""Names and reads the files of a trial: its result, checkpoints and progress.

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
from trainables.storage.folder import Folder, StorageError, child_url

log = logging.getLogger("tinynet")
# Matches names exactly as checkpoint_name writes them, without further leading zeros.
_CHECKPOINT = re.compile(r"epoch-(\d{4}|[1-9]\d{4,5})(?:-step-(\d{6}|[1-9]\d{6,8}))?", re.ASCII)
WEIGHTS_FILE, CONFIG_FILE, PROGRESS = "weights.safetensors", "config.json", "progress.json"


def result_name(run: str) -> str:
    """Name of a run's result file in the search directory."""
    return f"results/{run}.json"


def read_result(root: Folder, run: str) -> TrialResult | None:
    """A trial's result, or None if it has none yet.

    Raises:
        RequestError: the file exists but is not a valid result.
    """
    try:
        return TrialResult.from_json(parsed(root.read(result_name(run), LARGE)), run)
    except FileNotFoundError:
        return None
    except ValueError as error:
        url = child_url(root.url, result_name(run))
        raise RequestError(
            f"result {url} is damaged ({error}): remove it to train the trial again"
        ) from error


def checkpoints(folder: Folder) -> list[str]:
    """Names of the checkpoints in a trial's folder, oldest first.

    A checkpoint is complete once it contains ``progress.json``.
    """
    names = [name for name in folder.names() if _CHECKPOINT.fullmatch(name)]
    return sorted(names, key=position)


def position(checkpoint: str) -> tuple[int, int]:
    """(epochs done, steps done in the next epoch), parsed from a checkpoint's name."""
    match = _CHECKPOINT.fullmatch(checkpoint)
    assert match
    return int(match[1]), int(match[2] or 0)


def shorter_budgets(root: Folder, spec: TrialSpec) -> list[RunName]:
    """Runs of the same trial for fewer epochs that have a folder, longest first."""
    own = spec.run
    runs = [run for run in RunName.parsed(root.names("trials")) if run.id == own.id]
    shorter = [run for run in runs if run.epochs < own.epochs]
    return sorted(shorter, key=lambda run: run.epochs, reverse=True)


def newest_progress(folder: Folder) -> list[EpochRecord]:
    """Figures of all epochs in the newest readable checkpoint; empty if there is none.

    Only ``progress.json`` is read, not the weights.
    """
    for name in reversed(checkpoints(folder)):
        try:
            return epochs_from(parsed(folder.read(f"{name}/{PROGRESS}", LARGE))["epochs"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
    return []


def remove_checkpoints(folder: Folder, names: Iterable[str]) -> None:
    """Remove checkpoints that are no longer needed, and temporary files of killed writers.

    A storage error is logged and does not fail the training: remaining files only use space.
    """
    try:
        for name in names:
            folder.remove(name)
        folder.sweep()
    except StorageError as error:
        log.warning("%s; it is no longer needed and only uses space", error)
