"""The rules a tiny formula has to beat (section 4.2, Table 1): EfficientNet's compound scaling run backwards, and one multiplier alone.

Every rule answers with networks of the space that was asked for. EfficientNet-B^-phi lets the head shrink with the width:
the paper's own are those of ``efficientnet_b0_scaled_head``, where ``efficientnet_b0`` keeps its head at 1280.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from search_spaces import RDW, Network, RequestError, SearchSpace, get_space
from search_spaces.space import SANE
from tinynet_search.formula.budget import checked_budget
from tinynet_search.formula.digits import tidy

# EfficientNet's giant formula: resolution, depth and width of one step up, twice the FLOPs.
GIANT_R, GIANT_D, GIANT_W = 1.15, 1.2, 1.1
# How far from the budget a network may end without a word about it (section 3.1).
TOL = 0.03
# What one multiplier alone ends at when the budget lies under its last step (Table 1's dagger).
UNDERFLOW = {
    "r": "resolution underflow: the smallest input",
    "d": "depth underflow: the shallowest",
    "w": "width underflow: the thinnest",
}


@dataclass(frozen=True)
class Baseline:
    """What a rule comes to at a budget.

    Attributes:
        rule: a name of ``RULES``.
        network: the rule's network, at the real c that its rounding leaves; None where the rule cannot go so low.
        note: why there is none, or how far it lies from the budget where that is over 3 %.
    """

    rule: str
    network: Network | None
    note: str | None


def inverse_giant(space: SearchSpace, c: float, *, num_classes: int | None = None) -> Network:
    """EfficientNet's rule at c of the baseline's FLOPs: r = 1.15^-phi, d = 1.2^-phi with phi = -log2 c.

    The pure rule's width 1.1^-phi overshoots the budget, so the width is solved on the exact cost, as the paper tuned it.
    """
    phi = -math.log2(c)
    return space.solve_width(c, GIANT_R**-phi, GIANT_D**-phi, num_classes=num_classes)


def baselines(space: str | SearchSpace, c: float, num_classes: int | None = None) -> list[Baseline]:
    """Each rule's network at c of the baseline's FLOPs (Table 1), in the order of ``RULES``.

    Alone, r is the nearest pixel, d the nearest step of the real network's depth, w the nearest step of its channels, all on
    the exact count. That a rule cannot go so low is a result: Table 1's depth underflow.

    Args:
        space: search space, or its name.
        c: budget, a fraction of the baseline's multiply-adds in (0, 1].
        num_classes: classes of the networks; None is the space's default.

    Raises:
        RequestError: c is no budget, the space is unknown, or there are too few classes.
    """
    budget, target = checked_budget(c), get_space(space) if isinstance(space, str) else space
    classes = target.baseline(num_classes).num_classes
    return [baseline(rule, target, budget, classes) for rule in RULES]


def baseline(rule: str, space: SearchSpace, c: float, num_classes: int) -> Baseline:
    """One rule's network, or why there is none; arguments as of ``baselines``."""
    try:
        network = tidy(RULES[rule](space, c, num_classes=num_classes))
    except RequestError as error:
        return Baseline(rule, None, str(error))
    off = network.c / c - 1
    return Baseline(
        rule,
        network,
        f"{abs(off):.1%} {'above' if off > 0 else 'below'} the budget" if abs(off) > TOL else None,
    )


def _alone(axis: str, space: SearchSpace, c: float, *, num_classes: int) -> Network:
    """The step of one multiplier that ends nearest to the budget, the others at 1: the most pixels, the shortest d or w.

    Raises:
        RequestError: the last step is still over the budget.
    """
    side, budget = space.base_resolution, c * space.baseline_macs(num_classes)
    steps = np.arange(1, side + 1) / side if axis == "r" else np.arange(1, 10_001) / 10_000
    steps = steps[steps >= SANE[0]]
    twist = {**dict.fromkeys("rdw", np.ones_like(steps)), axis: steps}
    macs = space.macs(**twist, num_classes=num_classes)
    if macs[0] > (1 + TOL) * budget:
        raise RequestError(
            f"{UNDERFLOW[axis]} has c = {macs[0] / space.baseline_macs(num_classes):.3f}"
        )
    equal = steps[macs == macs[np.argmin(np.abs(macs - budget))]]
    step = max(equal.tolist(), key=lambda value: (axis == "r" or -len(f"{value:g}"), value))
    return space.network(RDW(**{**dict.fromkeys("rdw", 1.0), axis: step}), num_classes)


def _pure_giant(space: SearchSpace, c: float, *, num_classes: int) -> Network:
    phi = -math.log2(c)
    return space.network((GIANT_R**-phi, GIANT_D**-phi, GIANT_W**-phi), num_classes)


Rule = Callable[..., Network]
RULES: dict[str, Rule] = {
    "inverse giant": inverse_giant,
    "inverse giant, not tuned": _pure_giant,
    "r alone": partial(_alone, "r"),
    "d alone": partial(_alone, "d"),
    "w alone": partial(_alone, "w"),
}
