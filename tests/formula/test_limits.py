"""Tests of limits on costs: the result is compared with an exhaustive search over c."""

import copy
import json
import math
import pickle
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import Network, RequestError, get_space, list_spaces
from tinynet_search import Suggestion, TinyFormula, suggest_rdw
from tinynet_search.cli.main import run
from tinynet_search.formula.budget import LIMITS
from tinynet_search.formula.curve import Curve, grid

pytestmark = pytest.mark.quick

PUBLISHED = TinyFormula.load("published")
NAMES = list(LIMITS)
# A finer grid than that of the search, and not aligned with it.
FINER = 9e-4


def curve(name: str, extrapolate: bool = False) -> Curve:
    space = get_space(name)
    assert PUBLISHED.range
    formula = (PUBLISHED.predict, PUBLISHED.range, PUBLISHED.source)
    return Curve(*formula, space, space.num_classes, 0.03, extrapolate)


def solved(formula: Curve, c: float) -> Network | None:
    """The network at c, computed only with the scalar solver."""
    try:
        predicted = PUBLISHED.predict(min(max(c, 0.06), 0.9))
        return formula.space.solve_width(c, float(predicted.r_mean), float(predicted.d_mean))
    except RequestError:
        return None


@lru_cache
def everything(name: str, extrapolate: bool) -> list[tuple[float, Network]]:
    """All networks of the formula on a separate fine grid, sorted by c."""
    formula = curve(name, extrapolate)
    low, high = formula.ends()
    networks = [
        (c, solved(formula, c))
        for c in np.exp(np.arange(math.log(low), math.log(high), FINER)).tolist()
    ]
    return [(c, network) for c, network in networks if network]


def meets(network: Network, limits: Mapping[str, float]) -> bool:
    return all(getattr(network, name) <= limit for name, limit in limits.items())


# Limits as shares of the range of the formula's costs.
SHARES = st.dictionaries(st.sampled_from(NAMES), st.floats(0.001, 0.999), min_size=1)
SPACES = [
    ("efficientnet_b0", False),
    ("efficientnet_b0_scaled_head", False),
    ("efficientnet_mini", True),
    ("resnet50", False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "extrapolate"), SPACES)
@settings(max_examples=40, deadline=None)
@given(shares=SHARES)
def test_no_larger_network_meets_the_limits(
    name: str, extrapolate: bool, shares: dict[str, float]
) -> None:
    networks = everything(name, extrapolate)
    spans = {key: [getattr(network, key) for _, network in networks] for key in shares}
    limits: dict[str, Any] = {
        key: min(spans[key]) + share * (max(spans[key]) - min(spans[key]))
        for key, share in shares.items()
    }
    try:
        s = suggest_rdw(**limits, space=name, extrapolate=extrapolate)
    except RequestError:
        assert not any(meets(network, limits) for _, network in networks)
        return
    assert meets(s.network, limits)
    assert suggest_rdw(s.budget, space=name, extrapolate=extrapolate).network == s.network
    # Guaranteed: no larger network exists over .1 % of c or more, which is three neighbours of this
    # grid.
    above = [meets(network, limits) for c, network in networks if c > s.budget * 1.0001]
    assert not any(map(all, zip(above, above[1:], above[2:], strict=False)))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(shares=SHARES)
def test_next_larger_network_exceeds_the_binding_limits(shares: dict[str, float]) -> None:
    _, largest = everything("efficientnet_b0", False)[-1]
    limits: dict[str, Any] = {key: share * getattr(largest, key) for key, share in shares.items()}
    try:
        s = suggest_rdw(**limits)
    except RequestError:
        return
    assert set(s.binding) <= set(limits)
    if not s.binding:
        assert s.budget == 0.9
        return
    following = next(
        n
        for c in s.budget * (1 + 2e-5 * np.arange(1, 200))
        if (n := solved(curve("efficientnet_b0"), c))
    )
    assert {name for name, limit in limits.items() if getattr(following, name) > limit} == set(
        s.binding
    )


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(list_spaces()),
    st.sampled_from(NAMES),
    st.floats(3, 9),
    st.booleans(),
    st.none() | st.floats(0.01, 1),
)
def test_limits_are_never_exceeded(
    space: str, name: str, power: float, extrapolate: bool, c: float | None
) -> None:
    limits: dict[str, Any] = {name: 10**power}
    try:
        s = suggest_rdw(c, **limits, space=space, extrapolate=extrapolate)
    except RequestError as error:
        assert str(error).isprintable()
        return
    assert getattr(s, name) == getattr(s.network, name) <= limits[name]
    assert c is None or s.budget <= c
    assert abs(s.c - s.budget) <= 0.03 * s.budget
    assert s.limits == limits | ({} if c is None else {"c": c})


