"""Every built-in space passes the contract, and incorrect spaces fail the expected check.

A slow test also counts 500 random networks of each of three spaces one by one.
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import flop_counter

from search_spaces import Cost, Network, get_space, list_spaces
from search_spaces.efficientnet import TABLES, EfficientNetSpace, Shape
from search_spaces.testing import SpaceContract, check_space, counted, measured_peak

CHECKS = [name for name in vars(SpaceContract) if name.startswith("test_")]
CONTRACTS = {
    name: type(name, (SpaceContract,), {"space": get_space(name), "twists": 2})
    for name in list_spaces()
}
# Functions that fill weights, or that neither change a shape nor multiply. Skipping them halves the
# time to count a module.
SKIPPED_FUNCTIONS: set[Any] = {
    *(
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_,
        Tensor.normal_,
        Tensor.fill_,
        Tensor.zero_,
    ),
    *(
        functional.batch_norm,
        functional.relu,
        functional.silu,
        functional.hardsigmoid,
        torch.sigmoid,
        Tensor.sigmoid,
    ),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", list_spaces())
def test_built_in_spaces_pass_the_contract(name: str, check: str) -> None:
    getattr(CONTRACTS[name](), check)()


class _SkipFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SKIPPED_FUNCTIONS:
            return args[0] if args else next(iter(kwargs.values()))
        return func(*args, **(kwargs or {}))


class _NoModuleTracker(nullcontext[None]):
    """Counts all FLOPs together instead of per module."""

    parents = ("Global",)


@pytest.fixture
def fast_counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Halve the time to count modules."""
    monkeypatch.setattr(flop_counter, "ModuleTracker", _NoModuleTracker)
    # The modules leave few reference cycles, but the garbage collector would repeatedly scan all
    # other objects.
    gc.disable()
    with _SkipFunctions():
        yield
    gc.enable()


@pytest.mark.slow
@pytest.mark.usefixtures("fast_counting")
@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet50", "ghostnet_a"])
def test_500_random_networks(name: str) -> None:
    """Compares FLOPs by FlopCounterMode, parameters, and elements written by convolutions."""
    space = get_space(name)
    low, high = np.array([space.ranges[key] for key in "rdw"]).T
    for r, d, w in low + (high - low) * np.random.default_rng(500).random((500, 3)):
        network = space.network((r, d, w))
        assert counted(network) == (network.macs, network.params, network.activations), network.rdw


class _Mini(EfficientNetSpace):
    """A correct space, the base of the incorrect ones."""

    ranges: Mapping[str, tuple[float, float]] = {
        "r": (0.52, 1.52),
        "d": (0.4, 1.2),
        "w": (0.5, 1.9),
    }

    def __init__(self) -> None:
        super().__init__(TABLES["efficientnet_mini"])


class _NoClassifier(_Mini):
    def count(self, shape: Shape, num_classes: int) -> Any:
        return super().count(shape, num_classes) - shape.head * num_classes


class _ExtraParameter(_Mini):
    def cost(self, shape: Shape, num_classes: int) -> Cost:
        cost = super().cost(shape, num_classes)
        return cost._replace(params=cost.params + 1)


class _FewerActivations(_Mini):
    def cost(self, shape: Shape, num_classes: int) -> Cost:
        cost = super().cost(shape, num_classes)
        return cost._replace(activations=cost.activations - shape.head)


class _LowerPeak(_Mini):
    def cost(self, shape: Shape, num_classes: int) -> Cost:
        cost = super().cost(shape, num_classes)
        return cost._replace(peak=cost.peak - shape.channels[0])


class _NarrowerWhenWide(_Mini):
    def decode(self, r: Any, d: Any, w: Any) -> Shape:
        return super().decode(
            r, d, np.minimum(w, 1.8 / w) if isinstance(w, np.ndarray) else min(w, 1.8 / w)
        )


class _ArraysDiffer(_Mini):
    def count(self, shape: Shape, num_classes: int) -> Any:
        return super().count(shape, num_classes) + isinstance(shape.resolution, np.ndarray)


class _DescribeOmitsDepth(_Mini):
    def describe(self, shape: Shape) -> str:
        return f"{shape.resolution}px-{shape.channels}-{shape.head}"


class _TuplesInDetails(_Mini):
    def details(self, shape: Shape) -> Mapping[str, Any]:
        return {"channels": shape.channels}


class _RoundsPixels(_Mini):
    def pixels(self, r: Any) -> Any:
        return (
            np.rint(self.base_resolution * r)
            if isinstance(r, np.ndarray)
            else round(self.base_resolution * r)
        )


class _AcceptsAnyMultipliers(_Mini):
    def network(self, rdw: tuple[float, float, float], num_classes: int | None = None) -> Network:
        return super().network(
            rdw if all(0.01 <= value <= 64 for value in rdw) else (1.0, 1.0, 1.0), num_classes
        )


class _RejectsDropPath(_Mini):
    def build(self, network: Network, *, drop_rate: float = 0.0, **options: Any) -> nn.Module:
        return super().build(
            network,
            drop_rate=drop_rate,
            **{"path" if key == "drop_path_rate" else key: 0.0 for key in options},
        )


