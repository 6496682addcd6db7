"""The width solver at the ends of what it can do: the smallest budget is named, and nothing absurd gets through."""

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
def test_the_smallest_that_is_named_can_be_met(name: str, r: float, d: float) -> None:
    space = get_space(name)
    with pytest.raises(RequestError, match="the smallest that can be met there is c = ") as caught:
        space.solve_width(1e-9, r, d)
    named = float(re.findall(r"is c = (\S+);", str(caught.value))[0])
    assert space.solve_width(named, r, d).c == pytest.approx(named, rel=0.03)
    with pytest.raises(RequestError, match="is below every network near"):
        space.solve_width(named * 0.96, r, d)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(list_spaces()), st.floats(0.01, 1), st.floats(0.3, 1.5), st.floats(0.3, 1.5))
def test_no_answer_costs_less_than_the_thinnest(name: str, c: float, r: float, d: float) -> None:
    space = get_space(name)
    least = space.thinnest(r, d)
    try:
        network = space.solve_width(c, r, d)
    except RequestError as error:
        assert ("below every network" in str(error)) == (least.c - c > 0.03 * c)
        return
    assert network.macs >= least.macs


@pytest.mark.parametrize("c", [math.nan, math.inf, 0.0, -1.0])
def test_no_budget(c: float) -> None:
    with pytest.raises(RequestError, match="is no budget"):
        B0.solve_width(c, 1, 1)


@pytest.mark.parametrize(
    ("c", "words"),
    [
        (1e-300, "below every network"),
        (5e-324, "below every network"),
        (1e300, "the nearest has c = 3538.9937"),
    ],
)
def test_absurd_budgets(c: float, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
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
def test_absurd_twists(r: float, d: float) -> None:
    with pytest.raises(RequestError, match="is no multiplier"):
        B0.solve_width(0.25, r, d)


@pytest.mark.parametrize(
    ("c", "r", "d"),
    [(304.0, 64, 1), (1e5, 64, 1), (0.25, 0.01, 0.01), (1e-4, 0.0101, 0.02), (1.0, 0.01, 64)],
)
def test_the_nudge_keeps_within_sane_multipliers(c: float, r: float, d: float) -> None:
    """The message is about the budget, never about a resolution that nobody asked for."""
    try:
        assert abs(B0.solve_width(c, r, d).c - c) <= 0.03 * c
    except RequestError as error:
        assert f"c = {c:g}" in str(error) and "multiplier" not in str(error)


def test_a_gap_in_the_staircase_names_the_nearest() -> None:
    with pytest.raises(
        RequestError,
        match=r"no width meets c = 0.150329 within 3% .*: the nearest has c = 0.1452; change r, d or c",
    ):
        get_space("efficientnet_mini").solve_width(0.150329, 1.18747, 0.869612)
