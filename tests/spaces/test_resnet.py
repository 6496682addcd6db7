"""ResNet: all golden values, timm's networks, and the limits of the rounding."""

import json
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError, get_space
from search_spaces.measured import counted
from tests.spaces.helpers import (
    assert_every_parameter_gets_a_gradient,
    assert_matches_timm,
)

pytestmark = pytest.mark.quick

ORACLES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "oracles.json").read_text()
)["resnet"]
NAMES = [row["name"] for row in ORACLES]


@pytest.mark.parametrize("row", ORACLES, ids=NAMES)
def test_golden(row: dict[str, Any]) -> None:
    network = get_space(row["name"]).baseline()
    assert (network.macs, network.params, network.c) == (row["macs"], row["params"], 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_output_matches_timm(name: str) -> None:
    assert_matches_timm(get_space(name).baseline().build(), name)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    assert_every_parameter_gets_a_gradient(get_space(name), (0.15, 0.5, 0.2))


def test_drop_path_increases_over_the_blocks() -> None:
    module = get_space("resnet50").network((0.15, 1, 0.2)).build(drop_path_rate=0.15)
    rates = [part.drop_prob for part in module.modules() if type(part).__name__ == "DropPath"]
    assert rates == pytest.approx([0.01 * i for i in range(1, 16)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [0.05, 3.0])
@pytest.mark.parametrize("w", [0.02, 0.37])
def test_extreme_networks_are_counted_as_built(name: str, d: float, w: float) -> None:
    network = get_space(name).network((0.3, d, w), num_classes=5)
    assert (network.macs, network.params, network.activations) == counted(network)


@pytest.mark.parametrize(
    ("d", "repeats"), [(0.05, [1, 1, 1, 1]), (0.5, [2, 2, 3, 2]), (3.0, [9, 12, 18, 9])]
)
def test_repeats(d: float, repeats: list[int]) -> None:
    assert get_space("resnet50").network((1, d, 1)).details["repeats"] == repeats


@pytest.mark.parametrize("name", NAMES)
def test_equal_rounded_channels_keep_projections(name: str) -> None:
    """A first block with a projection in the table keeps it even if rounding makes planes equal."""
    network = get_space(name).network((0.2, 1, 0.02))
    assert set(network.shape.planes) - {16} == {8}
    module = network.build()
    projected = [
        module.get_submodule(f"layer{stage}.0").get_parameter("downsample.0.weight").shape
        for stage in (2, 3)
    ]
    wide = 8 * (4 if name == "resnet50" else 1)
    assert [tuple(shape) for shape in projected] == [(wide, wide, 1, 1)] * 2


def test_a_basic_first_stage_has_no_projection() -> None:
    first = {
        name: get_space(name).network((0.2, 1, 0.3)).build().get_submodule("layer1.0")
        for name in NAMES
    }
    projected = [name for name, block in first.items() if getattr(block, "downsample") is not None]  # noqa: B009
    assert projected == ["resnet50"]


def test_unknown_build_option_raises() -> None:
    with pytest.raises(RequestError, match="did you mean 'drop_rate'"):
        get_space("resnet18").network((0.2, 1, 0.2)).build(droprate=0.2)
