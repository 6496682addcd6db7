"""Define a custom search space and suggest networks from it.

    python examples/own_space.py

The baseline is a plain stack of 3x3 convolutions. ``docs/examples/mobilenet_v3_large.py`` contains
a complete space with a published baseline.
"""

from typing import Any, NamedTuple

from torch import nn

from search_spaces import Cost, Network, SearchSpace
from search_spaces.rounding import round_channels, round_repeats
from search_spaces.tally import Tally
from tinynet_search import suggest_rdw

STAGES = ((32, 2), (64, 2), (128, 3))  # channels and repeats of each stage of the baseline


class Shape(NamedTuple):
    resolution: Any
    stages: tuple[tuple[Any, Any], ...]


class PlainNet(SearchSpace):
    name, base_resolution, num_classes = "plain_net", 64, 10

    def decode(self, r: Any, d: Any, w: Any) -> Shape:
        stages = ((round_channels(n, w, 8), round_repeats(times, d)) for n, times in STAGES)
        return Shape(self.pixels(r), tuple(stages))

    def cost(self, shape: Shape, num_classes: int) -> Cost:
        tally, size, cin = Tally(), shape.resolution, 3
        for cout, repeats in shape.stages:
            size = tally.conv((cin, cout), 3, size, stride=2)
            tally.conv((cout, cout), 3, size, times=repeats - 1)
            cin = cout
        tally.linear((cin, num_classes))
        return tally.total()

    def build(self, network: Network, **options: Any) -> nn.Module:
        layers: list[nn.Module] = []
        cin = 3
        for cout, repeats in network.shape.stages:
            for stride in (2, *[1] * (repeats - 1)):
                conv = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
                layers += [conv, nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
                cin = cout
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(options.get("drop_rate", 0)))
        return nn.Sequential(*layers, *pool, nn.Linear(cin, network.num_classes))

    def describe(self, shape: Shape) -> str:
        return f"{shape.resolution}px-" + ".".join(f"{n}x{times}" for n, times in shape.stages)


if __name__ == "__main__":
    for c in (0.5, 0.25):
        suggestion = suggest_rdw(c, space=PlainNet())
        print(f"c = {c}: {suggestion.network.key}, {suggestion.macs / 1e6:.1f}M multiply-adds")