class _FrozenStem(_Mini):
    def build(
        self,
        network: Network,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> nn.Module:
        module = super().build(
            network, drop_rate=drop_rate, drop_path_rate=drop_path_rate, **options
        )
        module.get_parameter("conv_stem.weight").requires_grad_(False)
        return module


class _FixedWidth(_Mini):
    def nearest_width(
        self, c: float, r: float, d: float, num_classes: int | None = None
    ) -> Network:
        return self.network((r, d, 1.0), num_classes)


INCORRECT_SPACES = [
    (_NoClassifier, "test_macs_match_module", "multiply-adds: the space reports"),
    (_ExtraParameter, "test_params_match_module", "parameters: the space reports"),
    (_FewerActivations, "test_activations_match_module", "elements written by convolutions"),
    (_LowerPeak, "test_peak_matches_module", "peak of live elements"),
    (_NarrowerWhenWide, "test_macs_never_decrease", "multiply-adds decrease from"),
    (_ArraysDiffer, "test_scalars_and_arrays_cost_the_same", "for arrays it reports"),
    (_DescribeOmitsDepth, "test_describe_is_unique_per_shape", "different shapes are described as"),
    (_TuplesInDetails, "test_details_are_json", "after a JSON round trip they are"),
    (_RoundsPixels, "test_pixels_round_trip", "int(base * r + 1e-6) is"),
    (_AcceptsAnyMultipliers, "test_invalid_requests_raise", "expected a RequestError"),
    (_RejectsDropPath, "test_build_accepts_both_drop_rates", "unknown build option 'path'"),
    (_FrozenStem, "test_every_parameter_gets_a_gradient", "conv_stem.weight"),
    (_FixedWidth, "test_solve_width_meets_budgets", "no width meets"),
]


@pytest.mark.parametrize(
    ("space", "expected", "message"),
    INCORRECT_SPACES,
    ids=[space.__name__.strip("_") for space, *_ in INCORRECT_SPACES],
)
def test_incorrect_space_fails_only_the_expected_check(
    space: type[_Mini], expected: str, message: str
) -> None:
    """The first failure then identifies the error."""
    contract = type(space.__name__, (SpaceContract,), {"space": space(), "twists": 1})
    errors = {check: error for check in CHECKS if (error := _error_of(contract(), check))}
    assert set(errors) == {expected}
    assert message in errors[expected]
    assert "efficientnet_mini" in errors[expected]


def _error_of(contract: SpaceContract, check: str) -> str:
    try:
        getattr(contract, check)()
    except Exception as error:
        return " ".join([str(error), *getattr(error, "__notes__", ())])
    return ""


def test_check_space_without_pytest() -> None:
    check_space(get_space("efficientnet_mini"), twists=1, seed=3)
    with pytest.raises(
        AssertionError,
        match=r"efficientnet_mini at r, d, w = 1, 1, 1: "
        r"parameters: the space reports \d+, the built module has \d+",
    ):
        check_space(_ExtraParameter(), twists=1)


class _ReadsTensors(_Mini):
    def build(
        self,
        network: Network,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> nn.Module:
        rate = torch.linspace(0.0, drop_path_rate, 2).tolist()[-1]
        return super().build(network, drop_rate=drop_rate, drop_path_rate=rate, **options)


def test_build_may_read_tensor_values() -> None:
    """Tensors on the meta device, where modules are counted, have no values."""
    check_space(_ReadsTensors(), twists=1)


def test_contract_base_class_is_not_collected(request: pytest.FixtureRequest) -> None:
    assert not [item.nodeid for item in request.session.items if "::SpaceContract" in item.nodeid]


def test_contract_needs_a_space() -> None:
    with pytest.raises(TypeError, match="NoSpace has no space to check"):
        type("NoSpace", (SpaceContract,), {})
    with pytest.raises(TypeError, match="pass an instance"):
        check_space(_Mini)  # pyright: ignore[reportArgumentType]


class _Gate(nn.Module):
    """Element-wise operations on views, masks and tensors with different strides."""

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True).expand_as(x) * x
        kept = torch.where(~(x > 0), gate, x.flip(1))
        return kept.transpose(2, 3).clone(memory_format=torch.contiguous_format).view(1, -1)


def test_memory_of_other_networks_can_be_measured() -> None:
    from torchvision.models import shufflenet_v2_x0_5

    assert measured_peak(shufflenet_v2_x0_5(weights=None), 64) >= 3 * 64 * 64 + 24 * 32 * 32
    # The image, the mask (one byte per element), and the results of where() and flip().
    assert measured_peak(_Gate(), 32) >= 3 * 3 * 32 * 32


@pytest.mark.parametrize("d", [0.2, 0.35, 0.6])
def test_rows_omitted_by_a_shallow_stage_do_not_change_the_key(d: float) -> None:
    space = get_space("ghostnet")
    one, other = space.network((1, d, 0.3585)), space.network((1, d, 0.359))
    assert (one == other) == (one.key == other.key) == (one.params == other.params)


def test_equal_shapes_of_two_spaces_are_different_networks() -> None:
    assert get_space("ghostnet_a").baseline() != get_space("ghostnet_a_hswish").baseline()
    assert len({get_space(name).baseline() for name in list_spaces()}) == len(list_spaces())
