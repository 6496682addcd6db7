"""The GhostNet family: GhostNet-A of the paper's Table 7, the original GhostNet, exact cost, and timm's blocks.

A ghost module computes half of its output with a 1x1 convolution and the other half from that with a 3x3 depthwise one.
A stage is the rows of equal output. The twist (none is published): pixels int(240 r), repeats max(1, round(n d)) per
stage, so that a shallow stage keeps its first rows and a deep one repeats its last; all channels but the last hidden
layer's to the nearest multiple of 4 (Table 7's 28, 44 and 140 are none of 8), never more than 10 % down. The shortcut
has convolutions where the table changes the shape, whatever the rounding makes of it.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from search_spaces.errors import unknown
from search_spaces.rounding import round_channels, round_repeats
from search_spaces.space import Cost, Details, Network, SearchSpace
from search_spaces.tally import Tally

if TYPE_CHECKING:
    import torch


class Row(NamedTuple):
    """A block: ``expanded`` is its width between the ghost modules, or that width over its input where the table says so."""

    kernel: int
    expanded: float
    squeeze: bool
    stride: int


class Stage(NamedTuple):
    """Blocks of one output; ``rows`` are their distinct kinds in order, the last repeated. A lone row keeps its input's shape."""

    channels: int
    repeats: int
    rows: tuple[Row, ...]


class Shape(NamedTuple):
    """A real network; ``expanded`` has for each stage the width of each of its rows, 0 for one that it leaves out."""

    resolution: Any
    stem: Any
    channels: tuple[Any, ...]
    repeats: tuple[Any, ...]
    expanded: tuple[tuple[Any, ...], ...]
    head: Any


class Block(NamedTuple):
    """One kind of block in a decoded network, and how often it stands there."""

    channels: tuple[Any, Any]
    expanded: Any
    reduced: Any
    kernel: int
    stride: int
    projected: bool
    times: Any


@dataclass(frozen=True)
class Table:
    """One baseline of the family; squeeze-excite reduces to ``expanded // squeeze`` in multiples of ``squeeze_divisor``."""

    name: str
    resolution: int
    stem: int
    stages: tuple[Stage, ...]
    head: int
    hidden: int
    squeeze: int
    squeeze_divisor: int
    relative: bool
    activation: str = "relu"
    num_classes: int = 1000
    divisor: int = 4
    version: int = 1


GHOSTNET_A = Table(
    "ghostnet_a",
    240,
    28,
    (
        Stage(28, 1, (Row(3, 1, True, 1),)),
        Stage(44, 2, (Row(3, 3, True, 2), Row(3, 3, True, 1))),
        # Table 7 leaves the kernels out; 5 in these two strided blocks gives its parameters and FLOPs.
        Stage(72, 3, (Row(5, 3, True, 2), Row(3, 3, True, 1))),
        Stage(140, 4, (Row(3, 6, True, 2), Row(3, 2.5, True, 1))),
        Stage(196, 3, (Row(3, 6, True, 1), Row(3, 6, True, 1))),
        Stage(280, 6, (Row(5, 6, True, 2), Row(3, 6, True, 1))),
    ),
    head=1680,
    hidden=1400,
    squeeze=10,
    squeeze_divisor=8,
    relative=True,
)
TABLES = {
    table.name: table
    for table in (
        GHOSTNET_A,
        replace(GHOSTNET_A, name="ghostnet_a_hswish", activation="hard_swish"),
        Table(
            "ghostnet",
            224,
            16,
            (
                Stage(16, 1, (Row(3, 16, False, 1),)),
                Stage(24, 2, (Row(3, 48, False, 2), Row(3, 72, False, 1))),
                Stage(40, 2, (Row(5, 72, True, 2), Row(5, 120, True, 1))),
                Stage(80, 4, (Row(3, 240, False, 2), Row(3, 200, False, 1), Row(3, 184, False, 1))),
                Stage(112, 2, (Row(3, 480, True, 1), Row(3, 672, True, 1))),
                Stage(
                    160,
                    5,
                    (Row(5, 672, True, 2), *[Row(5, 960, False, 1), Row(5, 960, True, 1)] * 2),
                ),
            ),
            head=960,
            hidden=1280,
            squeeze=4,
            squeeze_divisor=4,
            relative=False,
        ),
    )
}


