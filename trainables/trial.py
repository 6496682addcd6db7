"""One trial from its description to its result: what every executor calls, with or without Ray.

``run_trial`` never raises for the trial's own failures: a loss that is no number, memory that runs out, data that
cannot be read, an exception in a user's space are results, written once with the reason. What it does raise
(storage that is gone, a lost peer) is the cluster's failure, and worth another try.
"""

import hashlib
import json
import logging
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from search_spaces import Network, RequestError, SearchSpace, get_space
from trainables.folder import Folder, open_folder
from trainables.recipe import Recipe, recipe_from

if TYPE_CHECKING:
    from trainables.execution import Execution

log = logging.getLogger("tinynet")

_CHECKPOINT = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")
WEIGHTS_FILE, CONFIG_FILE, PROGRESS = "weights.safetensors", "config.json", "progress.json"


class TrialFailure(RuntimeError):  # noqa: N818 - it is a result, not a fault of the program
    """The trial cannot go on, and another try would end the same way."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Reporter(Protocol):
    """How a training speaks with whatever runs it."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Called on every rank, once an epoch; on rank 0 after the epoch's checkpoint is committed."""
        ...


@dataclass(frozen=True)
class Alone:
    """The reporter of a training that nobody drives."""

    rank: int = 0
    world_size: int = 1

    def report(self, metrics: Mapping[str, Any]) -> None:
        return None


@dataclass(frozen=True)
class TrialSpec:
    """Everything that decides a trial's result, in plain values that survive JSON.

    Attributes:
        space, space_version, rdw, num_classes: the network.
        recipe: ``dataclasses.asdict`` of the recipe, the epochs included.
        data: the ``[data]`` settings; data_fingerprint: what they held when the search was planned.
        seed: of weights, order, augmentation and dropout.
        kind: ``trial`` or ``final``.
    """

    space: str
    space_version: int
    rdw: tuple[float, float, float]
    num_classes: int
    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    data_fingerprint: str
    seed: int
    kind: str = "trial"

    def network(self) -> Network:
        return get_space(self.space).network(self.rdw, self.num_classes)

    def get_recipe(self) -> Recipe:
        return recipe_from(self.recipe)

    @property
    def id(self) -> str:
        """Ten hex digits of what decides the result; the epochs are not in it."""
        return trial_id(get_space(self.space), self.network(), self.get_recipe(), self.data_fingerprint, self.seed)

    @property
    def folder(self) -> str:
        """The trial's folder below the search directory: one for each epoch budget."""
        return f"trials/{self.run}"

    @property
    def run(self) -> str:
        """Names one epoch budget of the trial: ``<id>-e<epochs>``."""
        return f"{self.id}-e{self.recipe['epochs']}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrialSpec":
        return cls(**{**values, "rdw": tuple(values["rdw"])})


def trial_id(space: SearchSpace, network: Network, recipe: Recipe, fingerprint: str, seed: int) -> str:
    decides = [space.name, space.version, network.key, recipe.identity(), fingerprint, seed]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:10]


def result_name(run: str) -> str:
    return f"results/{run}.json"


def read_result(root: Folder, run: str) -> dict[str, Any] | None:
    """A trial's result, or None where it has none yet.

    Raises:
        RequestError: the file is there and is not a result.
    """
    try:
        data = root.read(result_name(run))
    except FileNotFoundError:
        return None
    try:
        result = json.loads(data)
        _check_result(result, run)
        return result
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"result {root.url}/{result_name(run)} is damaged ({error}): remove it to train the trial again") from error


def _check_result(result: Any, run: str) -> None:
    """Raises ValueError, KeyError or TypeError where it is no result of this trial."""
    if result["run"] != run or result["status"] not in ("finished", "failed"):
        raise ValueError("it is no result of this trial")
    rows = [*result["epochs"], *([result["metrics"]] if result["status"] == "finished" else [])]
    if not isinstance(result["metrics"], dict) or (result["status"] == "finished" and not result["epochs"]):
        raise ValueError("it has no metrics")
    numbers = [row[key] for row in rows for key in ("epoch", "ts", "seconds", "top1", "top1_raw", "top1_ema", "train_loss")]
    numbers += [result["network"][key] for key in ("c", "macs", "params", "resolution")] + [result["started"], result["ended"]]
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("a figure is no number")


def checkpoints(folder: Folder) -> list[str]:
    """Names of a trial folder's checkpoints, oldest first; one is whole once it has its ``progress.json``."""
    found = [name for name in folder.names() if _CHECKPOINT.fullmatch(name)]
    return sorted(found, key=position)


