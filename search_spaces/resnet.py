"""The ResNet family: ResNet-50, -34 and -18, their exact cost, and modules of timm's blocks.

``search_spaces.get_space`` lists these spaces. The cost and the modules come from the same stage
list. The strided convolution of a bottleneck is its 3x3 one. (r, d, w) is rounded as follows:

* pixels: int(224 r);
* repeats: max(1, round(n d)) per stage;
* stem and planes: the nearest multiple of 8, but never more than 10 % down.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from search_spaces.errors import unknown
from search_spaces.rounding import round_channels, round_repeats
from search_spaces.space import Cost, Details, Network, SearchSpace
from search_spaces.tally import Tally

if TYPE_CHECKING:
    import torch


class Shape(NamedTuple):
    """A real network: all values that depend on (r, d, w).

    ``planes`` (channels of the 3x3 convolutions) and ``repeats`` (blocks) have one entry per stage.
    """

    resolution: Any
    stem: Any
    planes: tuple[Any, ...]
    repeats: tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """One baseline of the family.

    A block's output has ``expansion`` times its planes: 4 in bottlenecks, 1 in basic blocks.
    """

    name: str
    expansion: int
    repeats: tuple[int, ...]
    planes: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem: int = 64
    resolution: int = 224
    num_classes: int = 1000
    divisor: int = 8
    version: int = 1


TABLES = {
    table.name: table
    for table in (
        Table("resnet50", 4, (3, 4, 6, 3)),
        Table("resnet34", 1, (3, 4, 6, 3)),
        Table("resnet18", 1, (2, 2, 2, 2)),
    )
}


class ResNetSpace(SearchSpace):
    """Networks scaled from one table of the family; the module docstring describes the rounding."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.name, self.version = table.name, table.version
        self.base_resolution, self.num_classes = table.resolution, table.num_classes

    def decode(self, r: Any, d: Any, w: Any) -> Shape:
        t = self.table
        stem, *planes = (round_channels(channels, w, t.divisor) for channels in (t.stem, *t.planes))
        return Shape(
            self.pixels(r), stem, tuple(planes), tuple([round_repeats(n, d) for n in t.repeats])
        )

    def count(self, shape: Shape, num_classes: int) -> Any:
        """Return the multiply-adds.

        Each stage is its first block, which may have a stride and a projection, plus equal further
        blocks.
        """
        expansion = self.table.expansion
        size = (shape.resolution - 1) // 2 + 1
        cin = shape.stem
        macs = 147 * cin * size * size
        size = (size - 1) // 2 + 1
        for stride, planes, repeats in zip(
            self.table.strides, shape.planes, shape.repeats, strict=True
        ):
            before, size, cout = size * size, (size - 1) // stride + 1, planes * expansion
            area, projected = size * size, stride > 1 or expansion > 1
            if expansion > 1:
                first = before * cin * planes + area * planes * (9 * planes + cout)
                further = area * planes * (cout + 9 * planes + cout)
            else:
                first, further = 9 * area * planes * (cin + planes), 18 * area * planes * planes
            macs += first + projected * area * cin * cout + (repeats - 1) * further
            cin = cout
        return macs + cin * num_classes

    def cost(self, shape: Shape, num_classes: int) -> Cost:
        tally, cin = Tally(), shape.stem
        size = tally.conv((3, cin), 7, shape.resolution, 2)
        pooled = (size - 1) // 2 + 1
        tally.live(cin * size * size + cin * pooled * pooled)
        size = pooled
        for stride, planes, repeats in zip(
            self.table.strides, shape.planes, shape.repeats, strict=True
        ):
            out = self._block(
                tally,
                (cin, planes),
                size,
                stride,
                1,
                projected=stride > 1 or self.table.expansion > 1,
            )
            cin, size = planes * self.table.expansion, out
            self._block(tally, (cin, planes), size, 1, repeats - 1, projected=False)
        tally.live(cin * size * size + cin)
        tally.linear((cin, num_classes))
        return tally.total()

    def _block(
        self,
        tally: Tally,
        channels: tuple[Any, Any],
        size: Any,
        stride: int,
        times: Any,
        *,
        projected: bool,
    ) -> Any:
        """Add a block's convolutions in the order they run and return its output size.

        The residual branch runs first, then the projection to which it is added.
        """
        (cin, planes), cout = channels, channels[1] * self.table.expansion
        shortcut, out = cin * size * size, size
        bottleneck = ((cin, planes, 1, 1), (planes, planes, 3, stride), (planes, cout, 1, 1))
        basic = ((cin, planes, 3, stride), (planes, planes, 3, 1))
        for i, (source, target, kernel, step) in enumerate(
            bottleneck if self.table.expansion > 1 else basic
        ):
            out = tally.conv(
                (source, target), kernel, out, step, held=shortcut if i else 0, times=times
            )
        if projected:
            tally.conv((cin, cout), 1, size, stride, held=cout * out * out, times=times)
        return out

    def describe(self, shape: Shape) -> str:
        stages = ".".join(f"{p}x{n}" for p, n in zip(shape.planes, shape.repeats, strict=True))
        return f"{shape.resolution}px-{shape.stem}.{stages}"

    def details(self, shape: Shape) -> Details:
        return {"stem": shape.stem, "planes": list(shape.planes), "repeats": list(shape.repeats)}

    def build(
        self,
        network: Network,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> "torch.nn.Module":
        """Build the network of timm's blocks, with the parameter names of timm's ResNets.

        Args:
            network: a network of this space.
            drop_rate: dropout before the classifier.
            drop_path_rate: stochastic depth, increasing linearly over the blocks.

        Raises:
            RequestError: an option is unknown.
        """
        if options:
            raise unknown("build option", next(iter(options)), ("drop_rate", "drop_path_rate"))
        from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
        from torch import nn

        shape: Shape = network.shape
        model = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(3, shape.stem, 7, 2, 3, bias=False),
                bn1=nn.BatchNorm2d(shape.stem),
                act1=nn.ReLU(inplace=True),
                maxpool=nn.MaxPool2d(3, 2, 1),
                **dict(self._stages(shape, drop_path_rate)),
                global_pool=SelectAdaptivePool2d(flatten=True),
                drop=nn.Dropout(drop_rate),
                fc=nn.Linear(shape.planes[-1] * self.table.expansion, network.num_classes),
            )
        )
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if hasattr(module, "zero_init_last"):
                # getattr, since torch types the attributes of a module as modules.
                getattr(module, "zero_init_last")()  # noqa: B009
        return model

    def _stages(
        self, shape: Shape, drop_path_rate: float
    ) -> Iterator[tuple[str, "torch.nn.Module"]]:
        from timm.layers.drop import DropPath
        from timm.models.resnet import BasicBlock, Bottleneck, downsample_conv
        from torch import nn

        block, cin, done, last = (
            Bottleneck if self.table.expansion > 1 else BasicBlock,
            shape.stem,
            0,
            max(sum(shape.repeats) - 1, 1),
        )
        for number, (stride, planes, repeats) in enumerate(
            zip(self.table.strides, shape.planes, shape.repeats, strict=True), 1
        ):
            blocks, cout = [], planes * self.table.expansion
            for i in range(repeats):
                step, rate = (1 if i else stride), drop_path_rate * done / last
                projected = not i and (stride > 1 or self.table.expansion > 1)
                shortcut = (
                    downsample_conv(cin, cout, 1, stride, norm_layer=nn.BatchNorm2d)
                    if projected
                    else None
                )
                blocks.append(
                    block(cin, planes, step, shortcut, drop_path=DropPath(rate) if rate else None)
                )
                cin, done = cout, done + 1
            yield f"layer{number}", nn.Sequential(*blocks)


def spaces() -> dict[str, SearchSpace]:
    return {name: ResNetSpace(table) for name, table in TABLES.items()}
