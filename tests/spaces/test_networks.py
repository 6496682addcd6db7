"""Named networks: the paper's figures, the rules of the fitted rows, and all golden values."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search_spaces import Network, get_space
from search_spaces.networks import NETWORKS, NamedNetwork, get_named
from search_spaces.paper_tables import (
    NAMES,
    TABLES,
    architecture,
    check_table,
    meets,
    parse_figure,
    percent_off,
    row_of,
)
from tinynet_search.formula.baselines import inverse_giant
from tinynet_search.formula.digits import format_rdw
from tinynet_search.formula.tiny_formula import TinyFormula

ORACLES: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "oracles.json").read_text()
)
# Maps each section of the golden file to the space of a row. A missing section fails the test.
SPACES: dict[str, Callable[[dict[str, Any]], str]] = {
    "tinynet": lambda row: "efficientnet_b0",
    "b0": lambda row: "efficientnet_b0",
    "table1": lambda row: "efficientnet_b0",
    "inverse_giant": lambda row: "efficientnet_b0_scaled_head",
    "resnet": lambda row: row["name"],
    "ghost": lambda row: row["name"].lower().replace("-", "_"),
    "random_efficientnet_b0": lambda row: "efficientnet_b0",
}
DETAILS = ("stem", "channels", "repeats", "head")
# Keys of inputs and of facts about the paper. test_ghostnet.py checks the pooled elements.
UNCHECKED_KEYS = {"name", "r", "d", "w", "phi", "rdw_published", "se_and_final_pool_elems"}
# Baselines of the rows that were fitted from the published tiny formula.
FITTED = {
    "resnet50_a": "resnet50",
    "resnet50_b": "resnet50",
    "ghostnet_b": "ghostnet_a",
    "ghostnet_c": "ghostnet_a",
    "ghostnet_d": "ghostnet_a",
}
# Rows that follow EfficientNet's rule.
GIANTS = ("resnet50_giant_a", "resnet50_giant_b")
# Table 7 as the paper prints it: size, channels, operator, expansion, output, squeeze-excite,
# stride, repeats.
TABLE7 = """
240 3 Conv3×3 - 28 - 2 1
120 28 G-bneck 1 28 1 1 1
120 28 G-bneck 3 44 1 2 1
60 44 G-bneck 3 44 1 1 1
60 44 G-bneck 3 72 1 2 1
30 72 G-bneck 3 72 1 1 2
30 72 G-bneck 6 140 1 2 1
15 140 G-bneck 2.5 140 1 1 3
15 140 G-bneck 6 196 1 1 3
15 196 G-bneck 6 280 1 2 1
8 280 G-bneck 6 280 1 1 5
8 280 Conv1×1 - 1680 - 1 1
8 1680 Pooling - - - - 1
1 1680 Conv1×1 - 1400 - 1 1
1 1400 FC - 1000 - - 1
"""


def golden_rows() -> Iterator[Any]:
    for section in [key for key in ORACLES if key != "convention"]:
        content = ORACLES[section]
        if isinstance(content, list):
            rows = content
        elif "macs" in content:
            rows = [content]
        else:
            rows = content.values()
        for i, row in enumerate(rows):
            yield pytest.param(section, row, id=f"{section}-{i}")


@pytest.mark.parametrize(("section", "row"), list(golden_rows()))
def test_golden_values(section: str, row: dict[str, Any]) -> None:
    space = get_space(SPACES[section](row))
    size = row.get("hw", space.base_resolution)
    network = space.network(
        (row.get("r", size / space.base_resolution), row.get("d", 1), row.get("w", 1))
    )
    assert (network.resolution, network.macs, network.params) == (size, row["macs"], row["params"])
    details = {key for key in DETAILS if not isinstance(row.get(key, ""), str)}
    assert {key: network.details[key] for key in details} == {key: row[key] for key in details}
    assert {key for key in row if not key.startswith("paper")} <= UNCHECKED_KEYS | {
        *DETAILS,
        "hw",
        "macs",
        "params",
    }


@pytest.mark.parametrize("row", NETWORKS.values(), ids=lambda row: row.name)
def test_source_is_consistent_with_the_figures(row: NamedNetwork) -> None:
    network = row.network()
    params_met = row.paper_params is not None and meets(row.paper_params, network.params)
    assert meets(row.paper_flops, network.macs)
    if row.source == "published":
        assert params_met or row.paper_params is None
    else:
        assert row.source == ("inferred" if params_met else "ours")


def nearest(row: NamedNetwork, baseline: NamedNetwork) -> Network:
    """Apply the rule of ``search_spaces.networks`` for fitted rows.

    r and d come from the formula, then the width and the pixels are chosen to be nearest to the
    paper's FLOPs. Among pixels with equal FLOPs, those nearer to the printed params are preferred,
    then those nearer to the formula's.
    """
    space, flops = get_space(row.space), parse_figure(row.paper_flops)
    predicted = TinyFormula.load("published").predict(flops / parse_figure(baseline.paper_flops))
    r, d = predicted.r_mean, predicted.d_mean
    w = space.nearest_width(flops / space.baseline_macs(), r, d).rdw.w
    params, predicted_pixels = parse_figure(row.paper_params or "0M"), space.pixels(r)
    candidates = [
        space.network((pixels / space.base_resolution, d, w))
        for pixels in range(predicted_pixels // 2, predicted_pixels * 2)
    ]
    return min(
        candidates,
        key=lambda n: (
            abs(n.macs - flops),
            abs(n.params - params),
            abs(n.resolution - predicted_pixels),
        ),
    )


@pytest.mark.parametrize("name", FITTED)
def test_fitted_rows_follow_from_the_published_formula(name: str) -> None:
    assert NETWORKS[name].network() == nearest(NETWORKS[name], NETWORKS[FITTED[name]])


@pytest.mark.parametrize("name", GIANTS)
def test_giant_rows_follow_from_efficientnets_rule(name: str) -> None:
    row, space = NETWORKS[name], get_space("resnet50")
    assert row.network() == inverse_giant(
        space, parse_figure(row.paper_flops) / parse_figure(NETWORKS["resnet50"].paper_flops)
    )


def test_every_row_with_source_ours_has_a_rule() -> None:
    names = {row.name.removesuffix("_hswish") for row in NETWORKS.values() if row.source == "ours"}
    assert names == {*FITTED, *GIANTS}


@pytest.mark.parametrize("name", ["ghostnet_a", "ghostnet_b", "ghostnet_c", "ghostnet_d"])
def test_hard_swish_variants_cost_the_same(name: str) -> None:
    plain, hard_swish = get_named(name).network(), get_named(f"{name}_hswish").network()
    assert (hard_swish.shape, hard_swish.macs) == (plain.shape, plain.macs)
    assert hard_swish.space.name == "ghostnet_a_hswish"
    assert (hard_swish.params, hard_swish.activation_bytes) == (
        plain.params,
        plain.activation_bytes,
    )


def test_tables_and_networks_have_the_same_names() -> None:
    names = {row.network for table in TABLES.values() for row in table.rows if row.network}
    assert names == set(NETWORKS)


def test_tables_keep_their_own_figures() -> None:
    """Table 1 rounds differently from table 3: two of its figures do not match the exact count."""
    rows = [
        (name, row)
        for name, table in TABLES.items()
        for row in table.rows
        if row.network and row.flops
    ]
    missed = {
        (name, row.network)
        for name, row in rows
        if not meets(row.flops or "", NETWORKS[row.network or ""].network().macs)
    }
    assert missed == {("table1", "efficientnet_b-2"), ("table1", "tinynet_c")}
    assert (row_of("tinynet_c").flops, row_of("efficientnet_b-1").flops) == ("100M", "201M")


@pytest.mark.parametrize(
    ("printed", "exact", "met"),
    [
        ("24M", 24.5e6, True),
        ("24M", 24.51e6, False),
        ("4.1B", 4.05e9, True),
        ("3.6B", 3.66e9, False),
        ("387M", 383.2e6, True),
        ("387M", 383.0e6, False),
        ("5.0M", 5.05e6, True),
        ("5.0M", 5.06e6, False),
    ],
)
def test_tolerance_is_half_a_digit_or_one_percent(printed: str, exact: float, met: bool) -> None:
    assert meets(printed, exact) is met


def test_percent_off_is_relative_to_the_papers_figure() -> None:
    assert percent_off("100M", 99e6) == pytest.approx(-1)


def test_table7_matches_the_stage_list() -> None:
    def text(figure: float | str | None) -> str:
        if figure is None:
            return "-"
        if isinstance(figure, float | int):
            return f"{figure:g}"
        return figure.replace(" ", "")

    rows = [
        " ".join(text(("-", 1)[value] if isinstance(value, bool) else value) for value in layer)
        for layer in architecture()
    ]
    assert rows == TABLE7.strip().split("\n")


def test_table7_matches_the_counted_network() -> None:
    network, layers = get_named("ghostnet_a").network(), architecture()
    outputs = [
        layer.out for layer in layers if layer.operator == "G-bneck" for _ in range(layer.repeats)
    ]
    shape = network.shape
    assert outputs == [
        channels
        for channels, repeats in zip(shape.channels, shape.repeats, strict=True)
        for _ in range(repeats)
    ]
    assert (layers[0].out, layers[-4].out, layers[0].size) == (
        shape.stem,
        shape.head,
        network.resolution,
    )


def test_unknown_tables() -> None:
    for name in NAMES:
        check_table(name)
    with pytest.raises(ValueError, match="pass table1, table2, table3, table6 or table7"):
        check_table("table8")


@pytest.mark.parametrize("name", NETWORKS)
def test_printed_multipliers_reproduce_the_network(name: str) -> None:
    network = NETWORKS[name].network()
    r, d, w = (float(f"{float(text):g}") for text in format_rdw(network))
    assert network.space.network((r, d, w)) == network
