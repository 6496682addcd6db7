"""Checkpoints of one trial: a folder each, complete once its ``progress.json`` is there.

``epoch-0003/`` (or ``epoch-0003-step-000120/``, in the middle of the fourth) holds ``weights.safetensors`` (raw and
averaged weights), ``optimizer.safetensors`` and, written last, ``progress.json`` with every epoch's metrics and digests
of the other two and of itself: together they are read or not at all. Nothing in them can run code. Randomness needs
no state of its own: order, augmentation and dropout are seeded by (trial seed, epoch, step, micro-batch), and the
learning rate follows from the step, so the position is the state.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from trainables.memory import ran_out
from trainables.optim.flat import Flat
from trainables.optim.optimizers import Average, float_state
from trainables.optim.state import optimizer_state, restore_optimizer
from trainables.result import EpochRecord, epochs_from
from trainables.storage.documents import LARGE, parsed, typed
from trainables.storage.folder import Folder, below
from trainables.trial_folder import PROGRESS, checkpoints, make_room, position

log = logging.getLogger("tinynet")

KEPT = 2
# 2: an optimizer's state by the parameters' names.
SCHEMA = 2
SEAL = "sha256"
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
# Bytes: a network of half a billion parameters with its average.
LARGEST = 4 * 2**30


@dataclass
class State:
    """What a training is made of between two steps.

    Attributes:
        epochs: the metrics of every whole epoch.
        step, loss, seconds: of the epoch that has begun: steps done, the sum of their losses, time in steps.
    """

    model: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    flat: Flat | None
    epochs: list[EpochRecord] = field(default_factory=list)
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.epochs)

    def end_epoch(self, record: EpochRecord) -> None:
        self.epochs.append(record)
        self.step, self.loss, self.seconds = 0, 0.0, 0.0


@dataclass(frozen=True)
class Begun:
    """The epoch that has begun: steps done, the sum of their losses, time in steps."""

    step: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Progress:
    """The document that makes a checkpoint whole.

    Attributes:
        trial: the run's name.
        optimizer: its single numbers, by key; files: SHA-256 of the other files, by name.
    """

    trial: str
    epochs: list[EpochRecord]
    begun: Begun
    optimizer: dict[str, float]
    files: dict[str, str]

    def to_json(self) -> bytes:
        """With a digest of all the rest."""
        document = {
            "schema": SCHEMA,
            "trial": self.trial,
            "epochs": [epoch.to_json() for epoch in self.epochs],
            "begun": asdict(self.begun),
            "optimizer": self.optimizer,
            "files": self.files,
        }
        return _sealed(json.dumps(document, allow_nan=False))

    @classmethod
    def from_json(cls, body: bytes) -> "Progress":
        """Raises ValueError, KeyError or TypeError where it is damaged or of another version."""
        document = parsed(body)
        if document["schema"] != SCHEMA:
            raise ValueError(f"it is of version {document['schema']}, and this is {SCHEMA}")
        rest = {key: value for key, value in document.items() if key != SEAL}
        if body != _sealed(json.dumps(rest, allow_nan=False)):
            raise ValueError(f"{PROGRESS} is damaged")
        made = {
            "epochs": epochs_from(document["epochs"]),
            "begun": typed(Begun, document["begun"], "begun"),
        }
        return typed(cls, {**document, **made})


def checkpoint_name(epoch: int, step: int = 0) -> str:
    return f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else "")


def save_checkpoint(folder: Folder, trial: str, state: State) -> None:
    """Commit the state and drop all but the newest two."""
    name = checkpoint_name(state.epoch, state.step)
    tensors, scalars = optimizer_state(state.optimizer, state.flat, state.model)
    weights = {f"raw.{k}": v for k, v in float_state(state.model).items()} | {
        f"ema.{k}": v for k, v in state.average.state().items()
    }
    files = {WEIGHTS: save(_plain(weights)), OPTIMIZER: save(_plain(tensors))}
    for file, data in files.items():
        folder.write(f"{name}/{file}", data)
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    begun = Begun(state.step, state.loss, state.seconds)
    progress = Progress(trial, state.epochs, begun, scalars, digests)
    folder.write(f"{name}/{PROGRESS}", progress.to_json())
    make_room(folder, checkpoints(folder)[:-KEPT])


def newest_checkpoint(folder: Folder, trial: str) -> tuple[int, int]:
    """(epochs, steps) done at the newest whole checkpoint, zeros where there is none; a damaged one is named and passed over."""
    for name in reversed(checkpoints(folder)):
        if _intact(folder, name, trial) is not None:
            return position(name)
    return 0, 0


def load_checkpoint(folder: Folder, trial: str, epoch: int, step: int, state: State) -> None:
    """Put a checkpoint's weights, average, optimizer and metrics into ``state``."""
    name = checkpoint_name(epoch, step)
    found = _intact(folder, name, trial)
    if found is None:
        raise FileNotFoundError(f"checkpoint {name} of {folder.url} is not whole here")
    progress, files = found
    try:
        weights = load(files[WEIGHTS])
        for key, tensor in float_state(state.model).items():
            tensor.copy_(weights[f"raw.{key}"])
        state.average.load(
            {
                key.removeprefix("ema."): tensor
                for key, tensor in weights.items()
                if key.startswith("ema.")
            }
        )
        restore_optimizer(
            state.optimizer, state.flat, state.model, load(files[OPTIMIZER]), progress.optimizer
        )
    except (
        SafetensorError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        if ran_out(error) or isinstance(error, torch.AcceleratorError):
            raise
        raise ValueError(
            f"checkpoint {below(folder.url, name)} is of another network ({error!r:.100}): remove its folder"
        ) from error
    state.epochs[:] = progress.epochs
    begun = progress.begun
    state.step, state.loss, state.seconds = begun.step, begun.loss, begun.seconds


def final_weights(state: State, ranks: str) -> bytes:
    """Safetensors with timm's names: the weights that ``top1`` belongs to."""
    return save(_plain(state.average.state() if ranks == "ema" else float_state(state.model)))


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the default memory layout, as safetensors wants them."""
    return {
        key: tensor.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }


def _sealed(text: str) -> bytes:
    """A JSON object with a digest of its text as the last member."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text.removesuffix("}")}, "{SEAL}": "{digest}"}}'.encode()


def _intact(folder: Folder, name: str, trial: str) -> tuple[Progress, dict[str, bytes]] | None:
    """(progress, files) of a checkpoint whose files are all there and as they were written."""
    try:
        body = folder.read(f"{name}/{PROGRESS}", LARGE)
    except FileNotFoundError:
        return None  # it was never finished
    except ValueError as error:
        log.warning("checkpoint %s is passed over: %s", below(folder.url, name), error)
        return None
    try:
        progress = Progress.from_json(body)
        done = len(progress.epochs), progress.begun.step
        if progress.trial != trial or done != position(name):
            raise ValueError("it belongs to another trial or step")
        files = {file: folder.read(f"{name}/{file}", LARGEST) for file in (WEIGHTS, OPTIMIZER)}
        for file, data in files.items():
            if hashlib.sha256(data).hexdigest() != progress.files[file]:
                raise ValueError(f"{file} is damaged")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("checkpoint %s is passed over: %s", below(folder.url, name), error)
        return None
    return progress, files