@pytest.mark.parametrize("name", list_spaces())
def test_arrays_and_the_scalar_solver_agree(name: str) -> None:
    formula = curve(name, extrapolate=True)
    figures = formula.figures(grid(*formula.ends(), step=0.04))
    for i, c in enumerate(figures["c"].tolist()):
        network = solved(formula, c)
        expected = [getattr(network, key, math.nan) for key in NAMES]
        np.testing.assert_array_equal([figures[key][i] for key in NAMES], expected)


def test_c_can_be_one_of_the_limits() -> None:
    assert suggest_rdw(0.1, params=2.4e6).binding == ("c",)
    assert suggest_rdw(0.1, params=2.4e6).network == suggest_rdw(0.1).network
    both, alone = suggest_rdw(0.5, params=2.4e6), suggest_rdw(params=2.4e6)
    assert (both.network, both.binding) == (alone.network, ("params",)) and both.limits == {
        "c": 0.5,
        "params": 2.4e6,
    }
    # As a limit, c may exceed the formula's range.
    assert suggest_rdw(1.0, params=1e9).network == suggest_rdw(0.9).network
    with pytest.raises(
        RequestError, match=r"c = 0.05 is outside the range 0.06 to 0.9 .*--extrapolate"
    ):
        suggest_rdw(0.05, params=2e6)


def test_extrapolation_extends_the_range() -> None:
    low, high = (
        suggest_rdw(params=1.5e6, extrapolate=True),
        suggest_rdw(params=1e9, extrapolate=True),
    )
    assert low.extrapolated and low.budget < 0.06 and low.params <= 1.5e6
    assert high.extrapolated and high.budget == 1 and high.binding == ()


def test_display_of_limits() -> None:
    s = suggest_rdw(params=2.0e6, activation_bytes=1e9)
    assert repr(s).endswith("c=0.0614, binding params)")
    for text in (str(s), s._repr_html_()):
        assert (
            "params (1.98M of 2.00M)" in text
            and "params 2.00M, activation_bytes 1.00GB" in text
            and "0.75MB" in text
        )
    assert "none: every limit is met at the formula's largest c" in str(suggest_rdw(params=1e9))
    assert "binding none" in repr(suggest_rdw(params=1e9)) and "binding" not in repr(
        suggest_rdw(0.5)
    )
    data = json.loads(json.dumps(s.to_dict(), allow_nan=False))
    assert data["limits"] == {"params": 2e6, "activation_bytes": 1e9} and data["binding"] == [
        "params"
    ]
    assert data["activation_bytes"] == s.network.activation_bytes
    assert (
        copy.deepcopy(s) == s == pickle.loads(pickle.dumps(s)) and len({s, copy.deepcopy(s)}) == 1
    )


REJECTED = [
    ({}, "no budget given: pass c"),
    ({"params": -1}, "params = -1 is not a valid limit: pass a number above 0"),
    ({"params": math.nan}, "is not a valid limit"),
    ({"macs": math.inf}, "is not a valid limit"),
    ({"macs": 10**400}, "is not a valid limit"),
    ({"activation_bytes": True}, "activation_bytes = True is not a valid limit"),
    ({"params": "2e6"}, "params = '2e6' is not a valid limit"),
    ({"c": "half", "params": 2e6}, "c = half is not a valid budget"),
    (
        {"params": 1.5e6},
        "no network of the formula has at most 1.50M parameters: "
        "the smallest within its range 0.06 to 0.9 has 1,980,648, at c = 0.06; "
        "raise params, or pass extrapolate=True (--extrapolate)",
    ),
    ({"params": 1e6}, "at c = 0.06; raise params"),
    (
        {"params": 1e6, "macs": 1e3, "activation_bytes": 1e9},
        "has 23,500,656, at c = 0.06, and none has at most 1.00M parameters: "
        "the smallest within its range 0.06 to 0.9 has 1,980,648",
    ),
    (
        {"params": 4.85e6, "macs": 250e6, "space": "resnet34"},
        "meets all limits at once: the nearest, at c = ",
    ),
    ({"params": 2e6, "c": 0.001, "extrapolate": True}, "the smallest is at c = "),
]


