"""(r, d, w) in few digits that still mean the same network: what is printed can be typed in again."""

import math
from collections.abc import Iterator

from search_spaces import RDW, Network
from search_spaces.space import SANE


def tidy(network: Network) -> Network:
    """The same network under its whole-pixel r and the shortest w that still gives it."""
    space, d = network.space, network.rdw.d
    r = network.resolution / space.base_resolution
    w = network.rdw.w
    # A solved width can lie so close to its step's edge that rounding crosses it: a millionth beside it is well inside.
    widths = [
        *(round(w, digits) for digits in range(2, 7)),
        round(w - 1e-6, 6),
        round(w + 1e-6, 6),
        w,
    ]
    # Two decimals turn the smallest widths into none at all.
    twists = (space.network(RDW(r, d, w), network.num_classes) for w in widths if w >= SANE[0])
    return next(twist for twist in twists if twist == network)


def spelled(network: Network) -> tuple[str, str, str]:
    """r, d and w as people read them: r and d with three digits where those decode to this network, else with more."""
    exact = network.rdw

    def same(axis: str, text: str) -> bool:
        twist = exact._replace(**{axis: float(text)})
        return (
            SANE[0] <= float(text) and network.space.network(twist, network.num_classes) == network
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
    """The value to three digits and more, to the nearest and then up: 184 of 224 pixels are .822 and not .821."""
    for digits in range(3, 8):
        yield f"{value:.{digits}f}"
        yield f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"
