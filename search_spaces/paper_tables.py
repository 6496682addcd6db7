"""The paper's tables 1, 2, 3 and 6 as printed, and table 7 from our stage list of GhostNet-A.

``tinynet networks`` prints them, and ``search_spaces.networks`` reads the figures of its rows here.
Figures are the paper's text ("387M", "4.1B") and may differ between tables: TinyNet-C is 97M in
table 1 and 100M in table 3. Accuracies are in percent and were measured by the paper's authors.
Tables 4 and 5 are not included: they need the authors' phone and a trained detector.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from search_spaces.errors import RequestError
from search_spaces.ghostnet import GHOSTNET_A

_UNITS = {"M": 1e6, "B": 1e9}


class Row(NamedTuple):
    """A row of a table.

    ``network`` is its name in ``search_spaces.networks``, or None for a network from another paper.
    """

    model: str
    flops: str | None
    top1: float | None
    network: str | None = None
    params: str | None = None
    top5: float | None = None


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        images: the dataset on which the accuracies were measured.
        groups: rows, in groups that are separated by lines.
        side_by_side: whether the groups are printed next to each other.
        footnote: footnote of the row marked with a dagger.
    """

    title: str
    images: str
    groups: tuple[tuple[Row, ...], ...]
    side_by_side: bool = False
    footnote: Row | None = None

    @property
    def rows(self) -> list[Row]:
        return [*chain.from_iterable(self.groups), *([self.footnote] if self.footnote else [])]


class Layer(NamedTuple):
    """A row of table 7: square input of ``size`` pixels with ``channels`` channels.

    A property that the operator does not have is None.
    """

    size: int
    channels: int
    operator: str
    expansion: float | None
    out: int | None
    squeeze: bool
    stride: int | None
    repeats: int


