"""GhostNet: golden values of GhostNet-A, timm's networks, hard swish, limits of the rounding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from search_spaces import RequestError, get_space
from search_spaces.measured import counted
from tests.spaces.helpers import (
    assert_every_parameter_gets_a_gradient,
    assert_matches_timm,
)

ORACLES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "oracles.json").read_text()
)["ghost"]
NAMES = ["ghostnet_a", "ghostnet_a_hswish", "ghostnet"]
A, HARD_SWISH, ORIGINAL = (get_space(name) for name in NAMES)


@pytest.mark.parametrize("row", ORACLES, ids=lambda row: row["name"])
def test_golden(row: dict[str, Any]) -> None:
    network = A.baseline()
    assert (network.resolution, network.macs, network.params) == (
        row["hw"],
        row["macs"],
        row["params"],
    )


@pytest.mark.parametrize("row", ORACLES, ids=lambda row: row["name"])
def test_pooled_elements_explain_the_papers_figure(row: dict[str, Any]) -> None:
    """The paper's 591M includes the elements read by squeeze-excites and the last pooling.

    Our multiply-adds do not include pooling.
    """
    network, pooled = A.baseline(), []
    with torch.device("meta"), torch.no_grad():
        module = network.build().eval()
        for layer in module.modules():
            if isinstance(layer, SqueezeExcite) or layer is module.get_submodule("global_pool"):
                layer.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0].numel()))
        module(torch.zeros(1, 3, network.resolution, network.resolution))
    assert sum(pooled) == row["se_and_final_pool_elems"]
    assert round((network.macs + sum(pooled)) / 1e6) == row["paper"][1]


@pytest.mark.parametrize(
    ("name", "w"), [("ghostnet_050", 0.5), ("ghostnet_100", 1.0), ("ghostnet_130", 1.3)]
)
def test_output_matches_timm(name: str, w: float) -> None:
    assert_matches_timm(ORIGINAL.network((1, 1, w)).build(), name)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    assert_every_parameter_gets_a_gradient(get_space(name), (0.15, 0.5, 0.3))


def test_drop_path_increases_over_the_blocks() -> None:
    module = A.network((0.15, 1, 0.2)).build(drop_path_rate=0.18)
    rates = [part.drop_prob for part in module.modules() if type(part).__name__ == "DropPath"]
    assert rates == pytest.approx([0.01 * i for i in range(1, 19)])


def test_hard_swish_variant_costs_the_same() -> None:
    for rdw in [(1, 1, 1), (0.6, 0.7, 0.5)]:
        plain, hard_swish = A.network(rdw), HARD_SWISH.network(rdw)
        assert plain.shape == hard_swish.shape
        assert plain.macs == hard_swish.macs
        assert plain != hard_swish
        assert (plain.params, plain.activations, plain.activation_bytes) == (
            hard_swish.params,
            hard_swish.activations,
            hard_swish.activation_bytes,
        )
    assert _activation_types(A.network((0.2, 1, 0.2)).build()) == {nn.ReLU}
    assert _activation_types(HARD_SWISH.network((0.2, 1, 0.2)).build()) == {nn.Hardswish}


def _activation_types(module: nn.Module) -> set[type[nn.Module]]:
    """Return the types of activation outside the squeeze-excites, which keep ReLU."""
    inside = {
        part
        for block in module.modules()
        if isinstance(block, SqueezeExcite)
        for part in block.modules()
    }
    return {
        type(part)
        for part in module.modules()
        if isinstance(part, nn.ReLU | nn.Hardswish) and part not in inside
    }


def test_hard_swish_variant_accepts_the_same_weights_but_differs_in_output() -> None:
    torch.manual_seed(0)
    plain, hard_swish = (space.network((0.2, 0.5, 0.3)).build().eval() for space in (A, HARD_SWISH))
    hard_swish.load_state_dict(plain.state_dict())
    with torch.no_grad():
        images = torch.randn(2, 3, 48, 48)
        assert not torch.allclose(plain(images), hard_swish(images))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [0.05, 3.0])
@pytest.mark.parametrize("w", [0.02, 0.37])
def test_extreme_networks_are_counted_as_built(name: str, d: float, w: float) -> None:
    network = get_space(name).network((0.3, d, w), num_classes=5)
    assert (network.macs, network.params, network.activations) == counted(network)


@pytest.mark.parametrize(
    ("d", "repeats"),
    [
        (0.05, [1, 1, 1, 1, 1, 1]),
        (0.5, [1, 1, 2, 2, 2, 3]),
        (1.0, [1, 2, 3, 4, 3, 6]),
        (3.0, [3, 6, 9, 12, 9, 18]),
    ],
)
def test_repeats(d: float, repeats: list[int]) -> None:
    assert A.network((1, d, 1)).details["repeats"] == repeats


@pytest.mark.parametrize("name", NAMES)
def test_equal_rounded_channels_keep_shortcut_convolutions(name: str) -> None:
    """The fifth stage changes the table's channels without a stride.

    Its shortcut keeps its convolutions even if rounding makes the channels equal.
    """
    network = get_space(name).network((0.2, 0.05, 0.02))
    assert set(network.shape.channels[3:5]) == {4}
    blocks = [
        block for block in network.build().modules() if type(block).__name__ == "GhostBottleneck"
    ]
    assert [len(list(block.get_submodule("shortcut").children())) for block in blocks] == [
        0,
        4,
        4,
        4,
        4,
        4,
    ]


def test_a_shallow_stage_keeps_its_first_rows() -> None:
    """Kernels and squeeze-excites follow the table at any depth.

    The strided blocks of 72 and 280 channels have kernel 5.
    """
    module = A.network((0.2, 0.05, 0.2)).build()
    kernels = [
        getattr(part, "conv_dw").kernel_size[0]  # noqa: B009
        for part in module.modules()
        if getattr(part, "conv_dw", None) is not None
    ]
    assert kernels == [3, 5, 3, 5]
    assert sum(isinstance(part, SqueezeExcite) for part in module.modules()) == 6


def test_unknown_build_option_raises() -> None:
    with pytest.raises(RequestError, match="did you mean 'drop_rate'"):
        A.network((0.2, 1, 0.2)).build(droprate=0.2)
