"""EfficientNet: all golden values, and the exact cost compared with real modules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import RDW, RequestError, get_space, list_spaces
from search_spaces.networks import NETWORKS

pytestmark = pytest.mark.quick

ORACLES: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "oracles.json").read_text()
)
B0 = get_space("efficientnet_b0")
RDWS = st.tuples(*[st.floats(0.35, 2.8)] * 3)


@pytest.mark.parametrize("name", list("ABCDE"))
def test_tinynets(name: str) -> None:
    row = ORACLES["tinynet"][name]
    network = B0.network((row["r"], row["d"], row["w"]))
    assert (network.resolution, network.macs, network.params) == (
        row["hw"],
        row["macs"],
        row["params"],
    )
    assert network.details == {key: row[key] for key in ("stem", "channels", "repeats", "head")}


def test_baseline() -> None:
    baseline = B0.baseline()
    assert (baseline.macs, baseline.params, baseline.c) == (
        ORACLES["b0"]["macs"],
        ORACLES["b0"]["params"],
        1.0,
    )


@pytest.mark.parametrize("row", ORACLES["table1"], ids=lambda row: row["name"])
def test_single_dimension_shrinks(row: dict[str, Any]) -> None:
    network = B0.network((row["hw"] / 224, row["d"], row["w"]))
    assert (network.resolution, network.macs, network.params) == (
        row["hw"],
        row["macs"],
        row["params"],
    )


@pytest.mark.parametrize("row", ORACLES["inverse_giant"], ids=lambda row: f"phi={row['phi']}")
def test_inverse_giant(row: dict[str, Any]) -> None:
    network = get_space("efficientnet_b0_scaled_head").network(
        (row["hw"] / 224, row["d"], row["w"])
    )
    assert (network.resolution, network.macs, network.params) == (
        row["hw"],
        row["macs"],
        row["params"],
    )


@pytest.mark.parametrize("row", ORACLES["random_efficientnet_b0"], ids=lambda row: str(row["hw"]))
def test_random_networks(row: dict[str, Any]) -> None:
    network = B0.network((row["r"], row["d"], row["w"]))
    assert (network.resolution, network.macs, network.params) == (
        row["hw"],
        row["macs"],
        row["params"],
    )


@pytest.mark.parametrize(
    "space", ["efficientnet_b0", "efficientnet_mini", "efficientnet_b0_scaled_head"]
)
@pytest.mark.parametrize("rdw", [(0.475, 0.6, 0.51), (0.36, 1.7, 0.36), (0.5, 0.35, 1.3)])
def test_cost_matches_the_module(space: str, rdw: tuple[float, float, float]) -> None:
    network = get_space(space).network(rdw, num_classes=17)
    module = network.build(drop_rate=0.2).eval()
    written: list[int] = []
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _m, _i, out: written.append(out.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = module(torch.zeros(1, 3, network.resolution, network.resolution))
    assert out.shape == (1, 17)
    assert counter.get_total_flops() == 2 * network.macs
    assert sum(p.numel() for p in module.parameters()) == network.params
    assert sum(written) == network.activations


@pytest.mark.parametrize("letter", list("abcde"))
def test_parameter_names_match_timm(letter: str) -> None:
    import timm

    state = NETWORKS[f"tinynet_{letter}"].network().build().state_dict()
    reference = timm.create_model(f"tinynet_{letter}").state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in reference.items()}


def test_every_parameter_gets_a_gradient() -> None:
    module = get_space("efficientnet_mini").network((1, 1, 1)).build()
    module(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@given(RDWS)
@settings(max_examples=60, deadline=None)
def test_arrays_and_scalars_cost_the_same(rdw: tuple[float, float, float]) -> None:
    r, d, w = (np.array([v]) for v in rdw)
    for name in list_spaces():
        space = get_space(name)
        assert space.macs(r, d, w)[0] == space.network(rdw).macs


@given(RDWS, st.floats(0, 0.5))
@settings(max_examples=100, deadline=None)
def test_macs_never_decrease_in_width_or_pixels(
    rdw: tuple[float, float, float], increase: float
) -> None:
    r, d, w = rdw
    assert B0.macs(r, d, w + increase) >= B0.macs(r, d, w)
    assert B0.macs(r + increase, d, w) >= B0.macs(r, d, w)


@given(st.floats(0.08, 1.0), st.floats(0.4, 1.5), st.floats(0.4, 1.6))
@settings(max_examples=80, deadline=None)
def test_solved_width_meets_the_budget(c: float, r: float, d: float) -> None:
    try:
        network = B0.solve_width(c, r, d)
    except RequestError:
        # Allowed only if even the narrowest network at the lowest resolution nearby is over budget.
        assert B0.network((r * 0.75, d, 0.05)).c > c * 0.97
        return
    assert abs(network.c - c) <= 0.03 * c
    assert B0.network(network.rdw) == network


def test_pixels_round_trip() -> None:
    assert all(B0.pixels(p / 224) == p for p in range(1, 700))


@pytest.mark.parametrize(
    "rdw", [(0, 1, 1), (1, -1, 1), (1, 1, float("nan")), (1, 1, 1e9), (float("inf"), 1, 1)]
)
def test_invalid_multipliers_raise(rdw: tuple[float, float, float]) -> None:
    with pytest.raises(RequestError, match="is not a valid multiplier"):
        B0.network(rdw)


def test_networks_keep_unrounded_multipliers() -> None:
    assert B0.network((0.8601, 1.0, 1.0)).rdw == RDW(0.8601, 1.0, 1.0)
    assert B0.network((0.8601, 1.0, 1.0)) == B0.network((0.86, 1.0, 1.0))


def test_unknown_space_suggests_the_closest() -> None:
    with pytest.raises(RequestError, match="did you mean 'efficientnet_b0'"):
        get_space("efficientnet_bo")
    with pytest.raises(RequestError, match="cannot be loaded"):
        get_space("no_such_module:Space")


def test_unknown_build_option_raises() -> None:
    with pytest.raises(RequestError, match="did you mean 'drop_rate'"):
        B0.network((0.5, 0.5, 0.5)).build(droprate=0.2)