class GhostNetSpace(SearchSpace):
    """Twists of one table of the family; see the module docstring for the rounding."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.name, self.version = table.name, table.version
        self.base_resolution, self.num_classes = table.resolution, table.num_classes
        # (window, stride, squeeze or 0, projected, last of its stage) of each row of each stage.
        befores = (table.stem, *(stage.channels for stage in table.stages))
        self._rows = tuple(
            tuple(self._kinds(stage, before))
            for stage, before in zip(table.stages, befores, strict=False)
        )

    def decode(self, r: Any, d: Any, w: Any) -> Shape:
        t, near = self.table, round_channels if isinstance(w, np.ndarray) else _remembered
        cin = stem = round_channels(t.stem, w, t.divisor)
        channels, repeats, expanded = [], [], []
        for stage in t.stages:
            cout, blocks, widths = (
                round_channels(stage.channels, w, t.divisor),
                round_repeats(stage.repeats, d),
                [],
            )
            for i, row in enumerate(stage.rows):
                width = (
                    near(row.expanded, cin, 8)
                    if t.relative
                    else round_channels(row.expanded, w, t.divisor)
                )
                # Rows that a shallow stage leaves out are none of its shape.
                widths.append(width * (blocks > i) if i else width)
                cin = cout
            channels.append(cout)
            repeats.append(blocks)
            expanded.append(tuple(widths))
        head = round_channels(t.head, w, t.divisor)
        return Shape(self.pixels(r), stem, tuple(channels), tuple(repeats), tuple(expanded), head)

    def _kinds(self, stage: Stage, before: int) -> Iterator[tuple[int, int, int, bool, bool]]:
        for i, row in enumerate(stage.rows):
            projected = not i and (row.stride > 1 or before != stage.channels)
            yield (
                row.kernel * row.kernel,
                row.stride,
                self.table.squeeze * row.squeeze,
                projected,
                i == len(stage.rows) - 1,
            )

    def blocks(self, shape: Shape) -> Iterator[Block]:
        """Each kind of block in order; one that a shallow network leaves out stands there 0 times."""
        t, cin, before = self.table, shape.stem, self.table.stem
        for stage, cout, repeats, expanded in zip(
            t.stages, shape.channels, shape.repeats, shape.expanded, strict=True
        ):
            last = len(stage.rows) - 1
            for i, (row, mid) in enumerate(zip(stage.rows, expanded, strict=True)):
                times = _or_none(repeats - last) if i == last else 1 * (repeats > i)
                reduced = (
                    round_channels(1, mid // t.squeeze, t.squeeze_divisor) if row.squeeze else 0
                )
                yield Block(
                    (cin, cout),
                    mid,
                    reduced,
                    row.kernel,
                    row.stride,
                    row.stride > 1 or before != stage.channels,
                    times,
                )
                cin, before = cout, stage.channels

    def count(self, shape: Shape, num_classes: int) -> Any:
        """Multiply-adds, block kind by block kind; unrolled, since a search asks for nothing else as often."""
        many = isinstance(shape.resolution, np.ndarray)
        near = round_channels if many else _remembered
        size = (shape.resolution - 1) // 2 + 1
        area, cin = size * size, shape.stem
        macs = 27 * cin * area + self.table.hidden * (shape.head + num_classes)
        for rows, cout, repeats, expanded in zip(
            self._rows, shape.channels, shape.repeats, shape.expanded, strict=True
        ):
            left = repeats
            for (window, stride, squeeze, projected, last), mid in zip(rows, expanded, strict=True):
                if not many and left <= 0:
                    break
                before = area
                if stride > 1:
                    size = (size - 1) // stride + 1
                    area = size * size
                block = before * (mid // 2) * (cin + 9) + area * (cout // 2) * (mid + 9)
                if squeeze:
                    block += 2 * mid * near(1, mid // squeeze, self.table.squeeze_divisor)
                if stride > 1:
                    block += area * mid * window
                if projected:
                    block += area * cin * (window + cout)
                macs += block * (_or_none(left) if last else 1 * (left > 0))
                left = left - 1
                cin = cout
            cin = cout
        return macs + area * cin * shape.head

    def cost(self, shape: Shape, num_classes: int) -> Cost:
        tally, last = Tally(), shape.channels[-1]
        size = tally.conv((3, shape.stem), 3, shape.resolution, 2)
        for block in self.blocks(shape):
            size = _tallied(tally, block, size)
        tally.conv((last, shape.head), 1, size)
        tally.live(shape.head * size * size + shape.head)
        tally.conv((shape.head, self.table.hidden), 1, 1, bias=True, norm=False)
        tally.linear((self.table.hidden, num_classes))
        return tally.total()

    def describe(self, shape: Shape) -> str:
        widths = ["-".join(map(str, expanded)) for expanded in shape.expanded]
        stages = ".".join(
            f"{c}x{n}({e})" for c, n, e in zip(shape.channels, shape.repeats, widths, strict=True)
        )
        return f"{shape.resolution}px-{shape.stem}.{stages}.{shape.head}"

    def details(self, shape: Shape) -> Details:
        return {
            "stem": shape.stem,
            "channels": list(shape.channels),
            "repeats": list(shape.repeats),
            "head": shape.head,
        }

    def build(
        self,
        network: Network,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> "torch.nn.Module":
        """timm's blocks from the decoded stage list, with the parameter names of timm's GhostNets.

        Args:
            drop_rate: dropout before the classifier (the paper's .2).
            drop_path_rate: stochastic depth, rising linearly over the blocks.
        """
        if options:
            raise unknown("build option", next(iter(options)), ("drop_rate", "drop_path_rate"))
        from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
        from timm.layers.create_act import get_act_layer
        from timm.models._efficientnet_blocks import ConvBnAct
        from torch import nn

        shape: Shape = network.shape
        act: Any = get_act_layer(self.table.activation)
        head = nn.Sequential(ConvBnAct(shape.channels[-1], shape.head, 1, act_layer=act))
        return nn.Sequential(
            OrderedDict[str, nn.Module](
                conv_stem=nn.Conv2d(3, shape.stem, 3, 2, 1, bias=False),
                bn1=nn.BatchNorm2d(shape.stem),
                act1=act(inplace=True),
                blocks=nn.Sequential(*self._groups(shape, act, drop_path_rate), head),
                global_pool=SelectAdaptivePool2d(),
                conv_head=nn.Conv2d(shape.head, self.table.hidden, 1),
                act2=act(inplace=True),
                flatten=nn.Flatten(),
                drop=nn.Dropout(drop_rate),
                classifier=nn.Linear(self.table.hidden, network.num_classes),
            )
        )

    def _groups(self, shape: Shape, act: Any, drop_path_rate: float) -> "list[torch.nn.Module]":
        """The blocks as timm nests them: a strided block stands alone, those that follow it together."""
        from torch import nn

        kinds = [kind for kind in self.blocks(shape) for _ in range(kind.times)]
        groups: list[list[nn.Module]] = []
        for i, kind in enumerate(kinds):
            if i == 0 or kind.stride > 1 or kinds[i - 1].stride > 1:
                groups.append([])
            groups[-1].append(_module(kind, act, drop_path_rate * i / max(len(kinds) - 1, 1)))
        return [nn.Sequential(*group) for group in groups]


# What a block's width rounds to from whole numbers of channels: the same few again and again.
_remembered = lru_cache(maxsize=65536)(round_channels)


def _or_none(times: Any) -> Any:
    return np.maximum(times, 0.0) if isinstance(times, np.ndarray) else max(times, 0)


def _tallied(tally: Tally, block: Block, size: Any) -> Any:
    """A block's layers in the order they run; the halves of a ghost module are joined into a new tensor."""
    (cin, cout), mid, times = block.channels, block.expanded, block.times
    shortcut = cin * size * size
    _ghost(tally, (cin, mid), size, 0, shortcut, times)
    out = size
    if block.stride > 1:
        out = tally.conv(
            (mid, mid), block.kernel, size, block.stride, depthwise=True, held=shortcut, times=times
        )
    if isinstance(block.reduced, np.ndarray) or block.reduced:
        tally.squeeze_excite(mid, block.reduced, out, held=shortcut, times=times)
    _ghost(tally, (mid, cout), out, shortcut, shortcut, times)
    if block.projected:
        done = cout * out * out
        tally.conv(
            (cin, cin), block.kernel, size, block.stride, depthwise=True, held=done, times=times
        )
        tally.conv((cin, cout), 1, out, held=done, times=times)
    return out


def _ghost(
    tally: Tally, channels: tuple[Any, Any], size: Any, beside: Any, shortcut: Any, times: Any
) -> None:
    """``beside`` is what is held while the input is still read, ``shortcut`` what is held after it."""
    half = channels[1] // 2
    tally.conv((channels[0], half), 1, size, held=beside, times=times)
    tally.conv((half, half), 3, size, depthwise=True, held=shortcut, times=times)
    tally.live(shortcut + 4 * half * size * size, times)


def _module(block: Block, act: Any, drop_path_rate: float) -> "torch.nn.Module":
    """timm's ghost bottleneck; its own squeeze-excite rounds otherwise, and its shortcut looks at the rounded shape."""
    from timm.layers.drop import DropPath
    from timm.models._efficientnet_blocks import SqueezeExcite
    from timm.models.ghostnet import GhostBottleneck
    from torch import nn

    (cin, cout), kernel = block.channels, block.kernel
    module = GhostBottleneck(cin, block.expanded, cout, kernel, block.stride, act_layer=act)
    if block.reduced:
        module.se = SqueezeExcite(
            block.expanded, rd_channels=block.reduced, gate_layer="hard_sigmoid"
        )
    if block.projected and not len(module.shortcut):
        depthwise = nn.Conv2d(cin, cin, kernel, block.stride, kernel // 2, groups=cin, bias=False)
        pointwise = nn.Conv2d(cin, cout, 1, bias=False)
        module.shortcut = nn.Sequential(
            depthwise, nn.BatchNorm2d(cin), pointwise, nn.BatchNorm2d(cout)
        )
    if drop_path_rate:
        module.ghost2.register_module("drop_path", DropPath(drop_path_rate))
        module.ghost2.register_forward_hook(_dropped)
    return module


def _dropped(ghost: "torch.nn.Module", _inputs: Any, output: "torch.Tensor") -> "torch.Tensor":
    """timm's ghost blocks have no stochastic depth of their own."""
    return ghost.get_submodule("drop_path")(output)


def spaces() -> dict[str, SearchSpace]:
    return {name: GhostNetSpace(table) for name, table in TABLES.items()}
