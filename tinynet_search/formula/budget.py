"""Validates and formats budgets: c and limits on multiply-adds, parameters and memory.

Called by the formula, the baselines and the commands.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from search_spaces.errors import RequestError
from tinynet_search.errors import one_line
from tinynet_search.text import scaled


class Limit(NamedTuple):
    """How a limit is displayed: the unit of its values, and the words that follow them."""

    unit: str
    words: str


LIMITS = {
    "macs": Limit("", " multiply-adds"),
    "params": Limit("", " parameters"),
    "activation_bytes": Limit("B", " of peak activation memory"),
}


def checked_request(request: Mapping[str, object]) -> dict[str, float]:
    """The given values of c and the limits, as floats.

    Raises:
        RequestError: No value is given, c is not a valid budget, or a limit is not a positive,
            finite number.
    """
    given = {name: value for name, value in request.items() if value is not None}
    if not given:
        raise RequestError(
            "no budget given: pass c, a fraction of the baseline's FLOPs, or a limit: "
            "macs, params, activation_bytes (--macs, --params, --activation-bytes)"
        )
    return {
        name: checked_budget(value) if name == "c" else _checked_limit(name, value)
        for name, value in given.items()
    }


def checked_budget(c: Any) -> float:
    """Convert c to a float.

    Raises:
        RequestError: c is not a number in (0, 1], the budgets of equation 5.
    """
    try:
        value = float(c)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 < value <= 1:
        raise RequestError(
            f"c = {one_line(c, 40)} is not a valid budget: "
            "pass a fraction of the baseline's FLOPs above 0 and at most 1"
        )
    return value


def _checked_limit(name: str, value: Any) -> float:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    # A finite int can exceed the largest float, so it is compared before the conversion.
    if (
        not is_number
        or not 0 < (value if isinstance(value, int) else float(value)) <= sys.float_info.max
    ):
        raise RequestError(
            f"{name} = {one_line(repr(value), 40)} is not a valid limit: pass a number above 0"
        )
    return float(value)


def amount(name: str, value: float) -> str:
    """A formatted value: ``1.98M``, ``1.50MB``; c as ``0.2500``."""
    if name == "c":
        return f"{value:.4f}"
    return scaled(value, LIMITS[name].unit)
