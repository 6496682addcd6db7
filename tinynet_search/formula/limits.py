"""Finds the largest c whose network meets limits on multiply-adds, parameters and memory.

Called by ``TinyFormula.suggest``. Channels, repeats and pixels are rounded and the resolution is
nudged, so costs do not increase monotonically with c, and bisection over c would miss solutions.
Instead, the costs are computed on a grid over the formula's complete range.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import RequestError
from tinynet_search.errors import one_line
from tinynet_search.formula.budget import LIMITS, amount
from tinynet_search.formula.curve import GRID_STEP, Curve, Figures, existing, grid

# Factor by which the grid is refined between the solution and the next larger c.
REFINEMENT = 100


def largest_c(curve: Curve, request: Mapping[str, float]) -> tuple[float, tuple[str, ...]]:
    """The largest c whose network's exact costs meet all limits, and the limits that bind it.

    c is searched on a log grid of .1 %, refined a hundredfold between the solution and the next
    larger c. The search can only miss a network that exists over less than .1 % of c.

    Args:
        request: Limits by the names of ``LIMITS``, and optionally c, the largest value to consider.

    Returns:
        c, and the limits that the next larger network exceeds: ``("c",)`` if c itself is the limit,
        and an empty tuple at the end of the formula's range.

    Raises:
        RequestError: No network meets the limits. The message contains the nearest network.
    """
    limits = {name: limit for name, limit in request.items() if name != "c"}
    low, high = curve.ends()
    high = min(high, request.get("c", high))
    curve.check_range(high)
    figures = curve.figures(grid(min(low, high), high))
    met = _met(figures, limits)
    if met.any() and not met[-1]:
        last = int(np.flatnonzero(met)[-1])
        ends = float(figures["c"][last]), float(figures["c"][last + 1])
        nearby = grid(*ends, GRID_STEP / REFINEMENT)
        between = curve.figures(nearby)
        figures = {
            name: np.concatenate([v[:last], between[name], v[last + 2 :]])
            for name, v in figures.items()
        }
        met = _met(figures, limits)
    for i in np.flatnonzero(met)[::-1]:
        c = float(figures["c"][i])
        if _confirmed(curve, c, limits):
            binding = _binding(figures, int(i), limits)
            if not binding and high == request.get("c"):
                binding = ("c",)
            return c, binding
    raise _refusal(curve, figures, limits)


def _met(figures: Figures, limits: Mapping[str, float]) -> NDArray[np.bool_]:
    """Where all limits are met; a missing network (NaN) meets none."""
    return np.all([figures[name] <= limit for name, limit in limits.items()], axis=0)


def _confirmed(curve: Curve, c: float, limits: Mapping[str, float]) -> bool:
    """Whether the scalar solver's network meets the limits.

    The scalar and the vectorised solver can differ by a rounding error; the network itself decides.
    """
    try:
        network = curve.network(c)
    except RequestError:
        return False
    return all(getattr(network, name) <= limit for name, limit in limits.items())


def _binding(figures: Figures, i: int, limits: Mapping[str, float]) -> tuple[str, ...]:
    """The limits that the next larger network exceeds; empty if no larger network exceeds any."""
    exceeded = {name: figures[name][i + 1 :] > limit for name, limit in limits.items()}
    places = np.flatnonzero(np.any(list(exceeded.values()), axis=0))
    return tuple(name for name in limits if places.size and exceeded[name][places[0]])


def _refusal(curve: Curve, figures: Figures, limits: Mapping[str, float]) -> RequestError:
    """The error for limits that no network of the formula meets; it reports the nearest ones."""
    networks, high = existing(figures), float(figures["c"][-1])
    if not networks["c"].size:
        curve.require_reachable(high)
        return RequestError(
            f"formula {one_line(curve.label)} has no network on {curve.space.name} "
            f"up to c = {high:g}"
        )
    least = {name: int(np.argmin(networks[name])) for name in limits}
    within = "" if curve.extrapolate else " within its range {:g} to {:g}".format(*curve.span)
    unmet = [name for name, limit in limits.items() if networks[name][least[name]] > limit]
    lines: list[str] = []
    for name in unmet:
        smallest, c = networks[name][least[name]], networks["c"][least[name]]
        lines.append(
            f"has at most {amount(name, limits[name])}{LIMITS[name].words}: "
            f"the smallest{within} has {smallest:,.0f}, at c = {c:g}"
        )
    if not unmet:
        nearest = int(
            np.argmin(np.max([networks[name] / limit for name, limit in limits.items()], axis=0))
        )
        pairs = [
            f"{name} {amount(name, networks[name][nearest])} of {amount(name, limit)}"
            for name, limit in limits.items()
        ]
        lines.append(
            f"meets all limits at once: the nearest, at c = {networks['c'][nearest]:g}, "
            f"has {', '.join(pairs)}"
        )
    problem = f"no network of the formula {', and none '.join(lines)}"
    fix = f"raise {' and '.join(unmet or limits)}{_extrapolation(curve, limits)}"
    return RequestError(f"{problem}; {fix}")


def _extrapolation(curve: Curve, limits: Mapping[str, float]) -> str:
    """The advice to extrapolate, empty if that does not help."""
    wide = replace(curve, extrapolate=True)
    helps = not curve.extrapolate and _met(wide.figures(grid(*wide.ends())), limits).any()
    return ", or pass extrapolate=True (--extrapolate)" if helps else ""
