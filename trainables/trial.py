"""One trial from its description to its result: what every executor calls, with or without Ray.

``run_trial`` never raises for the trial's own failures: a loss that is no number, memory that runs out, data that
cannot be read, an exception in a user's space are results, written once with the reason. What it does raise
(storage that is gone, a lost peer) is the cluster's failure, and worth another try.
"""

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from search_spaces import RequestError
from trainables.data import opened_data
from trainables.spec import Alone, Reporter, Stop, TrialFailure, TrialSpec, describe, never
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
) -> dict[str, Any]:
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
        metrics, epochs = _trained(spec, root, reporter, execution, stop)
        outcome: dict[str, Any] = {
            "status": "finished",
            "reason": None,
            "detail": None,
            "metrics": metrics,
            "epochs": epochs,
        }
    except TrialFailure as failure:
        epochs = newest_progress(root.sub(spec.folder))
        outcome = {
            "status": "failed",
            "reason": failure.reason,
            "detail": failure.detail,
            "metrics": {},
            "epochs": epochs,
        }
        log.warning("trial %s failed: %s", spec.id, failure)
    finally:
        release()
    result = _described(spec, reporter, execution, started) | outcome
    if reporter.rank == 0 or outcome["status"] == "failed":
        written = root.write_once(result_name(spec.run), json.dumps(result, indent=1).encode())
        result = result if written else read_result(root, spec.run) or result
        _tidy(spec, root, result)
    return result


def write_failure(spec: TrialSpec, root: Folder, reason: str, detail: str) -> bool:
    """Give a trial a failed result from outside of it; False where it has one. Its checkpoints stay, its process may still write."""
    epochs = newest_progress(root.sub(spec.folder))
    outcome = {
        "status": "failed",
        "reason": reason,
        "detail": detail,
        "metrics": {},
        "epochs": epochs,
    }
    result = _described(spec, Alone(), None, time.time()) | outcome
    return root.write_once(result_name(spec.run), json.dumps(result, indent=1).encode())


def _trained(
    spec: TrialSpec, root: Folder, reporter: Reporter, execution: "Execution | None", stop: Stop
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
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
    detail = f"{said}; recipe.micro_batch = {spec.recipe['micro_batch']} does not fit"
    if reporter.world_size == 1:
        detail += f": {what_fits(spec, execution)}"
    raise TrialFailure("out of memory", detail)


def _attempted(
    spec: TrialSpec, root: Folder, reporter: Reporter, execution: "Execution | None", stop: Stop
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
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


def _data(spec: TrialSpec) -> Any:
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


def _described(
    spec: TrialSpec, reporter: Reporter, execution: "Execution | None", started: float
) -> dict[str, Any]:
    network = spec.network()
    return {
        "schema": 1,
        "id": spec.id,
        "run": spec.run,
        "kind": spec.kind,
        "space": spec.space,
        "rdw": list(spec.rdw),
        "network": describe(network),
        "budget_epochs": spec.recipe["epochs"],
        "seed": spec.seed,
        "workers": reporter.world_size,
        "execution": asdict(execution) if execution else {},
        "host": socket.gethostname(),
        "started": round(started, 3),
        "ended": round(time.time(), 3),
    }


def _tidy(spec: TrialSpec, root: Folder, result: Mapping[str, Any]) -> None:
    """After the end only the final weights stay, and the last checkpoint where a longer training may go on from it.

    A trial that failed keeps its checkpoints, for another try.
    """
    if result["status"] == "finished":
        folder = root.sub(spec.folder)
        there = checkpoints(folder)
        make_room(folder, there[:-1] if spec.get_recipe().continues else there)
