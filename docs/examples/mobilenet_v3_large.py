"""A custom search space: MobileNetV3-Large, which the package does not contain.

A space has four methods: ``decode`` rounds (r, d, w) to a real network, ``cost`` counts it,
``build`` creates the torch module and ``describe`` returns a unique text. The baseline (1, 1, 1) is
torchvision's network, and torchvision's weights can be loaded into it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.ops import StochasticDepth

from search_spaces import Cost, Details, Network, SearchSpace
from search_spaces.errors import unknown
from search_spaces.rounding import round_channels, round_repeats
from search_spaces.tally import Tally, highest

STEM, HIDDEN, DIVISOR = 16, 1280, 8


# 1. The baseline is data, one row per stage.
class Stage(NamedTuple):
    """``expanded``: widths inside the first blocks; further blocks repeat the last.

    ``stride`` applies to the first block.
    """

    kernel: int
    stride: int
    channels: int
    repeats: int
    expanded: tuple[int, ...]
    squeeze: bool
    activation: str


STAGES = (
    Stage(3, 1, 16, 1, (16,), False, "RE"),
    Stage(3, 2, 24, 2, (64, 72), False, "RE"),
    Stage(5, 2, 40, 3, (72, 120), True, "RE"),
    Stage(3, 2, 80, 4, (240, 200, 184), False, "HS"),
    Stage(3, 1, 112, 2, (480, 672), True, "HS"),
    Stage(5, 2, 160, 3, (672, 960), True, "HS"),
)


# 2. The shape is everything that (r, d, w) determines: ints, or arrays of equal length when many
# networks are counted at once.
class Shape(NamedTuple):
    resolution: Any
    stem: Any
    channels: tuple[Any, ...]
    expanded: tuple[tuple[Any, ...], ...]
    repeats: tuple[Any, ...]


def blocks(shape: Shape) -> Iterator[tuple[Stage, int, Any, Any, Any, Any]]:
    """Yield (stage, stride, channels in, inside and out, times) of each kind of block.

    Both ``cost`` and ``build`` use it.
    """
    cin = shape.stem
    for stage, cout, widths, repeats in zip(STAGES, *shape[2:], strict=True):
        for i, expanded in enumerate(widths):
            # A shallow stage keeps its first blocks, a deep one repeats its last.
            times = highest(repeats - i, 0) if i == len(widths) - 1 else 1 * (repeats > i)
            yield stage, 1 if i else stage.stride, cin, expanded, cout, times
            cin = cout


class Space(SearchSpace):
    name, base_resolution, num_classes = "mobilenet_v3_large", 224, 1000

    def decode(self, r: Any, d: Any, w: Any) -> Shape:
        widths = (STEM, *(stage.channels for stage in STAGES))
        stem, *channels = (round_channels(n, w, DIVISOR) for n in widths)
        expanded = tuple(tuple(round_channels(n, w, DIVISOR) for n in s.expanded) for s in STAGES)
        repeats = tuple(round_repeats(stage.repeats, d) for stage in STAGES)
        return Shape(self.pixels(r), stem, tuple(channels), expanded, repeats)

    # 3. The cost adds the layers in the order in which they run; Tally computes the sums.
    def cost(self, shape: Shape, num_classes: int) -> Cost:
        tally = Tally()
        size = tally.conv((3, shape.stem), 3, shape.resolution, 2)
        for stage, stride, cin, expanded, cout, times in blocks(shape):
            # Without expansion there is no first convolution, and the next one reads the shortcut.
            expands = 1 * (expanded != cin)
            shortcut = (stride == 1) * (cin == cout) * cin * size * size
            tally.conv((cin, expanded), 1, size, times=times * expands)
            inner, k, held = (expanded, expanded), stage.kernel, shortcut * expands
            size = tally.conv(inner, k, size, stride, depthwise=True, held=held, times=times)
            if stage.squeeze:
                squeezed = round_channels(1, expanded // 4, DIVISOR)
                tally.squeeze_excite(expanded, squeezed, size, held=shortcut, times=times)
            tally.conv((expanded, cout), 1, size, held=shortcut, times=times)
        cin, wide = shape.channels[-1], 6 * shape.channels[-1]
        tally.conv((cin, wide), 1, size)
        tally.live(wide * size * size + wide)
        tally.linear((wide, HIDDEN))
        tally.linear((HIDDEN, num_classes))
        return tally.total()

    # 4. A text that identifies the shape, and figures for display.
    def describe(self, shape: Shape) -> str:
        stages = (f"{c}x{n}e{'-'.join(map(str, e))}" for c, e, n in zip(*shape[2:], strict=True))
        return f"{shape.resolution}px-{shape.stem}.{'.'.join(stages)}"

    def details(self, shape: Shape) -> Details:
        return {"stem": shape.stem, "channels": [*shape.channels], "repeats": [*shape.repeats]}

    # 5. The module. Training passes both rates; torchvision's blocks have no stochastic depth,
    # so it is added.
    def build(
        self, network: Network, *, drop_rate: float = 0, drop_path_rate: float = 0, **options: Any
    ) -> nn.Module:
        if options:
            raise unknown("build option", next(iter(options)), ("drop_rate", "drop_path_rate"))
        rows: list[InvertedResidualConfig] = []
        for stage, stride, cin, expanded, cout, times in blocks(network.shape):
            about = (cin, stage.kernel, expanded, cout, stage.squeeze, stage.activation, stride)
            rows += [InvertedResidualConfig(*about, 1, 1.0) for _ in range(times)]
        model = MobileNetV3(rows, HIDDEN, network.num_classes, dropout=drop_rate)
        residual: list[Any] = [m for m in model.modules() if getattr(m, "use_res_connect", False)]
        for i, block in enumerate(residual if drop_path_rate else (), 1):
            block.block.append(StochasticDepth(drop_path_rate * i / len(residual), "row"))
        return model