TABLES = {
    "table1": PaperTable(
        "EfficientNet-B0 shrunk in several ways",
        "ImageNet-100",
        (
            (
                Row("EfficientNet-B^-1", "200M", 75.8, "efficientnet_b-1"),
                Row("B0 shrunk by r = 0.70", "196M", 74.9, "b0_r0.70"),
                Row("B0 shrunk by d = 0.45", "196M", 76.5, "b0_d0.45"),
                Row("B0 shrunk by w = 0.65", "205M", 77.2, "b0_w0.65"),
                Row("TinyNet-B", "201M", 77.6, "tinynet_b"),
            ),
            (
                Row("EfficientNet-B^-2", "97M", 72.1, "efficientnet_b-2"),
                Row("B0 shrunk by r = 0.46", "103M", 70.3, "b0_r0.46"),
                Row("depth underflow†", None, None),
                Row("B0 shrunk by w = 0.38", "99M", 73.2, "b0_w0.38"),
                Row("TinyNet-C", "97M", 74.1, "tinynet_c"),
            ),
        ),
        side_by_side=True,
        footnote=Row("B0 at its minimum depth, still above 100M", "173M", None, "b0_min_depth"),
    ),
    "table2": PaperTable(
        "ResNet-50 shrunk in several ways",
        "ImageNet-100",
        (
            (Row("ResNet-50 (baseline)", "4.1B", 78.7, "resnet50"),),
            (
                Row("ResNet-34", "3.7B", 77.9, "resnet34"),
                Row("ResNet-50 by EfficientNet's rule", "3.7B", 78.3, "resnet50_giant_a"),
                Row("ResNet-50-A", "3.6B", 79.3, "resnet50_a"),
            ),
            (
                Row("ResNet-18", "1.8B", 76.5, "resnet18"),
                Row("ResNet-50 by EfficientNet's rule", "1.8B", 76.9, "resnet50_giant_b"),
                Row("ResNet-50-B", "1.8B", 78.2, "resnet50_b"),
            ),
        ),
    ),
    "table3": PaperTable(
        "TinyNets and other small networks",
        "ImageNet-1000",
        (
            (
                Row("MobileNetV3 Large 1.25×", "356M", 76.6, None, "7.5M"),
                Row("MnasNet-A1", "312M", 75.2, None, "3.9M", 92.5),
                Row("EfficientNet-B0 (baseline)", "387M", 76.7, "efficientnet_b0", "5.3M", 93.2),
                Row("TinyNet-A", "339M", 76.8, "tinynet_a", "6.2M", 93.3),
            ),
            (
                Row("EfficientNet-B0 + RA", "387M", 77.7, "efficientnet_b0", "5.3M", 93.5),
                Row("TinyNet-A + RA", "339M", 77.7, "tinynet_a", "6.2M", 93.5),
            ),
            (
                Row("MobileNetV2 1.0×", "300M", 71.8, None, "3.5M", 91.0),
                Row("ShuffleNetV2 1.5×", "299M", 72.6, None, "3.5M", 90.6),
                Row("FBNet-B", "295M", 74.1, None, "4.5M"),
                Row("ProxylessNAS", "320M", 74.6, None, "4.1M", 92.2),
                Row("EfficientNet-B^-1", "201M", 74.7, "efficientnet_b-1", "3.6M", 92.1),
                Row("TinyNet-B", "202M", 75.0, "tinynet_b", "3.7M", 92.2),
            ),
            (
                Row("MobileNetV1 0.5× (r=0.86)", "110M", 61.7, None, "1.3M", 83.6),
                Row("MobileNetV2 0.5×", "97M", 65.4, None, "2.0M", 86.4),
                Row("MobileNetV3 Small 1.25×", "91M", 70.4, None, "3.6M"),
                Row("EfficientNet-B^-2", "98M", 70.5, "efficientnet_b-2", "3.0M", 89.5),
                Row("TinyNet-C", "100M", 71.2, "tinynet_c", "2.5M", 89.7),
            ),
            (
                Row("MobileNetV2 0.35×", "59M", 60.3, None, "1.7M", 82.9),
                Row("ShuffleNetV2 0.5×", "41M", 61.1, None, "1.4M", 82.6),
                Row("MnasNet-A1 0.35×", "63M", 64.1, None, "1.7M", 85.1),
                Row("MobileNetV3 Small 0.75×", "44M", 65.4, None, "2.4M"),
                Row("EfficientNet-B^-3", "51M", 65.0, "efficientnet_b-3", "2.0M", 85.2),
                Row("TinyNet-D", "52M", 67.0, "tinynet_d", "2.3M", 87.1),
            ),
            (
                Row("MobileNetV2 0.35× (r=0.71)", "30M", 55.7, None, "1.7M", 79.1),
                Row("MnasNet-A1 0.35× (r=0.57)", "22M", 54.8, None, "1.7M", 78.1),
                Row("MobileNetV3 Small 0.5×", "23M", 58.0, None, "1.6M"),
                Row("MobileNetV3 Small 1.0× (r=0.57)", "20M", 57.3, None, "2.5M"),
                Row("EfficientNet-B^-4", "24M", 56.7, "efficientnet_b-4", "1.3M", 79.8),
                Row("TinyNet-E", "24M", 59.9, "tinynet_e", "2.0M", 81.8),
            ),
        ),
    ),
    "table6": PaperTable(
        "GhostNet-A to D and other small networks",
        "ImageNet-1000",
        (
            (
                Row("EfficientNet-B1", "700M", 78.7, None, "7.8M"),
                Row("GhostNet-A", "591M", 78.7, "ghostnet_a", "11.9M", 94.2),
                Row("GhostNet-A + HSwish", "591M", 78.9, "ghostnet_a_hswish", "11.9M", 94.4),
                Row("GhostNet-A + HSwish + RA", "591M", 79.4, "ghostnet_a_hswish", "11.9M", 94.5),
            ),
            (
                Row("EfficientNet-B0", "387M", 76.7, "efficientnet_b0", "5.3M", 93.2),
                Row("GhostNet-1.5×", "300M", 76.4, "ghostnet_1.5x", "9.1M", 92.9),
                Row("GhostNet-B", "300M", 77.0, "ghostnet_b", "8.0M", 93.3),
                Row("GhostNet-B + HSwish", "300M", 77.1, "ghostnet_b_hswish", "8.0M", 93.4),
                Row("GhostNet-B + HSwish + RA", "300M", 77.6, "ghostnet_b_hswish", "8.0M", 93.5),
            ),
            (
                Row("MobileNetV3 Large 0.75×", "155M", 73.3, None, "4.0M"),
                Row("GhostNet-1.0×", "141M", 73.9, "ghostnet_1.0x", "5.2M", 91.4),
                Row("GhostNet-C", "141M", 74.2, "ghostnet_c", "5.0M", 91.7),
                Row("GhostNet-C + HSwish", "141M", 74.8, "ghostnet_c_hswish", "5.0M", 92.0),
                Row("GhostNet-C + HSwish + RA", "141M", 75.0, "ghostnet_c_hswish", "5.0M", 92.0),
            ),
            (
                Row("MobileNetV3 Small 0.75×", "44M", 65.4, None, "2.4M"),
                Row("GhostNet-0.5×", "42M", 66.2, "ghostnet_0.5x", "2.6M", 86.6),
                Row("GhostNet-D", "52M", 67.7, "ghostnet_d", "2.6M", 87.5),
                Row("GhostNet-D + HSwish", "52M", 68.4, "ghostnet_d_hswish", "2.6M", 87.8),
                Row("GhostNet-D + HSwish + RA", "52M", 68.6, "ghostnet_d_hswish", "2.6M", 88.1),
            ),
        ),
    ),
}
NAMES = (*TABLES, "table7")


