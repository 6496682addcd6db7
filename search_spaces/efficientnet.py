"""The EfficientNet family: stage tables, the paper's rounding, exact cost, and timm modules.

``search_spaces.get_space`` lists these spaces, and EfficientNet-B0 is the default of the project.
The cost and the modules come from the same stage list. These conventions reproduce the published
TinyNets to the last multiply-add:

* pixels: int(224 r);
* repeats: max(1, round(n d)) per stage;
* channels: the nearest multiple of 8, but never more than 10 % down;
* the stem is fixed, and the head is never below 1280;
* squeeze-excite reduces to a quarter of a block's input channels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from search_spaces.errors import unknown
from search_spaces.rounding import round_channels, round_repeats
from search_spaces.space import Cost, Details, Network, SearchSpace
from search_spaces.tally import highest

if TYPE_CHECKING:
    import torch


class Stage(NamedTuple):
    """A row of a stage table: blocks of one kernel and expansion; only the first has ``stride``."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    repeats: int


class Shape(NamedTuple):
    """A real network of a table: all values that depend on (r, d, w).

    The cost and the module are computed from it and the table alone. ``channels`` (output channels)
    and ``repeats`` (blocks) have one entry per stage.
    """

    resolution: Any
    channels: tuple[Any, ...]
    repeats: tuple[Any, ...]
    head: Any


@dataclass(frozen=True)
class Table:
    """One baseline of the family, as data."""

    name: str
    resolution: int
    num_classes: int
    stem: int
    stem_stride: int
    stages: tuple[Stage, ...]
    head: int
    head_min: int
    divisor: int
    band: tuple[float, float] = (0.03, 1.05)
    zero_init_residual: bool = False
    version: int = 1


B0_STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
TABLES = {
    table.name: table
    for table in (
        Table("efficientnet_b0", 224, 1000, 32, 2, B0_STAGES, 1280, 1280, 8),
        # The inverse giant formula B^-phi shrinks the head with the width.
        Table("efficientnet_b0_scaled_head", 224, 1000, 32, 2, B0_STAGES, 1280, 8, 8),
        # B0 reduced for a demo on two CPU cores: a quarter of the width, expansion 4, less
        # downsampling.
        Table(
            "efficientnet_mini",
            32,
            24,
            8,
            1,
            (
                Stage(3, 2, 1, 4, 1),
                Stage(3, 2, 4, 6, 1),
                Stage(5, 2, 4, 10, 1),
                Stage(3, 1, 4, 20, 2),
                Stage(5, 1, 4, 28, 2),
                Stage(5, 1, 4, 48, 2),
                Stage(3, 1, 4, 80, 1),
            ),
            320,
            320,
            4,
            # Stem and head are fixed, so the ranges contain no network below c = .055.
            band=(0.08, 1.05),
            zero_init_residual=True,
        ),
    )
}


