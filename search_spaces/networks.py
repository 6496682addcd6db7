"""Named networks: one row each, with where its (r, d, w) comes from and what the paper prints of it.

``source`` is ``published`` ((r, d, w) stand in the paper or the authors' release) or ``inferred`` (found by us: params
and FLOPs both meet the paper's printed digits). ``paper_params`` and ``paper_flops`` are the paper's, in millions.
"""

from dataclasses import dataclass
from typing import Literal

from search_spaces import Network, get_space
from search_spaces.errors import unknown


@dataclass(frozen=True)
class Named:
    """A row of the table; ``pixels`` stands for r where the paper gives pixels."""

    name: str
    space: str
    d: float
    w: float
    source: Literal["published", "inferred"]
    paper_flops: float
    r: float | None = None
    pixels: int | None = None
    paper_params: float | None = None
    title: str = ""

    def network(self) -> Network:
        space = get_space(self.space)
        r = self.r if self.r is not None else (self.pixels or 0) / space.base_resolution
        return space.network((r, self.d, self.w))


_B0, _SCALED = "efficientnet_b0", "efficientnet_b0_scaled_head"
NETWORKS = {
    row.name: row
    for row in (
        Named("efficientnet_b0", _B0, 1, 1, "published", 387, r=1, paper_params=5.3, title="EfficientNet-B0"),
        Named("tinynet_a", _B0, 1.2, 1.0, "published", 339, r=0.86, paper_params=6.2, title="TinyNet-A"),
        Named("tinynet_b", _B0, 1.1, 0.75, "published", 202, r=0.84, paper_params=3.7, title="TinyNet-B"),
        Named("tinynet_c", _B0, 0.85, 0.54, "published", 100, r=0.825, paper_params=2.5, title="TinyNet-C"),
        Named("tinynet_d", _B0, 0.695, 0.54, "published", 52, r=0.68, paper_params=2.3, title="TinyNet-D"),
        Named("tinynet_e", _B0, 0.60, 0.51, "published", 24, r=0.475, paper_params=2.0, title="TinyNet-E"),
        Named("efficientnet_b-1", _SCALED, 0.8, 0.89, "published", 201, pixels=192, paper_params=3.6, title="EfficientNet-B^-1"),
        Named("efficientnet_b-2", _SCALED, 0.7, 0.8, "inferred", 98, pixels=154, paper_params=3.0, title="EfficientNet-B^-2"),
        Named("efficientnet_b-3", _SCALED, 0.45, 0.7, "inferred", 51, pixels=130, paper_params=2.0, title="EfficientNet-B^-3"),
        Named("efficientnet_b-4", _SCALED, 0.45, 0.53, "inferred", 24, pixels=128, paper_params=1.3, title="EfficientNet-B^-4"),
        Named("b0_r0.70", _B0, 1, 1, "published", 196, r=0.70, title="B0 shrunk by r = .70"),
        Named("b0_r0.46", _B0, 1, 1, "published", 103, r=0.46, title="B0 shrunk by r = .46"),
        Named("b0_d0.45", _B0, 0.45, 1, "published", 196, r=1, title="B0 shrunk by d = .45"),
        Named("b0_min_depth", _B0, 0.05, 1, "published", 173, r=1, title="B0 at its minimum depth"),
        Named("b0_w0.65", _B0, 1, 0.65, "published", 205, r=1, title="B0 shrunk by w = .65"),
        Named("b0_w0.38", _B0, 1, 0.38, "published", 99, r=1, title="B0 shrunk by w = .38"),
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
