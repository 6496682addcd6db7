"""Budgets, checked; and those other than FLOPs: the largest c on a formula whose network keeps within every limit.

Channels, repeats and pixels are rounded and the resolution is nudged, so no figure rises strictly with c, and bisection
over c would miss answers: the formula's whole range is costed instead.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import RequestError
from tinynet_search.errors import one_line
from tinynet_search.formula.budget import LIMITS, amount
from tinynet_search.formula.curve import STEP, Curve, Figures, grid, present

# How much finer c is looked at between the answer and the next larger c.
ZOOM = 100


def largest(curve: Curve, request: Mapping[str, float]) -> tuple[float, tuple[str, ...]]:
    """The largest c whose network's exact figures are at most their limits, and what binds it.

    c is looked for on a log grid of .1 %, made a hundred times finer between the answer and the next larger c. So only
    a network that the formula gives over less than .1 % of c can be missed.

    Args:
        request: limits by the names of ``LIMITS``, and perhaps c, the largest to look at.

    Returns:
        c, and the limits that the next larger network breaks; ``("c",)`` where c itself stops it, none where the formula ends.

    Raises:
        RequestError: no network meets them; the line says how near the formula comes.
    """
    limits = {name: limit for name, limit in request.items() if name != "c"}
    low, high = curve.ends()
    high = min(high, request.get("c", high))
    curve.require(high)
    figures = curve.figures(grid(min(low, high), high))
    met = _met(figures, limits)
    if met.any() and not met[-1]:
        last = int(np.flatnonzero(met)[-1])
        nearby = grid(float(figures["c"][last]), float(figures["c"][last + 1]), STEP / ZOOM)
        between = curve.figures(nearby)
        figures = {
            name: np.concatenate([v[:last], between[name], v[last + 2 :]])
            for name, v in figures.items()
        }
        met = _met(figures, limits)
    for i in np.flatnonzero(met)[::-1]:
        c = float(figures["c"][i])
        if _confirmed(curve, c, limits):
            return c, _binding(figures, int(i), limits) or (
                ("c",) if high == request.get("c") else ()
            )
    raise _refusal(curve, figures, limits)


def _met(figures: Figures, limits: Mapping[str, float]) -> NDArray[np.bool_]:
    """Where every limit is met; a missing network, NaN, meets none."""
    return np.all([figures[name] <= limit for name, limit in limits.items()], axis=0)


def _confirmed(curve: Curve, c: float, limits: Mapping[str, float]) -> bool:
    """Whether the scalar solver agrees: it and the arrays can part by a rounding error, and the network itself decides."""
    try:
        network = curve.network(c)
    except RequestError:
        return False
    return all(getattr(network, name) <= limit for name, limit in limits.items())


def _binding(figures: Figures, i: int, limits: Mapping[str, float]) -> tuple[str, ...]:
    """The limits that the next larger network breaks; none where nothing above breaks any."""
    broken = {name: figures[name][i + 1 :] > limit for name, limit in limits.items()}
    places = np.flatnonzero(np.any(list(broken.values()), axis=0))
    return tuple(name for name in limits if places.size and broken[name][places[0]])


def _refusal(curve: Curve, figures: Figures, limits: Mapping[str, float]) -> RequestError:
    """How near the formula's networks come to limits that none of them meets."""
    there, high = present(figures), float(figures["c"][-1])
    if not there["c"].size:
        curve.refuse_small(high)
        return RequestError(
            f"formula {one_line(curve.label)} has no network on {curve.space.name} up to c = {high:g}"
        )
    least = {name: int(np.argmin(there[name])) for name in limits}
    within = "" if curve.extrapolate else " within its range {:g} to {:g}".format(*curve.span)
    short = [name for name, limit in limits.items() if there[name][least[name]] > limit]
    lines = [
        f"has at most {amount(name, limits[name])}{LIMITS[name].words}: "
        f"the smallest{within} has {there[name][least[name]]:,.0f}, at c = {there['c'][least[name]]:g}"
        for name in short
    ]
    if not short:
        nearest = int(
            np.argmin(np.max([there[name] / limit for name, limit in limits.items()], axis=0))
        )
        pairs = [
            f"{name} {amount(name, there[name][nearest])} of {amount(name, limit)}"
            for name, limit in limits.items()
        ]
        lines = [
            f"meets all limits at once: the nearest, at c = {there['c'][nearest]:g}, has {', '.join(pairs)}"
        ]
    raised = " and ".join(short or limits)
    return RequestError(
        f"no network of the formula {', and none '.join(lines)}; raise {raised}{_wider(curve, limits)}"
    )


def _wider(curve: Curve, limits: Mapping[str, float]) -> str:
    """The way out that extrapolation is, where it is one."""
    wide = replace(curve, extrapolate=True)
    helps = not curve.extrapolate and _met(wide.figures(grid(*wide.ends())), limits).any()
    return ", or pass extrapolate=True (--extrapolate)" if helps else ""
