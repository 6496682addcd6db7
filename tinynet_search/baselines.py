"""The rules a tiny formula has to beat: EfficientNet's compound scaling, run backwards."""

import math

from search_spaces import Network, SearchSpace

# EfficientNet's giant formula: resolution, depth and width of one step up, twice the FLOPs.
GIANT_R, GIANT_D = 1.15, 1.2


def inverse_giant(space: SearchSpace, c: float, *, num_classes: int | None = None) -> Network:
    """EfficientNet's rule at c of the baseline's FLOPs: r = 1.15^-phi, d = 1.2^-phi with phi = -log2 c.

    The pure rule's width 1.1^-phi overshoots the budget, so the width is solved on the exact cost, as the paper tuned it.
    """
    phi = -math.log2(c)
    return space.solve_width(c, GIANT_R**-phi, GIANT_D**-phi, num_classes=num_classes)
