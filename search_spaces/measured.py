"""What real modules come to: counted on the meta device, measured while they run. Needs torch."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.space import FLOAT32_BYTES, Network


class Counted(NamedTuple):
    """What a module has: multiply-adds and elements written by all convolutions at batch 1, and parameters."""

    macs: int
    params: int
    activations: int


def counted(network: Network) -> Counted:
    """The built module by torch's own counter; nothing is computed, so any size is quick."""
    written: list[int] = []
    module = _hollow(network)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _layer, _inputs, output: written.append(output.numel())
            )
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, network.resolution, network.resolution))
    return Counted(
        counter.get_total_flops() // 2, sum(p.numel() for p in module.parameters()), sum(written)
    )


def _hollow(network: Network) -> nn.Module:
    """The module without memory for its weights; made whole at first where building it reads a tensor's values."""
    try:
        with torch.device("meta"):
            return network.build().eval()
    except RuntimeError:
        return network.build().eval().to("meta")


def counted_macs(network: Network) -> int:
    """Multiply-adds of the built module alone."""
    return counted(network).macs


def measured_peak(module: nn.Module, resolution: int) -> int:
    """Elements alive at the worst moment of a real forward pass at batch 1, as ``search_spaces.space`` defines them.

    The module is traced to its single operations and these are run one by one: a tensor is dropped after its last reader,
    batch norm and element-wise operations take the place of an input that nobody reads afterwards.
    """
    image = torch.zeros(1, 3, resolution, resolution)
    with torch.no_grad():
        # Nothing is computed while tracing, and any input size is quick.
        graph = make_fx(module.eval(), tracing_mode="fake", _allow_non_fake_inputs=True)(image)
        return max(_Run(graph, image).moments()) // FLOAT32_BYTES


class _Run:
    """One pass over a traced module, watching the memory of its feature maps."""

    def __init__(self, traced: fx.GraphModule, image: torch.Tensor) -> None:
        self.traced, self.image = traced, image
        self.values: dict[fx.Node, Any] = {}
        self.weights: set[int] = set()
        readers = {node: list(node.users) for node in traced.graph.nodes}
        order = {node: i for i, node in enumerate(traced.graph.nodes)}
        self.last = {
            node: max(users, key=order.__getitem__, default=node) for node, users in readers.items()
        }

    def moments(self) -> Iterator[int]:
        """Bytes alive after each operation, before what is no longer read is dropped."""
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return
            dying = [other for other in self.values if self.last[other] is node]
            self.values[node] = self._evaluated(node)
            yield sum(self._alive(self.values).values()) - self._reused(node, dying)
            for other in [*dying, *([node] if self.last[node] is node else [])]:
                del self.values[other]

    def _evaluated(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.image
        if node.op == "get_attr":
            value = getattr(self.traced, str(node.target))
            self.weights.add(value.untyped_storage().data_ptr())
            return value
        arguments, options = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        return _read(node.target(*arguments, **options), node)  # pyright: ignore[reportCallIssue]

    def _reused(self, node: fx.Node, dying: Sequence[fx.Node]) -> int:
        """Bytes of an input that nobody reads afterwards, where an element-wise result can take its place."""
        result = self.values[node]
        written = result[0] if isinstance(result, tuple) else result
        if not _element_wise(node) or not isinstance(written, torch.Tensor):
            return 0
        free = self._alive({other: self.values[other] for other in dying})
        taken = self._alive(
            {other: value for other, value in self.values.items() if other not in dying}
        )
        for other in dying:
            value = self.values[other]
            if isinstance(value, torch.Tensor) and value.shape == written.shape:
                place, size = value.untyped_storage().data_ptr(), written.untyped_storage().nbytes()
                if place not in taken and free.get(place) == size:
                    return size
        return 0

    def _alive(self, values: dict[fx.Node, Any]) -> dict[int, int]:
        """Address and bytes of each distinct piece of memory behind values, weights left out."""
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


def _read(result: Any, node: fx.Node) -> Any:
    """A tuple without the parts that nobody reads: a pooling's indices are for training."""
    if not isinstance(result, tuple):
        return result
    read = [user for user in node.users if user.target is operator.getitem and user.users]
    wanted = {part for user in read for part in user.args if isinstance(part, int)}
    return tuple(part if i in wanted else None for i, part in enumerate(result))
