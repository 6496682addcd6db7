"""Baseline rules that the tiny formula is compared with (section 4.2, Table 1).

The rules are EfficientNet's compound scaling in reverse, and scaling by a single multiplier. Called
by ``tinynet baselines`` and by searches that compare final networks.

Each rule returns networks of the requested space. In the paper's EfficientNet-B^-phi the head
shrinks with the width: its networks are those of ``efficientnet_b0_scaled_head``, while
``efficientnet_b0`` keeps its head at 1280 channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from search_spaces import RDW, Network, RequestError, SearchSpace, get_space
from search_spaces.space import RDW_LIMITS
from tinynet_search.formula.budget import checked_budget
from tinynet_search.formula.digits import shorten_rdw

# EfficientNet's giant formula: factors of resolution, depth and width for twice the FLOPs.
GIANT_R, GIANT_D, GIANT_W = 1.15, 1.2, 1.1
# Relative distance from the budget above which a network gets a note (section 3.1).
TOL = 0.03
# Messages for a budget below the smallest network of a single multiplier (dagger in Table 1).
UNDERFLOW = {
    "r": "resolution underflow: the smallest network",
    "d": "depth underflow: the shallowest network",
    "w": "width underflow: the narrowest network",
}


@dataclass(frozen=True)
class Baseline:
    """The result of a rule for a budget.

    Attributes:
        rule: A name in ``RULES``.
        network: The rule's network, whose c includes rounding; None if the rule has no network this
            small.
        note: Why no network exists, or its distance from the budget if that exceeds 3 %.
    """

    rule: str
    network: Network | None
    note: str | None


def inverse_giant(space: SearchSpace, c: float, *, num_classes: int | None = None) -> Network:
    """EfficientNet's rule in reverse: r = 1.15^-phi and d = 1.2^-phi with phi = -log2 c.

    The width 1.1^-phi of the pure rule exceeds the budget, so the width is solved on the exact
    cost, as tuned in the paper.
    """
    phi = -math.log2(c)
    return space.solve_width(c, GIANT_R**-phi, GIANT_D**-phi, num_classes=num_classes)


def baselines(space: str | SearchSpace, c: float, num_classes: int | None = None) -> list[Baseline]:
    """The network of each rule at c of the baseline's FLOPs (Table 1), in the order of ``RULES``.

    A single multiplier takes the step whose exact count is nearest to the budget: a pixel for r, a
    step of the real network's depth for d, a step of its channels for w. A rule without a network
    this small is a result, not an error: the depth underflow of Table 1.

    Args:
        space: Search space, or its name.
        c: Budget, a fraction of the baseline's multiply-adds in (0, 1].
        num_classes: Number of classes of the networks; None is the space's default.

    Raises:
        RequestError: c is not a valid budget, the space is unknown, or num_classes is too small.
    """
    budget, target = checked_budget(c), get_space(space) if isinstance(space, str) else space
    classes = target.baseline(num_classes).num_classes
    return [baseline(rule, target, budget, classes) for rule in RULES]


def baseline(rule: str, space: SearchSpace, c: float, num_classes: int) -> Baseline:
    """The network of one rule, or why none exists; for the arguments see ``baselines``."""
    try:
        network = shorten_rdw(RULES[rule](space, c, num_classes=num_classes))
    except RequestError as error:
        return Baseline(rule, None, str(error))
    deviation = network.c / c - 1
    note = None
    if abs(deviation) > TOL:
        note = f"{abs(deviation):.1%} {'above' if deviation > 0 else 'below'} the budget"
    return Baseline(rule, network, note)


def _single_multiplier(axis: str, space: SearchSpace, c: float, *, num_classes: int) -> Network:
    """The step of one multiplier that is nearest to the budget; the other multipliers are 1.

    Of steps with equal cost it takes the one with the most pixels, or the shortest d or w.

    Raises:
        RequestError: The smallest step exceeds the budget.
    """
    side, budget = space.base_resolution, c * space.baseline_macs(num_classes)
    steps = np.arange(1, side + 1) / side if axis == "r" else np.arange(1, 10_001) / 10_000
    steps = steps[steps >= RDW_LIMITS[0]]
    multipliers = {**dict.fromkeys("rdw", np.ones_like(steps)), axis: steps}
    macs = space.macs(**multipliers, num_classes=num_classes)
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
    "r alone": partial(_single_multiplier, "r"),
    "d alone": partial(_single_multiplier, "d"),
    "w alone": partial(_single_multiplier, "w"),
}
