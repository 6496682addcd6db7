"""Checkpoints of one trial: a folder an epoch, complete once its ``progress.json`` is there.

``epoch-0003/`` holds ``weights.safetensors`` (raw and averaged weights), ``optimizer.safetensors`` and, written last,
``progress.json`` with every epoch's metrics and the size and digest of the other two: together they are read or
not at all. Nothing in them can run code. Randomness needs no state of its own: augmentation and dropout are
seeded by (trial seed, epoch, step, micro-batch), so the position is the state.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from trainables.folder import Folder
from trainables.optim import Average, float_state
from trainables.trial import PROGRESS, checkpoints

log = logging.getLogger("tinynet")

KEPT = 2
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"


@dataclass
class State:
    """What a training is made of between two epochs."""

    model: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    epochs: list[dict[str, Any]]

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.epochs)


def checkpoint_name(epoch: int) -> str:
    return f"epoch-{epoch:04d}"


def save_checkpoint(folder: Folder, trial: str, state: State) -> None:
    """Commit the state after an epoch and drop all but the newest two."""
    name = checkpoint_name(state.epoch)
    tensors, scalars = optimizer_state(state.optimizer)
    weights = {f"raw.{k}": v for k, v in float_state(state.model).items()} | {f"ema.{k}": v for k, v in state.average.state.items()}
    files = {WEIGHTS: save(_plain(weights)), OPTIMIZER: save(_plain(tensors))}
    for file, data in files.items():
        folder.write(f"{name}/{file}", data)
    progress = {
        "schema": 1,
        "trial": trial,
        "epochs": state.epochs,
        "optimizer": scalars,
        "files": {file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()},
    }
    folder.write(f"{name}/{PROGRESS}", json.dumps(progress).encode())
    for old in checkpoints(folder)[:-KEPT]:
        folder.remove(old)


def newest_epoch(folder: Folder, trial: str) -> int:
    """Epochs of the newest whole checkpoint, 0 where there is none; a damaged one is named and passed over."""
    for name in reversed(checkpoints(folder)):
        if _intact(folder, name, trial) is not None:
            return int(name.rsplit("-", 1)[1])
    return 0


def load_checkpoint(folder: Folder, trial: str, epoch: int, state: State) -> None:
    """Put a checkpoint's weights, average, optimizer and metrics into ``state``."""
    found = _intact(folder, checkpoint_name(epoch), trial)
    if found is None:
        raise FileNotFoundError(f"checkpoint {checkpoint_name(epoch)} of {folder.url} is not whole here")
    progress, files = found
    weights = load(files[WEIGHTS])
    for prefix, target in (("raw.", float_state(state.model)), ("ema.", state.average.state)):
        for key, tensor in target.items():
            tensor.copy_(weights[prefix + key])
    restore_optimizer(state.optimizer, load(files[OPTIMIZER]), progress["optimizer"])
    state.epochs[:] = progress["epochs"]


def final_weights(state: State, ranks: str) -> bytes:
    """Safetensors with timm's names: the weights that ``top1`` belongs to."""
    own = state.model.state_dict()
    chosen = own | state.average.state if ranks == "ema" else own
    return save(_plain({k: v for k, v in chosen.items() if v.is_floating_point()}))


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """An optimizer's state as named tensors and named numbers; settings of the groups come from the recipe."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, float] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            elif value is not None:
                scalars[f"{index}.{key}"] = value
    return tensors, scalars


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], scalars: dict[str, float]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in (*tensors.items(), *scalars.items()):
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the default memory layout, as safetensors wants them."""
    return {key: tensor.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}


def _intact(folder: Folder, name: str, trial: str) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """(progress, files) of a checkpoint whose files are all there and as they were written."""
    try:
        progress = json.loads(folder.read(f"{name}/{PROGRESS}"))
        if progress["trial"] != trial or not isinstance(progress["epochs"], list):
            raise ValueError("it belongs to another trial")
        files = {file: folder.read(f"{name}/{file}") for file in (WEIGHTS, OPTIMIZER)}
        for file, data in files.items():
            if hashlib.sha256(data).hexdigest() != progress["files"][file]["sha256"]:
                raise ValueError(f"{file} is damaged")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        log.warning("checkpoint %s/%s is passed over: %s", folder.url, name, error)
        return None
    return progress, files