def check_table(name: str) -> None:
    """Check that a table is available.

    Raises:
        RequestError: it is not; the message lists the available tables.
    """
    if name not in NAMES:
        unavailable = "table4 needs the paper's phone and table5 a trained detector"
        raise RequestError(
            f"unknown table {name!r}: pass {', '.join(NAMES[:-1])} or {NAMES[-1]} ({unavailable})"
        )


def row_of(network: str) -> Row:
    """Return the row of a named network: the last of several, since that one prints params too."""
    return next(
        row for table in reversed(TABLES.values()) for row in table.rows if row.network == network
    )


def parse_figure(printed: str) -> float:
    """Convert a printed figure to a number: "4.1B" is 4.1e9."""
    return float(printed[:-1]) * _UNITS[printed[-1]]


def percent_off(printed: str, exact: float) -> float:
    """Return the relative difference of an exact figure from the paper's, in percent."""
    return 100 * (exact / parse_figure(printed) - 1)


def meets(printed: str, exact: float) -> bool:
    """Return whether an exact figure matches the printed one within half its last digit or 1 %.

    The 1 % allows for a different way of counting: the paper's FLOPs are up to .8 % above the exact
    multiply-adds.
    """
    decimals = len(printed[:-1].partition(".")[2])
    half_digit = 0.5 * 10**-decimals * _UNITS[printed[-1]]
    figure = parse_figure(printed)
    return abs(exact - figure) <= max(half_digit, 0.01 * figure)


def architecture() -> list[Layer]:
    """Return table 7: the layers of GhostNet-A as counted and built, equal neighbours merged."""
    table = GHOSTNET_A
    size, before = table.resolution, table.stem
    layers = [Layer(size, 3, "Conv 3×3", None, table.stem, False, 2, 1)]
    size = (size - 1) // 2 + 1
    for stage in table.stages:
        for row in (*stage.rows, *[stage.rows[-1]] * (stage.repeats - len(stage.rows))):
            layers.append(
                Layer(
                    size,
                    before,
                    "G-bneck",
                    row.expanded,
                    stage.channels,
                    row.squeeze,
                    row.stride,
                    1,
                )
            )
            size, before = (size - 1) // row.stride + 1, stage.channels
    layers.append(Layer(size, before, "Conv 1×1", None, table.head, False, 1, 1))
    layers.append(Layer(size, table.head, "Pooling", None, None, False, None, 1))
    layers.append(Layer(1, table.head, "Conv 1×1", None, table.hidden, False, 1, 1))
    layers.append(Layer(1, table.hidden, "FC", None, table.num_classes, False, None, 1))
    return list(_merged(layers))


def _merged(layers: list[Layer]) -> Iterator[Layer]:
    """Merge neighbours with equal operators and properties into one layer with ``repeats``.

    The merged layer keeps the input size of the first.
    """
    last = layers[0]
    for layer in layers[1:]:
        if layer[2:-1] == last[2:-1]:
            last = last._replace(repeats=last.repeats + 1)
        else:
            yield last
            last = layer
    yield last
