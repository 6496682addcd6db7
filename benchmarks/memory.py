"""Peak activation memory at batch 1: closed form, operation by operation, and eager PyTorch.

Run by ``python -m benchmarks.run memory``. Eager PyTorch holds more: batch norm writes a new
tensor, and Python keeps a reference to the inputs of blocks that are still running.
"""

import weakref
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measure import Row
from search_spaces.networks import get_named
from search_spaces.space import FLOAT32_BYTES
from search_spaces.testing import measured_peak

NAMES = (
    "efficientnet_b0",
    "tinynet_a",
    "tinynet_c",
    "tinynet_e",
    "resnet50",
    "resnet18",
    "ghostnet_a",
)


def run() -> list[Row]:
    return [row for name in NAMES for row in _rows(name)]


def _rows(name: str) -> list[Row]:
    network = get_named(name).network()
    module, image = (
        network.build().eval(),
        torch.zeros(1, 3, network.resolution, network.resolution),
    )
    measured = FLOAT32_BYTES * measured_peak(module, network.resolution)
    return [
        Row(f"{name}: closed form", network.activation_bytes / 1e6, "MB"),
        Row(
            f"{name}: a run of single operations / closed form",
            measured / network.activation_bytes,
            "times",
        ),
        Row(
            f"{name}: eager PyTorch / closed form",
            eager_peak(module, image) / network.activation_bytes,
            "times",
        ),
    ]


def eager_peak(module: nn.Module, image: torch.Tensor) -> int:
    """Peak bytes of live tensors during an ordinary call of a module, the image included."""
    with torch.inference_mode(), _LiveTensors() as tensors:
        module(image)
    return tensors.peak + image.nbytes


class _LiveTensors(TorchDispatchMode):
    """Tracks every tensor that an operation creates until its storage is released."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes():
                self._track(tensor.untyped_storage())
        return output

    def _track(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, storage._cdata, 0)
            self.peak = max(self.peak, sum(self.alive.values()))
