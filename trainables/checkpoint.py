"""Writes and reads the checkpoints of one trial, one folder per checkpoint.

Called by the training loop and by ``tinynet train --eval-only``.

``epoch-0003/`` (or ``epoch-0003-step-000120/``, in the middle of the fourth epoch) contains
``weights.safetensors`` (raw and averaged weights), ``optimizer.safetensors`` and
``progress.json``. ``progress.json`` is written last and contains every epoch's metrics and the
digests of the other two files and of itself, so a checkpoint is read completely or not at all.
None of the files can execute code.

Random generators have no saved state: order, augmentation and dropout are seeded by (trial seed,
epoch, step, micro-batch), and the learning rate follows from the step, so the position is enough.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from trainables.classes import class_metadata
from trainables.memory import is_out_of_memory
from trainables.optim.flat import FlatBuffers
from trainables.optim.optimizers import Average, float_state
from trainables.optim.state import optimizer_state, restore_optimizer
from trainables.result import EpochRecord, epochs_from
from trainables.storage.documents import LARGE, parsed, typed
from trainables.storage.folder import Folder, child_url
from trainables.trial_folder import PROGRESS, checkpoints, position, remove_checkpoints

log = logging.getLogger("tinynet")

KEPT_CHECKPOINTS = 2
# Schema 2 stores the optimizer's state by parameter name.
SCHEMA = 2
CHECKSUM_KEY = "sha256"
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
# Enough for a network of half a billion parameters and its average.
MAX_FILE_BYTES = 4 * 2**30


@dataclass
class State:
    """The complete state of a training between two steps.

    Attributes:
        epochs: the metrics of every completed epoch.
        step, loss, seconds: of the current epoch: steps done, the sum of their losses, and the time
            spent in them.
    """

    model: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    flat: FlatBuffers | None
    epochs: list[EpochRecord] = field(default_factory=list)
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return len(self.epochs)

    def end_epoch(self, record: EpochRecord) -> None:
        self.epochs.append(record)
        self.step, self.loss, self.seconds = 0, 0.0, 0.0


@dataclass(frozen=True)
class PartialEpoch:
    """The current epoch: steps done, the sum of their losses, and the time spent in them."""

    step: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Progress:
    """The content of ``progress.json``, which completes a checkpoint.

    Attributes:
        trial: the run's name.
        begun: the epoch in progress.
        optimizer: the optimizer's scalars by key.
        files: SHA-256 digests of the other files by name.
    """

    trial: str
    epochs: list[EpochRecord]
    begun: PartialEpoch
    optimizer: dict[str, float]
    files: dict[str, str]

    def to_json(self) -> bytes:
        """JSON that includes a digest of all other members."""
        document = {
            "schema": SCHEMA,
            "trial": self.trial,
            "epochs": [epoch.to_json() for epoch in self.epochs],
            "begun": asdict(self.begun),
            "optimizer": self.optimizer,
            "files": self.files,
        }
        return _with_checksum(json.dumps(document, allow_nan=False))

    @classmethod
    def from_json(cls, body: bytes) -> "Progress":
        """Read a ``progress.json``.

        Raises:
            ValueError, KeyError, TypeError: the document is damaged or has a different schema.
        """
        document = parsed(body)
        if document["schema"] != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {document['schema']}")
        rest = {key: value for key, value in document.items() if key != CHECKSUM_KEY}
        if body != _with_checksum(json.dumps(rest, allow_nan=False)):
            raise ValueError(f"{PROGRESS} is damaged")
        converted = {
            "epochs": epochs_from(document["epochs"]),
            "begun": typed(PartialEpoch, document["begun"], "begun"),
        }
        return typed(cls, {**document, **converted})


def checkpoint_name(epoch: int, step: int = 0) -> str:
    return f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else "")


def save_checkpoint(folder: Folder, trial: str, state: State) -> None:
    """Write a checkpoint of the state and remove all but the newest two."""
    name = checkpoint_name(state.epoch, state.step)
    tensors, scalars = optimizer_state(state.optimizer, state.flat, state.model)
    weights = {f"raw.{k}": v for k, v in float_state(state.model).items()} | {
        f"ema.{k}": v for k, v in state.average.state().items()
    }
    files = {WEIGHTS: save(_plain(weights)), OPTIMIZER: save(_plain(tensors))}
    for file, data in files.items():
        folder.write(f"{name}/{file}", data)
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    begun = PartialEpoch(state.step, state.loss, state.seconds)
    progress = Progress(trial, state.epochs, begun, scalars, digests)
    folder.write(f"{name}/{PROGRESS}", progress.to_json())
    remove_checkpoints(folder, checkpoints(folder)[:-KEPT_CHECKPOINTS])


def newest_checkpoint(folder: Folder, trial: str) -> tuple[int, int]:
    """Position (epochs done, steps done) of the newest complete checkpoint; zeros if there is none.

    Damaged checkpoints are skipped with a warning.
    """
    for name in reversed(checkpoints(folder)):
        if _read_intact(folder, name, trial) is not None:
            return position(name)
    return 0, 0


def load_checkpoint(folder: Folder, trial: str, epoch: int, step: int, state: State) -> None:
    """Load a checkpoint's weights, average, optimizer and metrics into ``state``.

    Raises:
        FileNotFoundError: the checkpoint is incomplete or damaged.
        ValueError: it was written for a different network.
    """
    name = checkpoint_name(epoch, step)
    content = _read_intact(folder, name, trial)
    if content is None:
        raise FileNotFoundError(f"checkpoint {name} of {folder.url} is incomplete or damaged")
    progress, files = content
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
        if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
            raise
        raise ValueError(
            f"checkpoint {child_url(folder.url, name)} does not match this network "
            f"({error!r:.100}): remove its folder"
        ) from error
    state.epochs[:] = progress.epochs
    begun = progress.begun
    state.step, state.loss, state.seconds = begun.step, begun.loss, begun.seconds


def final_weights(state: State, ranks: str, class_names: Sequence[str]) -> bytes:
    """The weights that ``top1`` was measured with, as safetensors with timm's parameter names.

    Args:
        class_names: the class of each output, which the file's metadata records.
    """
    tensors = _plain(state.average.state() if ranks == "ema" else float_state(state.model))
    return save(tensors, class_metadata(class_names))


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the contiguous memory layout that safetensors requires."""
    return {
        key: tensor.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }


def _with_checksum(text: str) -> bytes:
    """Append a digest of the text of a JSON object as its last member."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text.removesuffix("}")}, "{CHECKSUM_KEY}": "{digest}"}}'.encode()


def _read_intact(folder: Folder, name: str, trial: str) -> tuple[Progress, dict[str, bytes]] | None:
    """Progress and files of a checkpoint, or None if a file is missing or damaged."""
    try:
        body = folder.read(f"{name}/{PROGRESS}", LARGE)
    except FileNotFoundError:
        return None  # the checkpoint was never completed
    except ValueError as error:
        log.warning("skipping checkpoint %s: %s", child_url(folder.url, name), error)
        return None
    try:
        progress = Progress.from_json(body)
        done = len(progress.epochs), progress.begun.step
        if progress.trial != trial or done != position(name):
            raise ValueError("it belongs to a different trial or step")
        files = {
            file: folder.read(f"{name}/{file}", MAX_FILE_BYTES) for file in (WEIGHTS, OPTIMIZER)
        }
        for file, data in files.items():
            if hashlib.sha256(data).hexdigest() != progress.files[file]:
                raise ValueError(f"{file} is damaged")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("skipping checkpoint %s: %s", child_url(folder.url, name), error)
        return None
    return progress, files
