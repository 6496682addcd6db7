"""Limits of the width solver: the smallest possible budget, and invalid requests."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import RequestError, get_space, list_spaces

pytestmark = pytest.mark.quick

B0 = get_space("efficientnet_b0")


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(st.sampled_from(list_spaces()), st.floats(0.2, 1.5), st.floats(0.2, 1.5))
def test_reported_smallest_budget_can_be_met(name: str, r: float, d: float) -> None:
    space = get_space(name)
    with pytest.raises(RequestError, match="the smallest c that can be met there is ") as caught:
        space.solve_width(1e-9, r, d)
    smallest = float(re.findall(r"met there is (\S+);", str(caught.value))[0])
    assert space.solve_width(smallest, r, d).c == pytest.approx(smallest, rel=0.03)
    with pytest.raises(RequestError, match="is below every network near"):
        space.solve_width(smallest * 0.96, r, d)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(list_spaces()), st.floats(0.01, 1), st.floats(0.3, 1.5), st.floats(0.3, 1.5))
def test_no_solution_costs_less_than_the_narrowest(name: str, c: float, r: float, d: float) -> None:
    space = get_space(name)
    narrowest = space.narrowest(r, d)
    try:
        network = space.solve_width(c, r, d)
    except RequestError as error:
        assert ("below every network" in str(error)) == (narrowest.c - c > 0.03 * c)
        return
    assert network.macs >= narrowest.macs


@pytest.mark.parametrize("c", [math.nan, math.inf, 0.0, -1.0])
def test_invalid_budgets(c: float) -> None:
    with pytest.raises(RequestError, match="is not a valid budget"):
        B0.solve_width(c, 1, 1)


@pytest.mark.parametrize(
    ("c", "message"),
    [
        (1e-300, "below every network"),
        (5e-324, "below every network"),
        (1e300, "the nearest has c = 3538.9937"),
    ],
)
def test_extreme_budgets(c: float, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        B0.solve_width(c, 1, 1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("r", "d"),
    [
        (1e-3, 1),
        (1, 1e-3),
        (100, 1),
        (1, 100),
        (math.nan, 1),
        (1, math.nan),
        (math.inf, 1),
        (0, 1),
        (1, -1),
    ],
)
def test_invalid_multipliers(r: float, d: float) -> None:
    with pytest.raises(RequestError, match="is not a valid multiplier"):
        B0.solve_width(0.25, r, d)


@pytest.mark.parametrize(
    ("c", "r", "d"),
    [(304.0, 64, 1), (1e5, 64, 1), (0.25, 0.01, 0.01), (1e-4, 0.0101, 0.02), (1.0, 0.01, 64)],
)
def test_changed_resolution_stays_within_the_limits(c: float, r: float, d: float) -> None:
    """The message is about the budget, not about a resolution that the user did not request."""
    try:
        assert abs(B0.solve_width(c, r, d).c - c) <= 0.03 * c
    except RequestError as error:
        assert f"c = {c:g}" in str(error) and "multiplier" not in str(error)


def test_unreachable_budget_reports_the_nearest() -> None:
    with pytest.raises(
        RequestError,
        match=r"no width meets c = 0.150329 within 3% .*: "
        r"the nearest has c = 0.1452; change r, d or c",
    ):
        get_space("efficientnet_mini").solve_width(0.150329, 1.18747, 0.869612)
