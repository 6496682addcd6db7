"""The EfficientNet family: stage tables, the paper's rounding, exact cost, and timm modules from the same stage list.

Conventions that give the published TinyNets to the last multiply-add: pixels int(224 r), repeats max(1, round(n d))
per stage, channels to the nearest multiple of 8 but never more than 10 % down, the stem fixed, the head never under
1280, squeeze-excite reducing to a quarter of a block's input channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from search_spaces.errors import unknown
from search_spaces.space import Cost, Network, SearchSpace

if TYPE_CHECKING:
    import torch


class Stage(NamedTuple):
    """A row of the stage table, and, decoded, of a real network: ``channels`` out, ``repeats`` blocks."""

    kernel: int
    stride: int
    expansion: int
    channels: Any
    repeats: Any


class Shape(NamedTuple):
    """A real network of the family: everything the counter and the builder read."""

    resolution: Any
    stem: int
    stages: tuple[Stage, ...]
    head: Any


@dataclass(frozen=True)
class Table:
    """One baseline of the family, all of it data."""

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
        # The inverse giant formula B^-phi lets the head shrink with the width.
        Table("efficientnet_b0_scaled_head", 224, 1000, 32, 2, B0_STAGES, 1280, 8, 8),
        # B0 made small enough for a demo on two CPU cores: a quarter of the width, expansion 4, less downsampling.
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
            # The stem and head are fixed, so nothing below .055 exists in the ranges.
            band=(0.08, 1.05),
            zero_init_residual=True,
        ),
    )
}


def round_channels(channels: int, w: Any, divisor: int) -> Any:
    """Nearest multiple of the divisor, one step up where that would lose more than 10 % (scalar or array)."""
    wanted = channels * w
    rounded = (wanted + divisor / 2) // divisor * divisor
    rounded += (divisor - rounded) * (rounded < divisor)
    rounded += divisor * (rounded < 0.9 * wanted)
    return rounded if isinstance(rounded, np.ndarray) else int(rounded)


def round_repeats(repeats: int, d: Any) -> Any:
    """max(1, round(n d)), halves to even (scalar or array)."""
    return np.maximum(1.0, np.rint(repeats * d)) if isinstance(d, np.ndarray) else max(1, round(repeats * d))


def block_cost(cin: Any, cout: Any, stage: Stage, size: Any, stride: int) -> tuple[Any, Any, Any, Any]:
    """One block: (macs, params, activations, output side). Expansion 1 is a depthwise-separable block."""
    mid, reduced, out = cin * stage.expansion, cin // 4, (size - 1) // stride + 1
    window = stage.kernel * stage.kernel
    area = out * out
    macs = area * mid * (window + cout) + 2 * mid * reduced
    params = mid * (window + 2) + mid * cout + 2 * cout + 2 * mid * reduced + mid + reduced
    activations = area * (mid + cout) + mid + reduced
    if stage.expansion > 1:
        macs, params, activations = macs + size * size * cin * mid, params + cin * mid + 2 * mid, activations + size * size * mid
    return macs, params, activations, out


class EfficientNetSpace(SearchSpace):
    """Twists of one table of the family; see the module docstring for the rounding."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.name, self.version = table.name, table.version
        self.base_resolution, self.num_classes, self.band = table.resolution, table.num_classes, table.band

    def decode(self, r: Any, d: Any, w: Any) -> Shape:
        t = self.table
        stages = tuple(
            Stage(s.kernel, s.stride, s.expansion, round_channels(s.channels, w, t.divisor), round_repeats(s.repeats, d)) for s in t.stages
        )
        head = round_channels(t.head, w, t.divisor)
        return Shape(self.pixels(r), t.stem, stages, head + (t.head_min - head) * (head < t.head_min))

    def cost(self, shape: Shape, num_classes: int) -> Cost:
        size = (shape.resolution - 1) // self.table.stem_stride + 1
        channels = shape.stem
        macs, params, activations = 27 * channels * size * size, 29 * channels, channels * size * size
        for stage in shape.stages:
            first = block_cost(channels, stage.channels, stage, size, stage.stride)
            size, channels, more = first[3], stage.channels, stage.repeats - 1
            rest = block_cost(channels, channels, stage, size, 1)
            macs = macs + first[0] + more * rest[0]
            params = params + first[1] + more * rest[1]
            activations = activations + first[2] + more * rest[2]
        area, head = size * size, shape.head
        macs = macs + area * channels * head + head * num_classes
        params = params + channels * head + 2 * head + (head + 1) * num_classes
        return Cost(macs, params, activations + area * head)

    def describe(self, shape: Shape) -> str:
        stages = ".".join(f"{s.channels}x{s.repeats}" for s in shape.stages)
        return f"{shape.resolution}px-{shape.stem}.{stages}.{shape.head}"

    def details(self, shape: Shape) -> Mapping[str, Any]:
        return {
            "stem": shape.stem,
            "channels": [s.channels for s in shape.stages],
            "repeats": [s.repeats for s in shape.stages],
            "head": shape.head,
        }

    def build(self, network: Network, *, drop_rate: float = 0.0, drop_path_rate: float = 0.0, **options: Any) -> "torch.nn.Module":
        """timm's EfficientNet from the decoded stage list, with timm's parameter names.

        Args:
            drop_rate: dropout before the classifier (the paper's .2).
            drop_path_rate: stochastic depth, rising linearly over the blocks.
        """
        if options:
            raise unknown("build option", next(iter(options)), ("drop_rate", "drop_path_rate"))
        from timm.models.efficientnet import EfficientNet
        from torch import nn

        shape: Shape = network.shape
        model = EfficientNet(
            block_args=[_block_args(stage) for stage in shape.stages],
            num_classes=network.num_classes,
            num_features=shape.head,
            stem_size=shape.stem,
            fix_stem=True,
            round_chs_fn=lambda channels: channels,
            act_layer=nn.SiLU,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        setattr(model.conv_stem, "stride", (self.table.stem_stride,) * 2)  # noqa: B010 - torch types attributes as modules
        if self.table.zero_init_residual:
            _zero_last_gains(model)
        return model


def _block_args(stage: Stage) -> list[dict[str, Any]]:
    """timm's decoded block arguments of one stage (the builder lets only the first block keep the stride)."""
    shared = {"out_chs": stage.channels, "stride": stage.stride, "se_ratio": 0.25, "act_layer": None, "dw_kernel_size": stage.kernel}
    kind = {"block_type": "ds"} if stage.expansion == 1 else {"block_type": "ir", "exp_ratio": float(stage.expansion)}
    return [{**kind, **shared} for _ in range(stage.repeats)]


def _zero_last_gains(model: "torch.nn.Module") -> None:
    """Start every residual block as the identity: a short training then reaches depth it could not otherwise."""
    from torch import nn

    for module in model.modules():
        if getattr(module, "has_skip", False):
            last = "bn3" if hasattr(module, "bn3") else "bn2"
            nn.init.zeros_(module.get_parameter(f"{last}.weight"))


def spaces() -> dict[str, SearchSpace]:
    return {name: EfficientNetSpace(table) for name, table in TABLES.items()}
