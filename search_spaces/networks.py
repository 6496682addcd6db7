"""Named networks of the paper: one row each, with its (r, d, w) and the source of these values.

The command line, training and export look up networks by name here. A row's ``source`` is one of:

* ``published``: (r, d, w) is given in the paper or in its authors' release;
* ``inferred``: our values; params and FLOPs both match the paper's (``paper_tables.meets``);
* ``ours``: our values; the params do not match the paper's, or the paper prints none.

The rows of ``ours`` follow from a rule, and ``tests/spaces/test_networks.py`` derives them again.
Let c be the paper's FLOPs of the network divided by the FLOPs that it prints for the baseline:

* ResNet-50-A/B and GhostNet-B/C/D take r and d from the published tiny formula at c. Then the width
  and after it the pixels are set to those with multiply-adds nearest to the paper's FLOPs.
* ResNet-50's two peers follow EfficientNet's rule: r = 1.15^-phi and d = 1.2^-phi with
  phi = -log2 c, and a width solved on the exact count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from search_spaces import Network, get_space
from search_spaces.errors import unknown
from search_spaces.paper_tables import row_of


@dataclass(frozen=True)
class NamedNetwork:
    """A named network.

    Either ``r`` or ``pixels`` is set; ``pixels`` if the paper gives pixels or the row was fitted.
    """

    name: str
    title: str
    space: str
    source: Literal["published", "inferred", "ours"]
    d: float
    w: float
    r: float | None = None
    pixels: int | None = None

    def network(self) -> Network:
        space = get_space(self.space)
        r = self.r if self.r is not None else (self.pixels or 0) / space.base_resolution
        return space.network((r, self.d, self.w))

    @property
    def paper_params(self) -> str | None:
        """The paper's params as printed, or None if it prints none."""
        return row_of(self.name).params

    @property
    def paper_flops(self) -> str:
        """The paper's FLOPs as printed."""
        return row_of(self.name).flops or ""


def _with_hard_swish(rows: Iterable[NamedNetwork]) -> Iterator[NamedNetwork]:
    """Yield each row, followed by its hard-swish variant if it scales GhostNet-A (table 6)."""
    for row in rows:
        yield row
        if row.space == "ghostnet_a":
            yield replace(
                row,
                name=f"{row.name}_hswish",
                title=f"{row.title} + HSwish",
                space="ghostnet_a_hswish",
            )


_B0, _SCALED, _GHOST = "efficientnet_b0", "efficientnet_b0_scaled_head", "ghostnet_a"
NETWORKS = {
    row.name: row
    for row in (
        NamedNetwork("efficientnet_b0", "EfficientNet-B0", _B0, "published", 1, 1, r=1),
        NamedNetwork(
            "efficientnet_b-1", "EfficientNet-B^-1", _SCALED, "published", 0.8, 0.89, r=0.86
        ),
        NamedNetwork(
            "efficientnet_b-2", "EfficientNet-B^-2", _SCALED, "inferred", 0.7, 0.8, pixels=154
        ),
        NamedNetwork(
            "efficientnet_b-3", "EfficientNet-B^-3", _SCALED, "inferred", 0.45, 0.7, pixels=130
        ),
        NamedNetwork(
            "efficientnet_b-4", "EfficientNet-B^-4", _SCALED, "inferred", 0.45, 0.53, pixels=128
        ),
        NamedNetwork("b0_r0.70", "B0 shrunk by r = .70", _B0, "published", 1, 1, r=0.70),
        NamedNetwork("b0_d0.45", "B0 shrunk by d = .45", _B0, "published", 0.45, 1, r=1),
        NamedNetwork("b0_w0.65", "B0 shrunk by w = .65", _B0, "published", 1, 0.65, r=1),
        NamedNetwork("b0_r0.46", "B0 shrunk by r = .46", _B0, "published", 1, 1, r=0.46),
        NamedNetwork("b0_min_depth", "B0 at its minimum depth", _B0, "published", 0.05, 1, r=1),
        NamedNetwork("b0_w0.38", "B0 shrunk by w = .38", _B0, "published", 1, 0.38, r=1),
        NamedNetwork("tinynet_a", "TinyNet-A", _B0, "published", 1.2, 1.0, r=0.86),
        NamedNetwork("tinynet_b", "TinyNet-B", _B0, "published", 1.1, 0.75, r=0.84),
        NamedNetwork("tinynet_c", "TinyNet-C", _B0, "published", 0.85, 0.54, r=0.825),
        NamedNetwork("tinynet_d", "TinyNet-D", _B0, "published", 0.695, 0.54, r=0.68),
        NamedNetwork("tinynet_e", "TinyNet-E", _B0, "published", 0.60, 0.51, r=0.475),
        NamedNetwork("resnet50", "ResNet-50", "resnet50", "published", 1, 1, r=1),
        NamedNetwork("resnet34", "ResNet-34", "resnet34", "published", 1, 1, r=1),
        NamedNetwork(
            "resnet50_giant_a",
            "ResNet-50 by EfficientNet's rule, 3.7B",
            "resnet50",
            "ours",
            0.97,
            0.95,
            pixels=219,
        ),
        NamedNetwork("resnet50_a", "ResNet-50-A", "resnet50", "ours", 1.2, 0.99, pixels=188),
        NamedNetwork("resnet18", "ResNet-18", "resnet18", "published", 1, 1, r=1),
        NamedNetwork(
            "resnet50_giant_b",
            "ResNet-50 by EfficientNet's rule, 1.8B",
            "resnet50",
            "ours",
            0.81,
            0.86,
            pixels=189,
        ),
        NamedNetwork("resnet50_b", "ResNet-50-B", "resnet50", "ours", 1.06, 0.78, pixels=191),
        *_with_hard_swish(
            (
                NamedNetwork("ghostnet_a", "GhostNet-A", _GHOST, "published", 1, 1, r=1),
                NamedNetwork(
                    "ghostnet_1.5x", "GhostNet-1.5×", "ghostnet", "published", 1, 1.5, r=1
                ),
                NamedNetwork("ghostnet_b", "GhostNet-B", _GHOST, "ours", 1.1, 0.786, pixels=200),
                NamedNetwork("ghostnet_1.0x", "GhostNet-1.0×", "ghostnet", "published", 1, 1, r=1),
                NamedNetwork("ghostnet_c", "GhostNet-C", _GHOST, "ours", 0.84, 0.58, pixels=197),
                NamedNetwork(
                    "ghostnet_0.5x", "GhostNet-0.5×", "ghostnet", "published", 1, 0.5, r=1
                ),
                NamedNetwork("ghostnet_d", "GhostNet-D", _GHOST, "ours", 0.64, 0.557, pixels=132),
            )
        ),
    )
}


def get_named(name: str) -> NamedNetwork:
    """Return the network with this name.

    Raises:
        RequestError: the name is unknown; the message suggests the closest one.
    """
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    return NETWORKS[name]
