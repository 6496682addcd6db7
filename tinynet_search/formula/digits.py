"""Formats (r, d, w) with few digits that still select the same network.

Called by the formula and by the commands that print multipliers, so the output can be used as
input.
"""

import math
from collections.abc import Iterator

from search_spaces import RDW, Network
from search_spaces.space import RDW_LIMITS


def shorten_rdw(network: Network) -> Network:
    """The same network, with its whole-pixel r and the shortest w that still selects it."""
    space, d = network.space, network.rdw.d
    r = network.resolution / space.base_resolution
    w = network.rdw.w
    # Rounding can move a solved width across the edge of its step; a millionth further inside it
    # cannot.
    widths = [
        *(round(w, digits) for digits in range(2, 7)),
        round(w - 1e-6, 6),
        round(w + 1e-6, 6),
        w,
    ]
    # Two decimals round the smallest widths to zero.
    networks = (
        space.network(RDW(r, d, w), network.num_classes) for w in widths if w >= RDW_LIMITS[0]
    )
    return next(candidate for candidate in networks if candidate == network)


def format_rdw(network: Network) -> tuple[str, str, str]:
    """Format r, d and w for display.

    r and d have three digits if those select this network, else more.
    """
    exact = network.rdw

    def same(axis: str, text: str) -> bool:
        rdw = exact._replace(**{axis: float(text)})
        return (
            RDW_LIMITS[0] <= float(text)
            and network.space.network(rdw, network.num_classes) == network
        )

    def shortest(axis: str) -> str:
        value = getattr(exact, axis)
        for text in _texts(value):
            if same(axis, text):
                return text
        return repr(value)

    w = f"{exact.w:g}"
    return shortest("r"), shortest("d"), w if same("w", w) else repr(exact.w)


def _texts(value: float) -> Iterator[str]:
    """The value with three or more digits, rounded to nearest, then rounded up.

    Rounding up is needed because 184 of 224 pixels are .822; .821 would be 183 pixels.
    """
    for digits in range(3, 8):
        yield f"{value:.{digits}f}"
        yield f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"