def position(checkpoint: str) -> tuple[int, int]:
    """(epochs done, steps done of the next) by a checkpoint's name."""
    found = _CHECKPOINT.fullmatch(checkpoint)
    assert found
    return int(found[1]), int(found[2] or 0)


def newest_progress(folder: Folder) -> list[dict[str, Any]]:
    """Every committed epoch's metrics, read without touching weights; empty where nothing was committed."""
    for name in reversed(checkpoints(folder)):
        try:
            epochs = json.loads(folder.read(f"{name}/{PROGRESS}"))["epochs"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        if isinstance(epochs, list):
            return epochs
    return []


def run_trial(spec: TrialSpec, root_url: str, reporter: Reporter, execution: "Execution | None" = None) -> dict[str, Any]:
    """Train a trial, or take up what is there of it, and write its result.

    Args:
        root_url: the search directory.
        execution: how it is computed on this machine; None is every default.

    Returns:
        The result, on every rank with the same metrics; whoever comes after a result gets it unchanged.
    """
    root = open_folder(root_url)
    found = read_result(root, spec.run)
    if found is not None:
        _tidy(root.sub(spec.folder))
        return found
    from trainables.memory import release

    started = time.time()
    try:
        metrics, epochs = _trained(spec, root, reporter, execution)
        outcome: dict[str, Any] = {"status": "finished", "reason": None, "detail": None, "metrics": metrics, "epochs": epochs}
    except TrialFailure as failure:
        epochs = newest_progress(root.sub(spec.folder))
        outcome = {"status": "failed", "reason": failure.reason, "detail": failure.detail, "metrics": {}, "epochs": epochs}
        log.warning("trial %s failed: %s", spec.id, failure)
    finally:
        release()
    result = _described(spec, reporter, execution, started) | outcome
    if reporter.rank == 0 or outcome["status"] == "failed":
        written = root.write_once(result_name(spec.run), json.dumps(result, indent=1).encode())
        _tidy(root.sub(spec.folder))
        return result if written else read_result(root, spec.run) or result
    return result


def _trained(
    spec: TrialSpec, root: Folder, reporter: Reporter, execution: "Execution | None"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The training, with everything that is the trial's own fault turned into TrialFailure."""
    from trainables.memory import ran_out, release, what_fits

    try:
        return _attempted(spec, root, reporter, execution)
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
    spec: TrialSpec, root: Folder, reporter: Reporter, execution: "Execution | None"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import torch

    from trainables.classification import Trainer
    from trainables.data.encoded import UnreadableImageError
    from trainables.memory import ran_out

    try:
        return Trainer(spec, _data(spec), root, reporter, execution).run()
    except TrialFailure:
        raise
    except UnreadableImageError as error:
        raise TrialFailure("unreadable data", _last_line(error)) from error
    except (RequestError, OSError, torch.distributed.DistError):
        raise  # this node's fault: the driver opened the same space and data, and a broken GPU breaks the next trial too
    except Exception as error:
        if ran_out(error) or isinstance(error, torch.AcceleratorError) or _process_lost(error, reporter.world_size):
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
        raise TrialFailure("data changed", f"planned on {spec.data_fingerprint}, found {data.fingerprint}")
    return data


# The last data that were opened: trial processes are reused, and a listing of ImageNet takes a while.
_open: dict[str, Any] = {}


def opened_data(settings: Mapping[str, Any], fingerprint: str | None = None) -> Any:
    """The data of settings, opened once a process; anew where they had another fingerprint then."""
    from trainables.data import open_data

    key = json.dumps(settings, sort_keys=True)
    if key not in _open or fingerprint not in (None, _open[key].fingerprint):
        _open.clear()
        _open[key] = open_data(settings)
    return _open[key]


def _process_lost(error: Exception, world_size: int) -> bool:
    """A peer or a loader process that went away is reported as a plain RuntimeError; only its words tell."""
    words = str(error).lower()
    peers = ("connection", "gloo", "nccl", "timed out", "peer", "socket") if world_size > 1 else ()
    return isinstance(error, RuntimeError) and any(mark in words for mark in ("dataloader worker", "shared memory", *peers))


def _described(spec: TrialSpec, reporter: Reporter, execution: "Execution | None", started: float) -> dict[str, Any]:
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


def describe(network: Network) -> dict[str, Any]:
    """The real network's figures, as they stand in candidates, results and MLflow."""
    return {
        **network.details,
        "resolution": network.resolution,
        "macs": network.macs,
        "params": network.params,
        "activations": network.activations,
        "activation_bytes": network.activation_bytes,
        "c": network.c,
        "num_classes": network.num_classes,
    }


def _tidy(folder: Folder) -> None:
    """After the end only the final weights stay."""
    for name in checkpoints(folder):
        folder.remove(name)
