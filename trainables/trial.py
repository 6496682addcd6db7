"""One trial from its description to its result: what every executor calls, with or without Ray.

``run_trial`` never raises for the trial's own failures: a loss that is no number, memory that runs out, data that
cannot be read, an exception in a user's space are results, written once with the reason. What it does raise
(storage that is gone, a lost peer) is the cluster's failure, and worth another try.
"""

import json
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from search_spaces import RequestError
from trainables.data import ImageData, opened_data
from trainables.result import FAILED, FINISHED, EpochRecord, NetworkFigures, TrialResult
from trainables.spec import Alone, Reporter, Stop, TrialFailure, TrialSpec, never
from trainables.stopping import Stopped
from trainables.storage.folder import Folder, open_folder
from trainables.trial_folder import (
    checkpoints,
    log,
    make_room,
    newest_progress,
    read_result,
    result_name,
)

if TYPE_CHECKING:
    from trainables.execution import Execution


def run_trial(
    spec: TrialSpec,
    root_url: str,
    reporter: Reporter,
    execution: "Execution | None" = None,
    stop: Stop = never,
) -> TrialResult:
    """Train a trial, or take up what is there of it, and write its result.

    Args:
        root_url: the search directory.
        execution: how it is computed on this machine; None is every default.
        stop: asked before each step whether to end here.

    Returns:
        The result, on every rank with the same metrics; whoever comes after a result gets it unchanged.

    Raises:
        Stopped: ``stop`` said so; what was trained is in a checkpoint.
    """
    root = open_folder(root_url)
    found = read_result(root, spec.run)
    if found is not None:
        _tidy(spec, root, found)
        return found
    from trainables.memory import release

    started = time.time()
    try:
        epochs = _trained(spec, root, reporter, execution, stop)
        result = _result(spec, reporter, execution, started, epochs)
    except TrialFailure as failure:
        epochs = newest_progress(root.sub(spec.folder))
        result = _result(spec, reporter, execution, started, epochs, failure)
        log.warning("trial %s failed: %s", spec.id, failure)
    finally:
        release()
    if reporter.rank == 0 or not result.finished:
        written = _write_once(root, result)
        result = result if written else read_result(root, spec.run) or result
        _tidy(spec, root, result)
    return result


def write_failure(spec: TrialSpec, root: Folder, reason: str, detail: str) -> bool:
    """Give a trial a failed result from outside of it; False where it has one. Its checkpoints stay, its process may still write."""
    epochs, failure = newest_progress(root.sub(spec.folder)), TrialFailure(reason, detail)
    return _write_once(root, _result(spec, Alone(), None, time.time(), epochs, failure))


def _write_once(root: Folder, result: TrialResult) -> bool:
    """False where the trial has a result already."""
    return root.write_once(result_name(result.run), json.dumps(result.to_json(), indent=1).encode())


def _trained(
    spec: TrialSpec, root: Folder, reporter: Reporter, execution: "Execution | None", stop: Stop
) -> list[EpochRecord]:
    """The training, with everything that is the trial's own fault turned into TrialFailure."""
    from trainables.memory import ran_out, release, what_fits

    try:
        return _attempted(spec, root, reporter, execution, stop)
    except Exception as error:
        if not ran_out(error):
            raise
        said = str(error).splitlines()[0] if str(error) else "memory ran out"
    # Past the handler nothing holds the training's tensors any more.
    release()
    detail = f"{said}; recipe.micro_batch = {spec.recipe.micro_batch} does not fit"
    if reporter.world_size == 1:
        detail += f": {what_fits(spec, execution)}"
    raise TrialFailure("out of memory", detail)


def _attempted(
    spec: TrialSpec, root: Folder, reporter: Reporter, execution: "Execution | None", stop: Stop
) -> list[EpochRecord]:
    import torch

    from trainables.data.sources.encoded import UnreadableImageError
    from trainables.memory import ran_out
    from trainables.trainer import Trainer

    try:
        return Trainer(spec, _data(spec), root, reporter, execution, stop).run()
    except (TrialFailure, Stopped):
        raise
    except UnreadableImageError as error:
        raise TrialFailure("unreadable data", _last_line(error)) from error
    except (RequestError, OSError, torch.distributed.DistError):
        raise  # this node's fault: the driver opened the same space and data, and a broken GPU breaks the next trial too
    except Exception as error:
        if (
            ran_out(error)
            or isinstance(error, torch.AcceleratorError)
            or _process_lost(error, reporter.world_size)
        ):
            raise
        log.exception("trial %s", spec.id)
        raise TrialFailure("error", f"{type(error).__name__}: {_last_line(error)}"[:500]) from error


def _last_line(error: Exception) -> str:
    """What an error says; of one out of a loader process, which has a whole traceback for words, the end."""
    text = str(error).strip()
    last = text.splitlines()[-1] if text.startswith("Caught ") else text
    return last.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")


def _data(spec: TrialSpec) -> ImageData:
    data = opened_data(spec.data, spec.data_fingerprint)
    if data.fingerprint != spec.data_fingerprint:
        raise TrialFailure(
            "data changed", f"planned on {spec.data_fingerprint}, found {data.fingerprint}"
        )
    return data


def _process_lost(error: Exception, world_size: int) -> bool:
    """A peer or a loader process that went away is reported as a plain RuntimeError; only its words tell."""
    words = str(error).lower()
    peers = ("connection", "gloo", "nccl", "timed out", "peer", "socket") if world_size > 1 else ()
    return isinstance(error, RuntimeError) and any(
        mark in words for mark in ("dataloader worker", "shared memory", *peers)
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


def _tidy(spec: TrialSpec, root: Folder, result: TrialResult) -> None:
    """After the end only the final weights stay, and the last checkpoint where a longer training may go on from it.

    A trial that failed keeps its checkpoints, for another try.
    """
    if result.finished:
        folder = root.sub(spec.folder)
        there = checkpoints(folder)
        make_room(folder, there[:-1] if spec.recipe.continues else there)
