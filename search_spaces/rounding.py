"""Rounds scaled channels and repeats to whole numbers, for scalars and arrays.

The search spaces of all families use it to decode (r, d, w).
"""

from typing import Any

import numpy as np


def round_channels(channels: float, w: Any, divisor: int) -> Any:
    """Round to the nearest multiple of the divisor, or one step up if that loses more than 10 %.

    Accepts a scalar or an array ``w``.
    """
    scaled = channels * w
    if isinstance(scaled, np.ndarray):
        rounded = np.maximum((scaled + divisor / 2) // divisor * divisor, divisor)
        return rounded + divisor * (rounded < 0.9 * scaled)
    rounded = int(scaled + divisor / 2) // divisor * divisor or divisor
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, d: Any) -> Any:
    """Return max(1, round(n d)), rounding halves to even, for a scalar or an array ``d``."""
    return (
        np.maximum(1.0, np.rint(repeats * d))
        if isinstance(d, np.ndarray)
        else round(repeats * d) or 1
    )
