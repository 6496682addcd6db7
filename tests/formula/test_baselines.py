"""Tests of the baseline rules (section 4.2, Table 1): recomputed exact counts, and underflow."""

import json
import math
from collections.abc import Iterable

import pytest

from search_spaces import Network, RequestError, get_space, list_spaces
from search_spaces.networks import NETWORKS
from tinynet_search.cli.main import run
from tinynet_search.formula.baselines import RULES, Baseline, baselines, inverse_giant

pytestmark = pytest.mark.quick

B0 = get_space("efficientnet_b0")
# The networks of Table 1, by budget and rule.
TABLE_1 = {
    200 / 387: {"r": "b0_r0.70", "d": "b0_d0.45", "w": "b0_w0.65"},
    100 / 387: {"r": "b0_r0.46", "w": "b0_w0.38"},
}


def by_rule(space: str, c: float) -> dict[str, Baseline]:
    return {row.rule: row for row in baselines(space, c)}


def nearest(
    rdws: Iterable[tuple[float, float, float]], budget: float, space: str = "efficientnet_b0"
) -> Network:
    return min(
        (get_space(space).network(rdw) for rdw in rdws),
        key=lambda network: abs(network.macs - budget),
    )


@pytest.mark.parametrize("c", TABLE_1)
def test_as_near_to_the_budget_as_table_1(c: float) -> None:
    budget, rows = c * B0.baseline_macs(), by_rule("efficientnet_b0", c)
    for axis, name in TABLE_1[c].items():
        network = rows[f"{axis} alone"].network
        assert network
        assert abs(network.macs - budget) <= abs(NETWORKS[name].network().macs - budget)
        assert [value for key, value in network.rdw._asdict().items() if key != axis] == [1.0, 1.0]
    if c > 0.3:
        assert rows["d alone"].network == NETWORKS["b0_d0.45"].network()


def test_depth_underflow_is_a_result() -> None:
    """The dagger in Table 1: B0 at its minimum depth still has 173M FLOPs."""
    row = by_rule("efficientnet_b0", 100 / 387)["d alone"]
    assert row == Baseline("d alone", None, "depth underflow: the shallowest network has c = 0.449")
    assert round(NETWORKS["b0_min_depth"].network().c, 3) == 0.449
    # Within 3 % of the budget, the shallowest network is used without a note.
    near = by_rule("efficientnet_b0", 0.44)["d alone"]
    assert near.network == NETWORKS["b0_min_depth"].network() and near.note is None


def test_r_and_w_underflow() -> None:
    rows = by_rule("efficientnet_b0", 0.005)
    assert str(rows["r alone"].note).startswith(
        "resolution underflow: the smallest network has c = 0.01"
    )
    assert rows["w alone"] == Baseline(
        "w alone",
        None,
        f"width underflow: the narrowest network has c = {B0.network((1, 1, 0.01)).c:.3f}",
    )
    assert "the smallest c that can be met there is " in str(rows["inverse giant"].note)


@pytest.mark.parametrize("space", list_spaces())
@pytest.mark.parametrize("c", [0.7, 0.4, 0.15])
def test_single_multipliers_match_exhaustive_search(space: str, c: float) -> None:
    target, rows = get_space(space), by_rule(space, c)
    side, budget = target.base_resolution, c * target.baseline_macs()
    axes = {
        "r": [(p / side, 1.0, 1.0) for p in range(math.ceil(side / 100), side + 1)],
        "d": [(1.0, i / 499, 1.0) for i in range(5, 500)],
        "w": [(1.0, 1.0, i / 1999) for i in range(20, 2000)],
    }
    for axis, rdws in axes.items():
        row, best = rows[f"{axis} alone"], nearest(rdws, budget, space)
        if row.network is None:
            assert "underflow" in str(row.note) and best.macs > 1.03 * budget
            continue
        if axis == "w":  # this test's grid of widths is coarser than the rule's
            assert abs(row.network.macs - budget) <= abs(best.macs - budget)
        else:
            assert row.network.macs == best.macs
        assert row.network.macs == target.network(row.network.rdw).macs
        assert (row.note is None) == (abs(row.network.c / c - 1) <= 0.03)


@pytest.mark.parametrize(
    ("phi", "flops", "over"), [(1, 245, 0.27), (2, 135, 0.40), (3, 85, 0.76), (4, 40, 0.65)]
)
def test_inverse_giant(phi: int, flops: float, over: float) -> None:
    """The pure rule exceeds the budget; the tuned rule solves the width on the exact count."""
    rows = by_rule("efficientnet_b0_scaled_head", 2**-phi)
    pure, tuned = rows["inverse giant, not tuned"].network, rows["inverse giant"].network
    assert pure and tuned
    assert pure.rdw[1:] == pytest.approx((1.2**-phi, 1.1**-phi), rel=0.01)
    assert abs(pure.macs / 1e6 - flops) < 1 and pure.c * 2**phi - 1 == pytest.approx(
        over, abs=0.005
    )
    assert rows["inverse giant, not tuned"].note == f"{pure.c * 2**phi - 1:.1%} above the budget"
    assert (
        tuned == inverse_giant(get_space("efficientnet_b0_scaled_head"), 2**-phi)
        and abs(tuned.c * 2**phi - 1) <= 0.03
    )


def test_all_rules_return_the_baseline_at_budget_one() -> None:
    for row in baselines("efficientnet_b0", 1, num_classes=10):
        assert (
            row.network
            and row.network == B0.baseline(10)
            and row.network.rdw == (1, 1, 1)
            and row.note is None
        )


def test_invalid_requests_raise_one_line() -> None:
    for space, c, classes, words in (
        ("efficientnet_b0", 0, None, "is not a valid budget"),
        ("efficientnet_b0", 1.1, None, "is not a valid budget"),
        ("efficientnet_b0", 0.5, 1, "num_classes = 1 is not valid"),
        ("efficientnet_b", 0.5, None, "did you mean"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            baselines(space, c, classes)
        assert str(caught.value).isprintable()


def test_no_rule_has_a_network_for_a_tiny_budget() -> None:
    rows = baselines("efficientnet_b0", 1e-300)
    assert all(row.network is None and row.note and row.note.isprintable() for row in rows)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["baselines", "0.5168", "0.2584"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines[2:]] == [
        "tiny formula",
        *RULES,
        "",
        "tiny formula",
        *RULES,
    ]
    assert (
        sum("depth underflow: the shallowest network has c = 0.449" in line for line in lines) == 1
    )
    assert run(["baselines", "0.25", "--space", "ghostnet_a", "--classes", "10", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["rule"] for row in rows] == ["tiny formula", *RULES]
    deep = next(row for row in rows if row["rule"] == "d alone")
    assert deep["macs"] is None and "underflow" in deep["note"]
    for row in rows:
        if row["macs"]:
            network = get_space("ghostnet_a").network((row["r"], row["d"], row["w"]), 10)
            assert all(
                row[key] == getattr(network, key)
                for key in ("macs", "params", "c", "resolution", "activation_bytes")
            )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["2"], "is not a valid budget"),
        (["0.5", "--space", "resnet"], "unknown space"),
        (["0.5", "--classes", "1"], "num_classes = 1 is not valid"),
        ([], "Missing argument 'C'"),
    ],
)
def test_command_rejects_invalid_requests_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["baselines", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and words in err


def test_command_below_the_formula(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["baselines", "0.001"]) == 0
    out, err = capsys.readouterr()
    assert "below every network of formula published" in out and err == ""