@pytest.mark.parametrize(("values", "words"), REJECTED)
def test_invalid_limits_raise_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=re.escape(words)) as caught:
        suggest_rdw(**values)
    assert str(caught.value).isprintable()


def test_error_suggests_extrapolation_only_if_it_helps() -> None:
    for params, helps in ((1.5e6, True), (1e6, False)):
        with pytest.raises(RequestError) as caught:
            suggest_rdw(params=params)
        assert ("--extrapolate" in str(caught.value)) == helps


@pytest.mark.slow
@pytest.mark.parametrize("name", list_spaces())
def test_reported_smallest_c_is_feasible(name: str) -> None:
    with pytest.raises(
        RequestError, match="is below every network of formula published on"
    ) as caught:
        suggest_rdw(1e-5, space=name, extrapolate=True)
    smallest = float(re.findall(r"the smallest is at c = (\S+);", str(caught.value))[0])
    assert suggest_rdw(smallest, space=name, extrapolate=True).extrapolated
    with pytest.raises(RequestError):
        suggest_rdw(smallest * 0.998, space=name, extrapolate=True)


def test_suggestion_takes_less_than_half_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        assert isinstance(suggest_rdw(params=2.4e6, activation_bytes=1.5e6), Suggestion)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def tinynet(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, err = tinynet(capsys, "suggest", "--params", "2e6")
    assert (code, err) == (0, "") and lines[0].split()[-5:] == ["±", "r", "±", "d", "binds"]
    assert " 1.98M  0.75MB " in lines[2] and lines[2].endswith(" params")
    code, lines, _ = tinynet(
        capsys, "suggest", "0.5", "0.1", "--activation-bytes", "1.5MB", "--macs", "100M"
    )
    assert [(line.split()[0], line.split()[-1]) for line in lines[2:]] == [
        ("0.1312", "activation_bytes"),
        ("0.1", "c"),
    ]
    code, lines, _ = tinynet(capsys, "suggest", "0.25")
    assert "memory" in lines[0] and "binds" not in lines[0] and " 2.17MB " in lines[2]
    code, lines, _ = tinynet(capsys, "suggest", "--params", "5M", "--space", "ghostnet_a", "--json")
    (row,) = json.loads("\n".join(lines))
    assert row["space"] == "ghostnet_a" and row["params"] <= 5e6 and row["binding"] == ["params"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e6", 2e6),
        ("1.5M", 1.5e6),
        ("1.5mb", 1.5e6),
        ("0.5GB", 5e8),
        ("2048KiB", 2**21),
        ("3Mi", 3 * 2**20),
    ],
)
def test_numbers_on_the_command_line(
    capsys: pytest.CaptureFixture[str], text: str, value: float
) -> None:
    code, lines, _ = tinynet(capsys, "suggest", "--activation-bytes", text, "--json")
    assert code == 0 and json.loads("\n".join(lines))[0]["limits"] == {"activation_bytes": value}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["suggest"], "no budget given"),
        (
            ["suggest", "--params", "few"],
            "--params 'few' is not a valid number: expected a number such as 2e6, 1.5M or 4.1B",
        ),
        (["suggest", "--activation-bytes", "-5"], "--activation-bytes '-5' is not a valid number"),
        (["suggest", "--macs", "1.2.3"], "is not a valid number"),
        (["suggest", "--macs", "5i"], "is not a valid number"),
        (["suggest", "--macs", "1e999"], "macs = inf is not a valid limit"),
        (["suggest", "--params", "0"], "is not a valid limit"),
        (["suggest", "0.25", "2", "--params", "2M"], "c = 2.0 is not a valid budget"),
        (["suggest", "--params", "1e5"], "raise params"),
    ],
)
def test_command_rejects_invalid_limits_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, lines, err = tinynet(capsys, *arguments)
    assert (code, lines, err.count("\n")) == (2, [], 1) and words in err
