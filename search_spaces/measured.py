"""Counts the cost of built modules on the meta device and measures their peak memory in a real run.

The space contract and the benchmarks compare these figures with a space's own. Needs torch.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.space import FLOAT32_BYTES, Network


class ModuleCost(NamedTuple):
    """Cost of a built module.

    Attributes:
        macs: multiply-adds at batch 1.
        params: parameters.
        activations: elements written by all convolutions at batch 1.
    """

    macs: int
    params: int
    activations: int


def counted(network: Network) -> ModuleCost:
    """Count the built module with torch's FlopCounterMode.

    Runs on the meta device, so nothing is computed and any size is fast.
    """
    written: list[int] = []
    module = _meta_module(network)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _layer, _inputs, output: written.append(output.numel())
            )
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, network.resolution, network.resolution))
    return ModuleCost(
        counter.get_total_flops() // 2, sum(p.numel() for p in module.parameters()), sum(written)
    )


def _meta_module(network: Network) -> nn.Module:
    """Build the module on the meta device, without memory for its weights.

    A ``build`` that reads tensor values fails there; the module is then built on the CPU and moved.
    """
    try:
        with torch.device("meta"):
            return network.build().eval()
    except RuntimeError:
        return network.build().eval().to("meta")


def counted_macs(network: Network) -> int:
    """Return only the multiply-adds of the built module."""
    return counted(network).macs


def measured_peak(module: nn.Module, resolution: int) -> int:
    """Measure the peak number of live elements in a real forward pass at batch 1.

    The definition is that of ``search_spaces.space``. The module is traced to single operations,
    which run one by one. A tensor is dropped after its last reader. Batch norm and element-wise
    operations reuse the memory of an input that is not read afterwards.
    """
    image = torch.zeros(1, 3, resolution, resolution)
    with torch.no_grad():
        # Tracing with fake tensors computes nothing, so any input size is fast.
        graph = make_fx(module.eval(), tracing_mode="fake", _allow_non_fake_inputs=True)(image)
        return max(_MemoryRun(graph, image).live_bytes()) // FLOAT32_BYTES


class _MemoryRun:
    """Runs a traced module once and records the memory of its feature maps."""

    def __init__(self, traced: fx.GraphModule, image: torch.Tensor) -> None:
        self.traced, self.image = traced, image
        self.values: dict[fx.Node, Any] = {}
        self.weights: set[int] = set()
        readers = {node: list(node.users) for node in traced.graph.nodes}
        order = {node: i for i, node in enumerate(traced.graph.nodes)}
        self.last = {
            node: max(users, key=order.__getitem__, default=node) for node, users in readers.items()
        }

    def live_bytes(self) -> Iterator[int]:
        """Yield the live bytes after each operation, before unused tensors are dropped."""
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return
            dying = [other for other in self.values if self.last[other] is node]
            self.values[node] = self._evaluate(node)
            yield sum(self._storages(self.values).values()) - self._reused_bytes(node, dying)
            for other in [*dying, *([node] if self.last[node] is node else [])]:
                del self.values[other]

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.image
        if node.op == "get_attr":
            value = getattr(self.traced, str(node.target))
            self.weights.add(value.untyped_storage().data_ptr())
            return value
        arguments, options = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        result = node.target(*arguments, **options)  # pyright: ignore[reportCallIssue]
        return _without_unread_parts(result, node)

    def _reused_bytes(self, node: fx.Node, dying: Sequence[fx.Node]) -> int:
        """Return the bytes of a dying input whose memory an element-wise result can reuse."""
        result = self.values[node]
        written = result[0] if isinstance(result, tuple) else result
        if not _element_wise(node) or not isinstance(written, torch.Tensor):
            return 0
        free = self._storages({other: self.values[other] for other in dying})
        taken = self._storages(
            {other: value for other, value in self.values.items() if other not in dying}
        )
        for other in dying:
            value = self.values[other]
            if isinstance(value, torch.Tensor) and value.shape == written.shape:
                address = value.untyped_storage().data_ptr()
                size = written.untyped_storage().nbytes()
                if address not in taken and free.get(address) == size:
                    return size
        return 0

    def _storages(self, values: dict[fx.Node, Any]) -> dict[int, int]:
        """Map the address of each distinct storage of the values to its bytes, without weights."""
        tensors = [
            t
            for value in values.values()
            for t in (value if isinstance(value, tuple) else (value,))
            if isinstance(t, torch.Tensor)
        ]
        storages = [tensor.untyped_storage() for tensor in tensors]
        return {
            s.data_ptr(): s.nbytes()
            for s in storages
            if s.nbytes() and s.data_ptr() not in self.weights
        }


def _element_wise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or "batch_norm" in str(node.target)


def _without_unread_parts(result: Any, node: fx.Node) -> Any:
    """Replace the unread parts of a tuple by None: only training reads the indices of a pooling."""
    if not isinstance(result, tuple):
        return result
    readers = [user for user in node.users if user.target is operator.getitem and user.users]
    indices = {part for user in readers for part in user.args if isinstance(part, int)}
    return tuple(part if i in indices else None for i, part in enumerate(result))
