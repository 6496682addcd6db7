"""Peak activation memory at batch 1: the closed form, a run of single operations, and what eager PyTorch holds.

Eager PyTorch holds more: batch norm writes a new tensor, and Python keeps the inputs of blocks that are still running.
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
    """Bytes of tensors alive at once while a module is called as anybody would, the image included."""
    with torch.inference_mode(), _Watch() as watch:
        module(image)
    return watch.peak + image.nbytes


class _Watch(TorchDispatchMode):
    """Sees every tensor that an operation makes, and when its memory is given back."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes():
                self._seen(tensor.untyped_storage())
        return made

    def _seen(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, storage._cdata, 0)
            self.peak = max(self.peak, sum(self.alive.values()))
