"""Evaluates a formula on one space: r and d at each c, and the costs of many networks at once.

Called by ``TinyFormula.suggest`` and by ``limits``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces import Network, RequestError, SearchSpace
from search_spaces.space import FLOAT32_BYTES, MAX_NUDGE, RDW_LIMITS
from tinynet_search.errors import one_line
from tinynet_search.formula.gaussian_process import Prediction

Array = NDArray[np.float64]
# Arrays of equal length: c, macs, params and activation_bytes. All but c are NaN where no network
# exists.
Figures = dict[str, Array]

# Relative distance of neighbouring c on a grid: 2,700 values between .06 and .9.
GRID_STEP = 1e-3
# Bisection steps over the log of the width, across the range RDW_LIMITS. They resolve 7e-5 of the
# width, as precise as the scalar solver.
BISECTION_STEPS = 17


@dataclass(frozen=True)
class Curve:
    """The networks of a formula on a space.

    Attributes:
        predict: Returns r(c) and d(c) for an array of c, (len(c),), or for a number.
        span: Lowest and highest c of the points that the formula was fitted to.
        label: Name of the formula in messages.
        space, num_classes: The networks' space and number of classes.
        tol: Largest accepted relative distance from c.
        extrapolate: Accept c outside the range, with r and d of its nearest end.
    """

    predict: Callable[[Any], Prediction]
    span: tuple[float, float]
    label: str
    space: SearchSpace
    num_classes: int
    tol: float
    extrapolate: bool

    def outside(self, c: float) -> bool:
        """Whether c is outside the formula's range."""
        return not self.span[0] - 1e-9 <= c <= self.span[1] + 1e-9

    def check_range(self, c: float) -> None:
        """Raise RequestError if c is outside the range and extrapolation is not enabled."""
        low, high = self.span
        if self.outside(c) and not self.extrapolate:
            raise RequestError(
                f"c = {c:g} is outside the range {low:g} to {high:g} of formula "
                f"{one_line(self.label)}: choose a c within the range, or pass extrapolate=True "
                "(--extrapolate) to use r and d of its nearest end"
            )

    def predicted(self, c: float) -> Prediction:
        """Equation 4: means at c or at the nearest end of the range, standard deviations at c."""
        low, high = self.span
        at_c = self.predict(c)
        return self.predict(min(max(c, low), high))._replace(r_std=at_c.r_std, d_std=at_c.d_std)

    def multipliers(self, c: Array) -> tuple[Array, Array]:
        """r and d at each c, (len(c),): the formula's means, clipped to the space's ranges."""
        inside, ranges = self.predict(np.clip(c, *self.span)), self.space.ranges
        return np.clip(inside.r_mean, *ranges["r"]), np.clip(inside.d_mean, *ranges["d"])

    def network(self, c: float) -> Network:
        """The network at c.

        Raises:
            RequestError: c is outside the range, or no network exists at c. If c is below every
                network of the formula, the message contains the smallest c.
        """
        self.check_range(c)
        r, d = (float(values[0]) for values in self.multipliers(np.array([c])))
        try:
            return self.space.solve_width(c, r, d, tol=self.tol, num_classes=self.num_classes)
        except RequestError:
            self.require_reachable(c)
            raise

    def ends(self) -> tuple[float, float]:
        """Smallest and largest c to consider.

        With extrapolation, the smallest is the least c for which ``solve_width`` may have a
        network.
        """
        low, high = self.span
        if not self.extrapolate:
            return low, min(high, 1.0)
        r, d = (float(values[0]) for values in self.multipliers(np.array([low])))
        least = self.space.narrowest(r, d, self.num_classes).c / (1 + self.tol)
        # The margin keeps the value feasible after it is printed with six digits.
        return min(low, least * (1 + 1e-5)), 1.0

    def require_reachable(self, c: float) -> None:
        """Raise RequestError if c is below every network of the formula; report the smallest c."""
        feasible = existing(self.figures(grid(*self.ends())))["c"]
        if feasible.size and c < feasible[0]:
            formula = f"formula {one_line(self.label)} on {self.space.name}"
            raise RequestError(
                f"c = {c:g} is below every network of {formula}: "
                f"the smallest is at c = {feasible[0]:g}; raise c"
            )

    def figures(self, c: Array) -> Figures:
        """Costs of the network at each c, (len(c),): a vectorised ``SearchSpace.solve_width``."""
        # Solve the width at the predicted resolution of each c. Where no width meets the budget,
        # repeat at resolutions one pixel further away in both directions, up to ``reach`` pixels,
        # and keep the nearest result.
        side, base = self.space.base_resolution, self.space.baseline_macs(self.num_classes)
        r, d = self.multipliers(c)
        predicted = self.space.pixels(r)
        reach = np.maximum(2, np.floor(predicted * MAX_NUDGE))
        w, off = self._widths(c, r, d)
        narrowest = self.space.macs(
            np.maximum(predicted - reach, 1) / side,
            d,
            np.full_like(c, RDW_LIMITS[0]),
            self.num_classes,
        )
        possible = narrowest <= (1 + self.tol) * c * base
        for step in range(1, int(reach.max()) + 1):
            left = np.flatnonzero(possible & (off > self.tol) & (step <= reach))
            if not left.size:
                break
            for pixels in (predicted[left] + step, np.maximum(predicted[left] - step, 1)):
                width, distance = self._widths(c[left], pixels / side, d[left])
                better = distance < off[left]
                chosen = left[better]
                r[chosen], w[chosen], off[chosen] = (
                    (pixels / side)[better],
                    width[better],
                    distance[better],
                )
        cost = self.space.cost(self.space.decode(r, d, w), self.num_classes)
        costs = {
            "macs": cost.macs,
            "params": cost.params,
            "activation_bytes": FLOAT32_BYTES * cost.peak,
        }
        met = off <= self.tol
        return {"c": c, **{name: np.where(met, costs[name], np.nan) for name in costs}}

    def _widths(self, c: Array, r: Array, d: Array) -> tuple[Array, Array]:
        """A vectorised ``nearest_width``: the widths, and their relative distance from c."""
        budget = c * self.space.baseline_macs(self.num_classes)
        low, high = np.full_like(c, RDW_LIMITS[0]), np.full_like(c, RDW_LIMITS[1])
        for _ in range(BISECTION_STEPS):
            middle = np.sqrt(low * high)
            fits = self.space.macs(r, d, middle, self.num_classes) <= budget
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        under, over = (
            np.abs(self.space.macs(r, d, w, self.num_classes) - budget) for w in (low, high)
        )
        return np.where(under <= over, low, high), np.minimum(under, over) / budget


def existing(figures: Figures) -> Figures:
    """The figures of the c that have a network."""
    return {name: values[np.isfinite(figures["macs"])] for name, values in figures.items()}


def grid(low: float, high: float, step: float = GRID_STEP) -> Array:
    """c from low to high in even steps of log c.

    The values are rounded to six digits, so ``:g`` prints them exactly.
    """
    even = np.geomspace(low, high, math.ceil(math.log(high / low) / step) + 1)
    return np.clip([float(f"{c:.6g}") for c in even], low, high)
