"""GhostNet: GhostNet-A's integers, timm's own networks, hard swish, and the edges of the rounding."""

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
    assert_a_backward_pass_reaches_every_parameter,
    assert_computes_what_timms_does,
)

ORACLES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "oracles.json").read_text()
)["ghost"]
NAMES = ["ghostnet_a", "ghostnet_a_hswish", "ghostnet"]
A, TWIN, ORIGINAL = (get_space(name) for name in NAMES)


@pytest.mark.parametrize("row", ORACLES, ids=lambda row: row["name"])
def test_golden(row: dict[str, Any]) -> None:
    network = A.baseline()
    assert (network.resolution, network.macs, network.params) == (
        row["hw"],
        row["macs"],
        row["params"],
    )


@pytest.mark.parametrize("row", ORACLES, ids=lambda row: row["name"])
def test_pooled_elements_make_up_the_papers_figure(row: dict[str, Any]) -> None:
    """The paper's 591M counts what the squeeze-excites and the last pooling read; ours count no pooling."""
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
def test_computes_what_timms_does(name: str, w: float) -> None:
    assert_computes_what_timms_does(ORIGINAL.network((1, 1, w)).build(), name)


@pytest.mark.parametrize("name", NAMES)
def test_backward_pass_reaches_every_parameter(name: str) -> None:
    assert_a_backward_pass_reaches_every_parameter(get_space(name), (0.15, 0.5, 0.3))


def test_drop_path_rises_over_the_blocks() -> None:
    module = A.network((0.15, 1, 0.2)).build(drop_path_rate=0.18)
    rates = [part.drop_prob for part in module.modules() if type(part).__name__ == "DropPath"]
    assert rates == pytest.approx([0.01 * i for i in range(1, 19)])


def test_the_twin_has_hard_swish_and_costs_the_same() -> None:
    for rdw in [(1, 1, 1), (0.6, 0.7, 0.5)]:
        plain, twin = A.network(rdw), TWIN.network(rdw)
        assert plain.shape == twin.shape and plain.macs == twin.macs and plain != twin
        assert (plain.params, plain.activations, plain.activation_bytes) == (
            twin.params,
            twin.activations,
            twin.activation_bytes,
        )
    assert _activations(A.network((0.2, 1, 0.2)).build()) == {nn.ReLU}
    assert _activations(TWIN.network((0.2, 1, 0.2)).build()) == {nn.Hardswish}


def _activations(module: nn.Module) -> set[type[nn.Module]]:
    """Kinds of activation outside the squeeze-excites, which keep ReLU."""
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


def test_the_twin_takes_the_same_weights_and_computes_something_else() -> None:
    torch.manual_seed(0)
    plain, twin = (space.network((0.2, 0.5, 0.3)).build().eval() for space in (A, TWIN))
    twin.load_state_dict(plain.state_dict())
    with torch.no_grad():
        images = torch.randn(2, 3, 48, 48)
        assert not torch.allclose(plain(images), twin(images))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [0.05, 3.0])
@pytest.mark.parametrize("w", [0.02, 0.37])
def test_edges_are_counted_as_built(name: str, d: float, w: float) -> None:
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
def test_coinciding_channels_keep_their_shortcuts(name: str) -> None:
    """The fifth stage changes the table's channels without a stride; its convolutions stay where rounding makes them equal."""
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
    """Kernels and squeeze-excites are the table's, whatever the depth: the strided blocks of 72 and 280 channels have 5."""
    module = A.network((0.2, 0.05, 0.2)).build()
    kernels = [
        getattr(part, "conv_dw").kernel_size[0]  # noqa: B009
        for part in module.modules()
        if getattr(part, "conv_dw", None) is not None
    ]
    assert kernels == [3, 5, 3, 5]
    assert sum(isinstance(part, SqueezeExcite) for part in module.modules()) == 6


def test_unknown_build_option_is_refused() -> None:
    with pytest.raises(RequestError, match="did you mean 'drop_rate'"):
        A.network((0.2, 1, 0.2)).build(droprate=0.2)