class EfficientNetSpace(SearchSpace):
    """Networks scaled from one table of the family; the module docstring describes the rounding."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.name, self.version = table.name, table.version
        self.base_resolution, self.num_classes, self.band = (
            table.resolution,
            table.num_classes,
            table.band,
        )

    def decode(self, r: Any, d: Any, w: Any) -> Shape:
        t = self.table
        channels = tuple([round_channels(s.channels, w, t.divisor) for s in t.stages])
        repeats = tuple([round_repeats(s.repeats, d) for s in t.stages])
        head = round_channels(t.head, w, t.divisor)
        return Shape(
            self.pixels(r), channels, repeats, head + (t.head_min - head) * (head < t.head_min)
        )

    def count(self, shape: Shape, num_classes: int) -> Any:
        """Return the multiply-adds.

        Each stage is its first block plus equal further blocks. A block with expansion 1 has no
        expanding convolution.
        """
        size = (shape.resolution - 1) // self.table.stem_stride + 1
        cin = self.table.stem
        macs = 27 * cin * size * size + shape.head * num_classes
        for (kernel, stride, expansion, _, _), cout, repeats in zip(
            self.table.stages, shape.channels, shape.repeats, strict=True
        ):
            mid, wide, window = cin * expansion, cout * expansion, kernel * kernel
            if expansion > 1:
                macs += size * size * cin * mid
            size = (size - 1) // stride + 1
            area = size * size
            further = area * (window + (2 if expansion > 1 else 1) * cout) + cout // 4 * 2
            macs += mid * (area * (window + cout) + cin // 4 * 2) + (repeats - 1) * wide * further
            cin = cout
        return macs + size * size * cin * shape.head

    def cost(self, shape: Shape, num_classes: int) -> Cost:
        size = (shape.resolution - 1) // self.table.stem_stride + 1
        cin, head = self.table.stem, shape.head
        maximum = highest if isinstance(shape.resolution, np.ndarray) else max
        params, activations = 29 * cin + (head + 1) * num_classes, cin * size * size
        peak = 3 * shape.resolution * shape.resolution + activations
        for (kernel, stride, expansion, _, _), cout, repeats in zip(
            self.table.stages, shape.channels, shape.repeats, strict=True
        ):
            out = (size - 1) // stride + 1
            area, expands = out * out, expansion > 1
            for source, before, blocks, skips in (
                (cin, size * size, 1, stride == 1),
                (cout, area, repeats - 1, True),
            ):
                mid, reduced = source * expansion, source // 4
                weights = (
                    mid * (kernel * kernel + 3 + cout + 2 * reduced + expands * (source + 2))
                    + 2 * cout
                    + reduced
                )
                written = area * (mid + cout) + mid + reduced
                params = params + blocks * weights
                activations = activations + blocks * (written + expands * before * mid)
                shortcut = skips * (source == cout) * source * before
                widest = maximum(
                    mid * before + mid * area - (not expands) * shortcut,
                    mid * area + maximum(mid + reduced, cout * area),
                )
                peak = maximum(
                    peak,
                    (blocks > 0)
                    * maximum(source * before + expands * mid * before, shortcut + widest),
                )
            cin, size = cout, out
        params, activations = params + cin * head + 2 * head, activations + size * size * head
        peak = maximum(
            peak, size * size * (cin + head), size * size * head + head, head + num_classes
        )
        return Cost(self.count(shape, num_classes), params, activations, peak)

    def describe(self, shape: Shape) -> str:
        stages = ".".join(f"{c}x{n}" for c, n in zip(shape.channels, shape.repeats, strict=True))
        return f"{shape.resolution}px-{self.table.stem}.{stages}.{shape.head}"

    def details(self, shape: Shape) -> Details:
        return {
            "stem": self.table.stem,
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
        """Build timm's EfficientNet from the decoded stage list, with timm's parameter names.

        Args:
            network: a network of this space.
            drop_rate: dropout before the classifier (the paper's .2).
            drop_path_rate: stochastic depth, increasing linearly over the blocks.

        Raises:
            RequestError: an option is unknown.
        """
        if options:
            raise unknown("build option", next(iter(options)), ("drop_rate", "drop_path_rate"))
        from timm.models.efficientnet import EfficientNet
        from torch import nn

        shape: Shape = network.shape
        model = EfficientNet(
            block_args=list(map(_block_args, self.table.stages, shape.channels, shape.repeats)),
            num_classes=network.num_classes,
            num_features=shape.head,
            stem_size=self.table.stem,
            fix_stem=True,
            round_chs_fn=lambda channels: channels,
            act_layer=nn.SiLU,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        # setattr, since torch types the attributes of a module as modules.
        setattr(model.conv_stem, "stride", (self.table.stem_stride,) * 2)  # noqa: B010
        if self.table.zero_init_residual:
            _zero_last_gains(model)
        return model


def _block_args(
    stage: Stage, channels: int, repeats: int
) -> list[dict[str, str | int | float | None]]:
    """Return timm's decoded block arguments of one stage.

    timm's builder keeps the stride only for the first block.
    """
    shared = {
        "out_chs": channels,
        "stride": stage.stride,
        "se_ratio": 0.25,
        "act_layer": None,
        "dw_kernel_size": stage.kernel,
    }
    kind = (
        {"block_type": "ds"}
        if stage.expansion == 1
        else {"block_type": "ir", "exp_ratio": float(stage.expansion)}
    )
    return [{**kind, **shared} for _ in range(repeats)]


def _zero_last_gains(model: "torch.nn.Module") -> None:
    """Initialise residual blocks as the identity, so that a short training can use more depth."""
    from torch import nn

    for module in model.modules():
        if getattr(module, "has_skip", False):
            last = "bn3" if hasattr(module, "bn3") else "bn2"
            nn.init.zeros_(module.get_parameter(f"{last}.weight"))


def spaces() -> dict[str, SearchSpace]:
    return {name: EfficientNetSpace(table) for name, table in TABLES.items()}
