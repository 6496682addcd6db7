"""Adds up the cost of a network, layer by layer in the order of its forward pass.

A space's ``cost`` iterates over its decoded shape once and adds each layer here. Sizes are ints, or
float64 arrays of equal length when many networks are costed at once. ``times`` is how often a block
repeats, and may be 0.
"""

from typing import Any

import numpy as np

from search_spaces.space import Cost


def highest(*values: Any) -> Any:
    """Return the largest of the ints, or the element-wise maximum of arrays."""
    if not any(isinstance(value, np.ndarray) for value in values):
        return max(values)
    top = values[0]
    for value in values[1:]:
        top = np.maximum(top, value)
    return top


class Tally:
    """Multiply-adds, parameters, activations and peak memory of the layers added so far.

    ``held`` is the number of elements that stay alive in addition to a layer's own input and
    output: a shortcut that is added later, or the finished half of a concatenation.
    """

    def __init__(self) -> None:
        self.macs: Any = 0
        self.params: Any = 0
        self.activations: Any = 0
        self.peak: Any = 0

    def conv(
        self,
        channels: tuple[Any, Any],
        kernel: int,
        size: Any,
        stride: int = 1,
        *,
        depthwise: bool = False,
        bias: bool = False,
        norm: bool = True,
        held: Any = 0,
        times: Any = 1,
    ) -> Any:
        """Add a square convolution, padded by half its kernel.

        Args:
            channels: input and output channels; equal if ``depthwise``.
            size: side of the input in pixels.
            norm: whether batch norm follows.
            held: further elements alive during the layer.
            times: how often the layer repeats.

        Returns:
            Side of the output in pixels.
        """
        cin, cout = channels
        out = (size - 1) // stride + 1
        weights = kernel * kernel * cout * (1 if depthwise else cin)
        self.macs = self.macs + times * weights * out * out
        self.params = self.params + times * (weights + cout * (bias + 2 * norm))
        self.activations = self.activations + times * cout * out * out
        self.live(held + cin * size * size + cout * out * out, times)
        return out

    def squeeze_excite(
        self, channels: Any, reduced: Any, size: Any, *, held: Any = 0, times: Any = 1
    ) -> None:
        """Add a pooling, two 1x1 convolutions with bias, and a gate applied in place."""
        held = held + channels * size * size
        self.live(held + channels, times)
        self.conv((channels, reduced), 1, 1, bias=True, norm=False, held=held, times=times)
        self.conv((reduced, channels), 1, 1, bias=True, norm=False, held=held, times=times)

    def linear(self, features: tuple[Any, Any]) -> None:
        """Add a linear layer with bias, applied to a vector."""
        inputs, outputs = features
        self.macs = self.macs + inputs * outputs
        self.params = self.params + (inputs + 1) * outputs
        self.live(inputs + outputs)

    def live(self, elements: Any, times: Any = 1) -> None:
        """Record that this number of elements is alive at once, if ``times`` is above 0.

        Poolings and concatenations, which add no cost, are recorded this way.
        """
        self.peak = highest(self.peak, elements * (times > 0))

    def total(self) -> Cost:
        return Cost(self.macs, self.params, self.activations, self.peak)
