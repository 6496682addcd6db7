"""Runs one trial and writes its result. Called by every executor, with or without Ray.

``run_trial`` never raises for failures of the trial itself. A loss that is not finite, exhausted
memory, unreadable data and an exception in a user's space become results, which are written once
with the reason. The exceptions that it does raise (unavailable storage, a lost peer) are failures
of the cluster, and the trial can be retried.
"""

import json
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from search_spaces import RequestError
from trainables.data import ImageData, open_data_cached
from trainables.result import FAILED, FINISHED, EpochRecord, NetworkFigures, TrialResult
from trainables.spec import LocalReporter, Reporter, Stop, TrialFailure, TrialSpec, never_stop
from trainables.stopping import Stopped
from trainables.storage.folder import Folder, open_folder
from trainables.trial_folder import (
    checkpoints,
    log,
    newest_progress,
    read_result,
    remove_checkpoints,
    result_name,
)

if TYPE_CHECKING:
    from trainables.execution import Execution


def run_trial(
    spec: TrialSpec,
    root_url: str,
    reporter: Reporter,
    execution: "Execution | None" = None,
    stop: Stop = never_stop,
) -> TrialResult:
    """Train a trial from the start or from its last checkpoint, and write its result.

    Args:
        spec: the trial.
        root_url: path or URL of the search directory.
        reporter: receives the figures of every epoch.
        execution: execution settings for this machine; None for the defaults.
        stop: called before each step; the training stops if it returns True.

    Returns:
        The result, with the same metrics on every rank. If the trial already has a result, that
        result unchanged.

    Raises:
        Stopped: ``stop`` returned True; all completed steps are in a checkpoint.
    """
    root = open_folder(root_url)
    existing = read_result(root, spec.run)
    if existing is not None:
        _remove_unneeded_checkpoints(spec, root, existing)
        return existing
    from trainables.memory import release_memory

    started = time.time()
    try:
        epochs = _trained(spec, root, reporter, execution, stop)
        result = _result(spec, reporter, execution, started, epochs)
    except TrialFailure as failure:
        epochs = newest_progress(root.sub(spec.folder))
        result = _result(spec, reporter, execution, started, epochs, failure)
        log.warning("trial %s failed: %s", spec.id, failure)
    finally:
        release_memory()
    if reporter.rank == 0 or not result.finished:
        written = _write_once(root, result)
        result = result if written else read_result(root, spec.run) or result
        _remove_unneeded_checkpoints(spec, root, result)
    return result


def write_failure(spec: TrialSpec, root: Folder, reason: str, detail: str) -> bool:
    """Write a failed result for a trial from outside its process.

    The trial's checkpoints are kept, and its process may still be writing.

    Returns:
        False if the trial already has a result.
    """
    epochs, failure = newest_progress(root.sub(spec.folder)), TrialFailure(reason, detail)
    return _write_once(root, _result(spec, LocalReporter(), None, time.time(), epochs, failure))


def _write_once(root: Folder, result: TrialResult) -> bool:
    """Write a result unless the trial has one already; returns whether it was written."""
    return root.write_once(result_name(result.run), json.dumps(result.to_json(), indent=1).encode())


def _trained(
    spec: TrialSpec, root: Folder, reporter: Reporter, execution: "Execution | None", stop: Stop
) -> list[EpochRecord]:
    """Run the training; every failure that the trial caused is raised as TrialFailure."""
    from trainables.memory import describe_fitting_micro_batch, is_out_of_memory, release_memory

    try:
        return _run_trainer(spec, root, reporter, execution, stop)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0] if str(error) else "memory ran out"
    # After the handler nothing references the training's tensors, so their memory can be released.
    release_memory()
    detail = f"{message}; recipe.micro_batch = {spec.recipe.micro_batch} does not fit"
    if reporter.world_size == 1:
        detail += f": {describe_fitting_micro_batch(spec, execution)}"
    raise TrialFailure("out of memory", detail)


def _run_trainer(
    spec: TrialSpec, root: Folder, reporter: Reporter, execution: "Execution | None", stop: Stop
) -> list[EpochRecord]:
    """Run the training and convert the trial's own errors to TrialFailure.

    Out-of-memory errors and failures of this node are raised unchanged.
    """
    import torch

    from trainables.data.sources.encoded import UnreadableImageError
    from trainables.memory import is_out_of_memory
    from trainables.trainer import Trainer

    try:
        return Trainer(spec, _data(spec), root, reporter, execution, stop).run()
    except (TrialFailure, Stopped):
        raise
    except UnreadableImageError as error:
        raise TrialFailure("unreadable data", _last_line(error)) from error
    except (RequestError, OSError, torch.distributed.DistError):
        # Failures of this node: the driver has opened the same space and data successfully.
        raise
    except Exception as error:
        # AcceleratorError is a node failure too: a broken GPU would also break the next trial.
        if (
            is_out_of_memory(error)
            or isinstance(error, torch.AcceleratorError)
            or _process_lost(error, reporter.world_size)
        ):
            raise
        log.exception("trial %s", spec.id)
        raise TrialFailure("error", f"{type(error).__name__}: {_last_line(error)}"[:500]) from error


def _last_line(error: Exception) -> str:
    """The message of an error; if it contains a loader process's traceback, only the last line."""
    text = str(error).strip()
    last = text.splitlines()[-1] if text.startswith("Caught ") else text
    return last.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")


def _data(spec: TrialSpec) -> ImageData:
    """Open the trial's data; raises TrialFailure if it changed since the search was planned."""
    data = open_data_cached(spec.data, spec.data_fingerprint)
    if data.fingerprint != spec.data_fingerprint:
        raise TrialFailure(
            "data changed", f"expected {spec.data_fingerprint}, got {data.fingerprint}"
        )
    return data


def _process_lost(error: Exception, world_size: int) -> bool:
    """Whether an error means that a peer or a loader process was lost.

    torch reports both as a plain RuntimeError, so the message is matched.
    """
    message = str(error).lower()
    peers = ("connection", "gloo", "nccl", "timed out", "peer", "socket") if world_size > 1 else ()
    return isinstance(error, RuntimeError) and any(
        phrase in message for phrase in ("dataloader worker", "shared memory", *peers)
    )


def _result(
    spec: TrialSpec,
    reporter: Reporter,
    execution: "Execution | None",
    started: float,
    epochs: Sequence[EpochRecord],
    failure: TrialFailure | None = None,
) -> TrialResult:
    return TrialResult(
        run=spec.run,
        kind=spec.kind,
        space=spec.space,
        rdw=spec.rdw,
        network=NetworkFigures.of(spec.network()),
        seed=spec.seed,
        workers=reporter.world_size,
        execution=execution,
        host=socket.gethostname(),
        started=round(started, 3),
        ended=round(time.time(), 3),
        status=FAILED if failure else FINISHED,
        reason=failure.reason if failure else None,
        detail=failure.detail if failure else None,
        metrics=None if failure else epochs[-1],
        epochs=epochs,
    )


def _remove_unneeded_checkpoints(spec: TrialSpec, root: Folder, result: TrialResult) -> None:
    """Remove a finished trial's checkpoints.

    The last one is kept if a longer training can continue from it. A failed trial keeps its
    checkpoints for a retry.
    """
    if result.finished:
        folder = root.sub(spec.folder)
        names = checkpoints(folder)
        remove_checkpoints(folder, names[:-1] if spec.recipe.extendable else names)
