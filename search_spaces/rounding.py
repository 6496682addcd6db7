"""How multiplied channels and repeats become whole numbers, one at a time or in arrays."""

from typing import Any

import numpy as np


def round_channels(channels: float, w: Any, divisor: int) -> Any:
    """Nearest multiple of the divisor, one step up where that would lose more than 10 % (scalar or array)."""
    wanted = channels * w
    if isinstance(wanted, np.ndarray):
        rounded = np.maximum((wanted + divisor / 2) // divisor * divisor, divisor)
        return rounded + divisor * (rounded < 0.9 * wanted)
    rounded = int(wanted + divisor / 2) // divisor * divisor or divisor
    return rounded + divisor if rounded < 0.9 * wanted else rounded


def round_repeats(repeats: int, d: Any) -> Any:
    """max(1, round(n d)), halves to even (scalar or array)."""
    return (
        np.maximum(1.0, np.rint(repeats * d))
        if isinstance(d, np.ndarray)
        else round(repeats * d) or 1
    )
