"""Named networks: one row each, with where its (r, d, w) comes from, and what the paper prints of it.

``source`` says where (r, d, w) comes from:

* ``published``: it stands in the paper or in its authors' release;
* ``inferred``: found by us, and params and FLOPs both meet the paper's (``paper_tables.meets``);
* ``ours``: found by us, and the paper's params are not met, or it prints none.

The rows of ``ours`` come from a rule, and ``tests/spaces/test_networks.py`` derives them again. With c the paper's FLOPs
over the FLOPs that it prints of the baseline, ResNet-50-A/B and GhostNet-B/C/D take r and d from the published tiny
formula at c, then the width and after it the pixels with the nearest multiply-adds to the paper's FLOPs; ResNet-50's two
peers follow EfficientNet's rule, r = 1.15^-phi, d = 1.2^-phi with phi = -log2 c, and a width solved on the exact count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from search_spaces import Network, get_space
from search_spaces.errors import unknown
from search_spaces.paper_tables import row_of


@dataclass(frozen=True)
class Named:
    """A row of the table; ``pixels`` stands for r where the paper gives pixels or the row was fitted."""

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
        """The paper's params as it prints them, None where it prints none."""
        return row_of(self.name).params

    @property
    def paper_flops(self) -> str:
        """The paper's FLOPs as it prints them."""
        return row_of(self.name).flops or ""


def _with_hard_swish(rows: Iterable[Named]) -> Iterator[Named]:
    """After each GhostNet of the paper the same one with hard swish, as table 6 has them."""
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
        Named("efficientnet_b0", "EfficientNet-B0", _B0, "published", 1, 1, r=1),
        Named("efficientnet_b-1", "EfficientNet-B^-1", _SCALED, "published", 0.8, 0.89, r=0.86),
        Named("efficientnet_b-2", "EfficientNet-B^-2", _SCALED, "inferred", 0.7, 0.8, pixels=154),
        Named("efficientnet_b-3", "EfficientNet-B^-3", _SCALED, "inferred", 0.45, 0.7, pixels=130),
        Named("efficientnet_b-4", "EfficientNet-B^-4", _SCALED, "inferred", 0.45, 0.53, pixels=128),
        Named("b0_r0.70", "B0 shrunk by r = .70", _B0, "published", 1, 1, r=0.70),
        Named("b0_d0.45", "B0 shrunk by d = .45", _B0, "published", 0.45, 1, r=1),
        Named("b0_w0.65", "B0 shrunk by w = .65", _B0, "published", 1, 0.65, r=1),
        Named("b0_r0.46", "B0 shrunk by r = .46", _B0, "published", 1, 1, r=0.46),
        Named("b0_min_depth", "B0 at its minimum depth", _B0, "published", 0.05, 1, r=1),
        Named("b0_w0.38", "B0 shrunk by w = .38", _B0, "published", 1, 0.38, r=1),
        Named("tinynet_a", "TinyNet-A", _B0, "published", 1.2, 1.0, r=0.86),
        Named("tinynet_b", "TinyNet-B", _B0, "published", 1.1, 0.75, r=0.84),
        Named("tinynet_c", "TinyNet-C", _B0, "published", 0.85, 0.54, r=0.825),
        Named("tinynet_d", "TinyNet-D", _B0, "published", 0.695, 0.54, r=0.68),
        Named("tinynet_e", "TinyNet-E", _B0, "published", 0.60, 0.51, r=0.475),
        Named("resnet50", "ResNet-50", "resnet50", "published", 1, 1, r=1),
        Named("resnet34", "ResNet-34", "resnet34", "published", 1, 1, r=1),
        Named(
            "resnet50_giant_a",
            "ResNet-50 by EfficientNet's rule, 3.7B",
            "resnet50",
            "ours",
            0.97,
            0.95,
            pixels=219,
        ),
        Named("resnet50_a", "ResNet-50-A", "resnet50", "ours", 1.2, 0.99, pixels=188),
        Named("resnet18", "ResNet-18", "resnet18", "published", 1, 1, r=1),
        Named(
            "resnet50_giant_b",
            "ResNet-50 by EfficientNet's rule, 1.8B",
            "resnet50",
            "ours",
            0.81,
            0.86,
            pixels=189,
        ),
        Named("resnet50_b", "ResNet-50-B", "resnet50", "ours", 1.06, 0.78, pixels=191),
        *_with_hard_swish(
            (
                Named("ghostnet_a", "GhostNet-A", _GHOST, "published", 1, 1, r=1),
                Named("ghostnet_1.5x", "GhostNet-1.5×", "ghostnet", "published", 1, 1.5, r=1),
                Named("ghostnet_b", "GhostNet-B", _GHOST, "ours", 1.1, 0.786, pixels=200),
                Named("ghostnet_1.0x", "GhostNet-1.0×", "ghostnet", "published", 1, 1, r=1),
                Named("ghostnet_c", "GhostNet-C", _GHOST, "ours", 0.84, 0.58, pixels=197),
                Named("ghostnet_0.5x", "GhostNet-0.5×", "ghostnet", "published", 1, 0.5, r=1),
                Named("ghostnet_d", "GhostNet-D", _GHOST, "ours", 0.64, 0.557, pixels=132),
            )
        ),
    )
}


def get_named(name: str) -> Named:
    """The row of a name.

    Raises:
        RequestError: nobody knows the name; the nearest is named.
    """
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    return NETWORKS[name]
