"""A formula on one space: r and d at each c, the network there, and the figures of thousands of networks at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces import Network, RequestError, SearchSpace
from search_spaces.space import FLOAT32_BYTES, MAX_NUDGE, SANE
from tinynet_search.errors import one_line
from tinynet_search.formula.gaussian_process import Prediction

Array = NDArray[np.float64]
# Equally long arrays: c, macs, params and activation_bytes; all but c are NaN where there is no network.
Figures = dict[str, Array]

# Relative distance of the c on a grid: 2,700 of them lie between .06 and .9.
STEP = 1e-3
# Halvings of the log of the width from one end of SANE to the other: to 7e-5 of the width, as fine as the scalar solver.
HALVINGS = 17


@dataclass(frozen=True)
class Curve:
    """The networks of a formula on a space.

    Attributes:
        predict: r(c) and d(c) of an array of c, (len(c),), or of one number.
        span: lowest and highest c of the points that they were fitted to.
        label: names their source in messages.
        space, num_classes, tol: what the widths are solved on, and how near to c.
        extrapolate: go on outside the formula's range, with r and d of its nearest end.
    """

    predict: Callable[[Any], Prediction]
    span: tuple[float, float]
    label: str
    space: SearchSpace
    num_classes: int
    tol: float
    extrapolate: bool

    def outside(self, c: float) -> bool:
        """Whether c is extrapolated."""
        return not self.span[0] - 1e-9 <= c <= self.span[1] + 1e-9

    def require(self, c: float) -> None:
        """Refuse a c that nobody allowed to extrapolate to."""
        low, high = self.span
        if self.outside(c) and not self.extrapolate:
            raise RequestError(
                f"c = {c:g} is outside the range {low:g} to {high:g} of formula {one_line(self.label)}: "
                "ask within it, or pass extrapolate=True (--extrapolate) to keep r and d of its nearest end"
            )

    def predicted(self, c: float) -> Prediction:
        """Equation 4 at c, or at the nearest end of the range; the standard deviations are those at c."""
        low, high = self.span
        at_c = self.predict(c)
        return self.predict(min(max(c, low), high))._replace(r_std=at_c.r_std, d_std=at_c.d_std)

    def twist(self, c: Array) -> tuple[Array, Array]:
        """r and d at each c, (len(c),): the formula's means, clipped to the space's ranges."""
        inside, ranges = self.predict(np.clip(c, *self.span)), self.space.ranges
        return np.clip(inside.r_mean, *ranges["r"]), np.clip(inside.d_mean, *ranges["d"])

    def network(self, c: float) -> Network:
        """The network at c.

        Raises:
            RequestError: c is outside the range, or there is none; below the whole formula, the line says the smallest c.
        """
        self.require(c)
        r, d = (float(values[0]) for values in self.twist(np.array([c])))
        try:
            return self.space.solve_width(c, r, d, tol=self.tol, num_classes=self.num_classes)
        except RequestError:
            self.refuse_small(c)
            raise

    def ends(self) -> tuple[float, float]:
        """Smallest and largest c to look at; extrapolation starts at the least that ``solve_width`` could answer."""
        low, high = self.span
        if not self.extrapolate:
            return low, min(high, 1.0)
        r, d = (float(values[0]) for values in self.twist(np.array([low])))
        # A hair more: it is still met where it is printed with six digits.
        return min(
            low, self.space.thinnest(r, d, self.num_classes).c / (1 + self.tol) * (1 + 1e-5)
        ), 1.0

    def refuse_small(self, c: float) -> None:
        """Say the smallest c that the formula has a network for, where c is below it."""
        there = present(self.figures(grid(*self.ends())))["c"]
        if there.size and c < there[0]:
            where = f"formula {one_line(self.label)} on {self.space.name}"
            raise RequestError(
                f"c = {c:g} is below every network of {where}: the smallest is at c = {there[0]:g}; raise c"
            )

    def figures(self, c: Array) -> Figures:
        """The figures of each c's network, (len(c),): ``solve_width`` on arrays, nudge and all."""
        side, base = self.space.base_resolution, self.space.baseline_macs(self.num_classes)
        r, d = self.twist(c)
        asked = self.space.pixels(r)
        reach = np.maximum(2, np.floor(asked * MAX_NUDGE))
        w, off = self._widths(c, r, d)
        thinnest = self.space.macs(
            np.maximum(asked - reach, 1) / side, d, np.full_like(c, SANE[0]), self.num_classes
        )
        possible = thinnest <= (1 + self.tol) * c * base
        for step in range(1, int(reach.max()) + 1):
            left = np.flatnonzero(possible & (off > self.tol) & (step <= reach))
            if not left.size:
                break
            for pixels in (asked[left] + step, np.maximum(asked[left] - step, 1)):
                width, distance = self._widths(c[left], pixels / side, d[left])
                better = distance < off[left]
                chosen = left[better]
                r[chosen], w[chosen], off[chosen] = (
                    (pixels / side)[better],
                    width[better],
                    distance[better],
                )
        cost = self.space.cost(self.space.decode(r, d, w), self.num_classes)
        found = {
            "macs": cost.macs,
            "params": cost.params,
            "activation_bytes": FLOAT32_BYTES * cost.peak,
        }
        return {
            "c": c,
            **{name: np.where(off <= self.tol, values, np.nan) for name, values in found.items()},
        }

    def _widths(self, c: Array, r: Array, d: Array) -> tuple[Array, Array]:
        """``nearest_width`` on arrays: the widths, and how far from c they end, relative to it."""
        budget = c * self.space.baseline_macs(self.num_classes)
        low, high = np.full_like(c, SANE[0]), np.full_like(c, SANE[1])
        for _ in range(HALVINGS):
            middle = np.sqrt(low * high)
            fits = self.space.macs(r, d, middle, self.num_classes) <= budget
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        under, over = (
            np.abs(self.space.macs(r, d, w, self.num_classes) - budget) for w in (low, high)
        )
        return np.where(under <= over, low, high), np.minimum(under, over) / budget


def present(figures: Figures) -> Figures:
    """Those that have a network."""
    return {name: values[np.isfinite(figures["macs"])] for name, values in figures.items()}


def grid(low: float, high: float, step: float = STEP) -> Array:
    """c from low to high in even steps of log c, of six digits: what ``:g`` prints of them is what they are."""
    even = np.geomspace(low, high, math.ceil(math.log(high / low) / step) + 1)
    return np.clip([float(f"{c:.6g}") for c in even], low, high)
