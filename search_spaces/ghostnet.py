"""The GhostNet family: GhostNet-A of the paper's Table 7 and the original GhostNet.

``search_spaces.get_space`` lists these spaces. The exact cost and the modules, which consist of
timm's blocks, come from the same stage list. A ghost module computes half of its output with a 1x1
convolution, and the other half from the first with a 3x3 depthwise one. A stage consists of the
rows with equal output. The paper does not publish how (r, d, w) is applied; here it is rounded as
follows:

* pixels: int(240 r);
* repeats: max(1, round(n d)) per stage; a shallow stage keeps its first rows, and a deep one
  repeats its last;
* channels, except those of the last hidden layer: the nearest multiple of 4 (Table 7's 28, 44 and
  140 are not multiples of 8), but never more than 10 % down.

The shortcut has convolutions if the table changes the shape, even if the rounded shapes are equal.
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
    """A block of a stage table.

    ``expanded`` is the width between its ghost modules. If the table is ``relative``, it is the
    ratio of that width to the block's input.
    """

    kernel: int
    expanded: float
    squeeze: bool
    stride: int


class Stage(NamedTuple):
    """Blocks with equal output.

    ``rows`` are their distinct kinds in order; the last one repeats. A single row keeps the shape
    of its input.
    """

    channels: int
    repeats: int
    rows: tuple[Row, ...]


class Shape(NamedTuple):
    """A real network: all values that depend on (r, d, w).

    ``expanded`` contains the width of each row of each stage, 0 for a row that the stage omits.
    """

    resolution: Any
    stem: Any
    channels: tuple[Any, ...]
    repeats: tuple[Any, ...]
    expanded: tuple[tuple[Any, ...], ...]
    head: Any


class Block(NamedTuple):
    """One kind of block in a decoded network, which occurs ``times`` times in a row."""

    channels: tuple[Any, Any]
    expanded: Any
    reduced: Any
    kernel: int
    stride: int
    projected: bool
    times: Any


@dataclass(frozen=True)
class Table:
    """One baseline of the family.

    Squeeze-excite reduces to ``expanded // squeeze`` in multiples of ``squeeze_divisor``.
    """

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
        # Table 7 omits the kernels; size 5 in the two strided blocks of 72 and 280 channels gives
        # its parameters and FLOPs.
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
    """Networks scaled from one table of the family; the module docstring describes the rounding."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.name, self.version = table.name, table.version
        self.base_resolution, self.num_classes = table.resolution, table.num_classes
        # For each row of each stage: (kernel area, stride, squeeze or 0, projected, last row).
        befores = (table.stem, *(stage.channels for stage in table.stages))
        self._rows = tuple(
            tuple(self._row_constants(stage, before))
            for stage, before in zip(table.stages, befores, strict=False)
        )

    def decode(self, r: Any, d: Any, w: Any) -> Shape:
        t, round_width = self.table, round_channels if isinstance(w, np.ndarray) else _cached_round
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
                    round_width(row.expanded, cin, 8)
                    if t.relative
                    else round_channels(row.expanded, w, t.divisor)
                )
                # Rows that a shallow stage omits have width 0, so that they do not distinguish two
                # equal shapes.
                widths.append(width * (blocks > i) if i else width)
                cin = cout
            channels.append(cout)
            repeats.append(blocks)
            expanded.append(tuple(widths))
        head = round_channels(t.head, w, t.divisor)
        return Shape(self.pixels(r), stem, tuple(channels), tuple(repeats), tuple(expanded), head)

    def _row_constants(
        self, stage: Stage, before: int
    ) -> Iterator[tuple[int, int, int, bool, bool]]:
        """Yield the values of each row that ``count`` needs and that (r, d, w) does not change."""
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
        """Yield each kind of block in order; one that a shallow stage omits has ``times`` 0."""
        t, cin, before = self.table, shape.stem, self.table.stem
        for stage, cout, repeats, expanded in zip(
            t.stages, shape.channels, shape.repeats, shape.expanded, strict=True
        ):
            last = len(stage.rows) - 1
            for i, (row, mid) in enumerate(zip(stage.rows, expanded, strict=True)):
                times = _at_least_zero(repeats - last) if i == last else 1 * (repeats > i)
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
        """Return the multiply-adds.

        The sum is written out instead of using ``blocks`` and ``Tally``, since this is the most
        frequent call of a search.
        """
        is_array = isinstance(shape.resolution, np.ndarray)
        round_width = round_channels if is_array else _cached_round
        size = (shape.resolution - 1) // 2 + 1
        area, cin = size * size, shape.stem
        macs = 27 * cin * area + self.table.hidden * (shape.head + num_classes)
        for rows, cout, repeats, expanded in zip(
            self._rows, shape.channels, shape.repeats, shape.expanded, strict=True
        ):
            remaining = repeats
            for (window, stride, squeeze, projected, last), mid in zip(rows, expanded, strict=True):
                if not is_array and remaining <= 0:
                    break
                before = area
                if stride > 1:
                    size = (size - 1) // stride + 1
                    area = size * size
                block = before * (mid // 2) * (cin + 9) + area * (cout // 2) * (mid + 9)
                if squeeze:
                    block += 2 * mid * round_width(1, mid // squeeze, self.table.squeeze_divisor)
                if stride > 1:
                    block += area * mid * window
                if projected:
                    block += area * cin * (window + cout)
                macs += block * (_at_least_zero(remaining) if last else 1 * (remaining > 0))
                remaining = remaining - 1
                cin = cout
            cin = cout
        return macs + area * cin * shape.head

    def cost(self, shape: Shape, num_classes: int) -> Cost:
        tally, last = Tally(), shape.channels[-1]
        size = tally.conv((3, shape.stem), 3, shape.resolution, 2)
        for block in self.blocks(shape):
            size = _add_block(tally, block, size)
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
        """Build the network of timm's blocks, with the parameter names of timm's GhostNets.

        Args:
            network: a network of this space.
            drop_rate: dropout before the classifier (the paper's .2).
            drop_path_rate: stochastic depth, increasing linearly over the blocks.

        Raises:
            RequestError: an option is unknown.
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
        """Group the blocks as timm does: each strided block alone, the ones after it together."""
        from torch import nn

        kinds = [kind for kind in self.blocks(shape) for _ in range(kind.times)]
        groups: list[list[nn.Module]] = []
        for i, kind in enumerate(kinds):
            if i == 0 or kind.stride > 1 or kinds[i - 1].stride > 1:
                groups.append([])
            groups[-1].append(_module(kind, act, drop_path_rate * i / max(len(kinds) - 1, 1)))
        return [nn.Sequential(*group) for group in groups]


# Block widths are computed from few distinct whole numbers of channels, so a cache is effective.
_cached_round = lru_cache(maxsize=65536)(round_channels)


def _at_least_zero(times: Any) -> Any:
    return np.maximum(times, 0.0) if isinstance(times, np.ndarray) else max(times, 0)


def _add_block(tally: Tally, block: Block, size: Any) -> Any:
    """Add a block's layers in the order they run and return its output size.

    The halves of a ghost module are concatenated into a new tensor.
    """
    (cin, cout), mid, times = block.channels, block.expanded, block.times
    shortcut = cin * size * size
    _add_ghost_module(tally, (cin, mid), size, 0, shortcut, times)
    out = size
    if block.stride > 1:
        out = tally.conv(
            (mid, mid), block.kernel, size, block.stride, depthwise=True, held=shortcut, times=times
        )
    if isinstance(block.reduced, np.ndarray) or block.reduced:
        tally.squeeze_excite(mid, block.reduced, out, held=shortcut, times=times)
    _add_ghost_module(tally, (mid, cout), out, shortcut, shortcut, times)
    if block.projected:
        done = cout * out * out
        tally.conv(
            (cin, cin), block.kernel, size, block.stride, depthwise=True, held=done, times=times
        )
        tally.conv((cin, cout), 1, out, held=done, times=times)
    return out


def _add_ghost_module(
    tally: Tally, channels: tuple[Any, Any], size: Any, held: Any, shortcut: Any, times: Any
) -> None:
    """Add a ghost module.

    ``held`` elements stay alive in addition to the input, and ``shortcut`` elements after the input
    is read.
    """
    half = channels[1] // 2
    tally.conv((channels[0], half), 1, size, held=held, times=times)
    tally.conv((half, half), 3, size, depthwise=True, held=shortcut, times=times)
    tally.live(shortcut + 4 * half * size * size, times)


def _module(block: Block, act: Any, drop_path_rate: float) -> "torch.nn.Module":
    """Build timm's ghost bottleneck, with our squeeze-excite and shortcut.

    timm's squeeze-excite rounds differently, and its shortcut depends on the rounded shape.
    """
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
        module.ghost2.register_forward_hook(_apply_drop_path)
    return module


def _apply_drop_path(
    ghost: "torch.nn.Module", _inputs: Any, output: "torch.Tensor"
) -> "torch.Tensor":
    """Apply stochastic depth, which timm's ghost blocks do not have."""
    return ghost.get_submodule("drop_path")(output)


def spaces() -> dict[str, SearchSpace]:
    return {name: GhostNetSpace(table) for name, table in TABLES.items()}
