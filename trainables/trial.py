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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from search_spaces import Network, RequestError, SearchSpace, get_space
from trainables.documents import LARGE, LONGEST_TEXT, check_epochs, check_result, parsed
from trainables.folder import Folder, StorageError, below, open_folder
from trainables.recipe import Recipe, recipe_from
from trainables.stopping import Stopped

if TYPE_CHECKING:
    from trainables.execution import Execution

log = logging.getLogger("tinynet")

Stop = Callable[[], bool]

# As they are written, and no other spelling of the same numbers.
_CHECKPOINT = re.compile(r"epoch-(\d{4}|[1-9]\d{4,5})(?:-step-(\d{6}|[1-9]\d{6,8}))?", re.ASCII)
WEIGHTS_FILE, CONFIG_FILE, PROGRESS = "weights.safetensors", "config.json", "progress.json"


def never() -> bool:
    """Nobody asks the training to end."""
    return False


class TrialFailure(RuntimeError):  # noqa: N818 - it is a result, not a fault of the program
    """The trial cannot go on, and another try would end the same way."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail[:LONGEST_TEXT]


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
        return trial_id(
            get_space(self.space),
            self.network(),
            self.get_recipe(),
            self.data_fingerprint,
            self.seed,
        )

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


def trial_id(
    space: SearchSpace, network: Network, recipe: Recipe, fingerprint: str, seed: int
) -> str:
    parts = (json.dumps(part) for part in (space.name, space.version, network.key))
    decides = [*parts, _identity(recipe), json.dumps(fingerprint), json.dumps(seed)]
    return hashlib.sha256(f"[{', '.join(decides)}]".encode()).hexdigest()[:10]


@lru_cache(maxsize=8)
def _identity(recipe: Recipe) -> str:
    """As JSON; thousands of candidates of a search share it."""
    return json.dumps(recipe.identity(), sort_keys=True)


def result_name(run: str) -> str:
    return f"results/{run}.json"


def read_result(root: Folder, run: str) -> dict[str, Any] | None:
    """A trial's result, or None where it has none yet.

    Raises:
        RequestError: the file is there and is not a result.
    """
    try:
        result = parsed(root.read(result_name(run), LARGE))
        check_result(result, run)
        return result
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


def shorter_budgets(root: Folder, spec: TrialSpec) -> list[str]:
    """Runs of the same trial for fewer epochs that have a folder, the longest first."""
    stem = f"{spec.id}-e"
    found = [
        int(name.removeprefix(stem))
        for name in root.names("trials")
        if re.fullmatch(re.escape(stem) + r"\d{1,6}", name)
    ]
    return [
        f"{stem}{epochs}"
        for epochs in sorted(found, reverse=True)
        if epochs < spec.recipe["epochs"]
    ]


def newest_progress(folder: Folder) -> list[dict[str, Any]]:
    """Every committed epoch's metrics, read without touching weights; empty where nothing was committed."""
    for name in reversed(checkpoints(folder)):
        try:
            epochs = parsed(folder.read(f"{name}/{PROGRESS}", LARGE))["epochs"]
            check_epochs(epochs)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        return epochs
    return []


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

    from trainables.classification import Trainer
    from trainables.data.encoded import UnreadableImageError
    from trainables.memory import ran_out

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


def _tidy(spec: TrialSpec, root: Folder, result: Mapping[str, Any]) -> None:
    """After the end only the final weights stay, and the last checkpoint where a longer training may go on from it.

    A trial that failed keeps its checkpoints, for another try.
    """
    if result["status"] == "finished":
        folder = root.sub(spec.folder)
        there = checkpoints(folder)
        make_room(folder, there[:-1] if spec.get_recipe().continues else there)


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
