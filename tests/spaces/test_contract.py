"""Every built-in space keeps the contract, random twists of three are counted one by one, and wrong spaces are caught."""

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
# What fills weights, or changes no shape and multiplies nothing: left out, a module is counted in half the time.
IDLE: set[Any] = {
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
def test_built_in_spaces_keep_the_contract(name: str, check: str) -> None:
    getattr(CONTRACTS[name](), check)()


class _Idle(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in IDLE:
            return args[0] if args else next(iter(kwargs.values()))
        return func(*args, **(kwargs or {}))


class _Untracked(nullcontext[None]):
    """All FLOPs are counted together, not for each module."""

    parents = ("Global",)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules that are only counted, at half the price."""
    monkeypatch.setattr(flop_counter, "ModuleTracker", _Untracked)
    # They leave few cycles behind, and for those the collector would look at everything else again and again.
    gc.disable()
    with _Idle():
        yield
    gc.enable()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet50", "ghostnet_a"])
def test_500_random_twists(name: str) -> None:
    """Multiply-adds as torch's FlopCounterMode counts the module's, its parameters, and what its convolutions write."""
    space = get_space(name)
    low, high = np.array([space.ranges[key] for key in "rdw"]).T
    for r, d, w in low + (high - low) * np.random.default_rng(500).random((500, 3)):
        network = space.network((r, d, w))
        assert counted(network) == (network.macs, network.params, network.activations), network.rdw


class _Mini(EfficientNetSpace):
    """A good space to make wrong ones of."""

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


class _OneParameterMore(_Mini):
    def cost(self, shape: Shape, num_classes: int) -> Cost:
        cost = super().cost(shape, num_classes)
        return cost._replace(params=cost.params + 1)


class _WritesLess(_Mini):
    def cost(self, shape: Shape, num_classes: int) -> Cost:
        cost = super().cost(shape, num_classes)
        return cost._replace(activations=cost.activations - shape.head)


class _NoShortcut(_Mini):
    def cost(self, shape: Shape, num_classes: int) -> Cost:
        cost = super().cost(shape, num_classes)
        return cost._replace(peak=cost.peak - shape.channels[0])


class _ThinnerWhenWide(_Mini):
    def decode(self, r: Any, d: Any, w: Any) -> Shape:
        return super().decode(
            r, d, np.minimum(w, 1.8 / w) if isinstance(w, np.ndarray) else min(w, 1.8 / w)
        )


class _OtherInArrays(_Mini):
    def count(self, shape: Shape, num_classes: int) -> Any:
        return super().count(shape, num_classes) + isinstance(shape.resolution, np.ndarray)


class _ForgetsDepth(_Mini):
    def describe(self, shape: Shape) -> str:
        return f"{shape.resolution}px-{shape.channels}-{shape.head}"


class _Tuples(_Mini):
    def details(self, shape: Shape) -> Mapping[str, Any]:
        return {"channels": shape.channels}


class _NearestPixels(_Mini):
    def pixels(self, r: Any) -> Any:
        return (
            np.rint(self.base_resolution * r)
            if isinstance(r, np.ndarray)
            else round(self.base_resolution * r)
        )


class _TakesAnything(_Mini):
    def network(self, rdw: tuple[float, float, float], num_classes: int | None = None) -> Network:
        return super().network(
            rdw if all(0.01 <= value <= 64 for value in rdw) else (1.0, 1.0, 1.0), num_classes
        )


class _NoDropPath(_Mini):
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


class _OneFit(_Mini):
    def nearest_width(
        self, c: float, r: float, d: float, num_classes: int | None = None
    ) -> Network:
        return self.network((r, d, 1.0), num_classes)


WRONG = [
    (_NoClassifier, {"test_macs_are_the_modules"}, "multiply-adds: the space says"),
    (_OneParameterMore, {"test_params_are_the_modules"}, "parameters: the space says"),
    (_WritesLess, {"test_activations_are_the_modules"}, "elements that convolutions write"),
    (_NoShortcut, {"test_peak_is_the_modules"}, "most elements alive at once"),
    (_ThinnerWhenWide, {"test_cost_never_falls"}, "multiply-adds fall from"),
    (_OtherInArrays, {"test_scalars_and_arrays_cost_the_same"}, "of arrays it says"),
    (_ForgetsDepth, {"test_a_description_names_one_shape"}, "different shapes are described as"),
    (_Tuples, {"test_details_are_json"}, "as JSON they are"),
    (_NearestPixels, {"test_pixels_come_back"}, "int(base * r + 1e-6) is"),
    (_TakesAnything, {"test_absurd_twists_are_refused"}, "a RequestError is due"),
    (_NoDropPath, {"test_build_takes_both_drop_rates"}, "unknown build option 'path'"),
    (_FrozenStem, {"test_a_training_step_reaches_every_parameter"}, "conv_stem.weight"),
    (_OneFit, {"test_widths_are_solved"}, "no width meets"),
]


@pytest.mark.parametrize(
    ("wrong", "expected", "words"), WRONG, ids=[wrong.__name__.strip("_") for wrong, *_ in WRONG]
)
def test_a_wrong_space_is_caught_by_its_check(
    wrong: type[_Mini], expected: set[str], words: str
) -> None:
    """And by no other, so that the first failure names the fault."""
    contract = type(wrong.__name__, (SpaceContract,), {"space": wrong(), "twists": 1})
    said = {check: error for check in CHECKS if (error := _breach(contract(), check))}
    assert set(said) == expected
    assert all(words in text and "efficientnet_mini" in text for text in said.values())


def _breach(contract: SpaceContract, check: str) -> str:
    try:
        getattr(contract, check)()
    except Exception as error:
        return " ".join([str(error), *getattr(error, "__notes__", ())])
    return ""


def test_without_pytest() -> None:
    check_space(get_space("efficientnet_mini"), twists=1, seed=3)
    with pytest.raises(
        AssertionError,
        match=r"efficientnet_mini at r, d, w = 1, 1, 1: parameters: the space says \d+, the built module has \d+",
    ):
        check_space(_OneParameterMore(), twists=1)


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


def test_a_build_may_read_tensors() -> None:
    """There are no values on the meta device, where modules are counted."""
    check_space(_ReadsTensors(), twists=1)


def test_the_contract_itself_is_not_collected(request: pytest.FixtureRequest) -> None:
    assert not [item.nodeid for item in request.session.items if "::SpaceContract" in item.nodeid]


def test_the_contract_needs_a_space() -> None:
    with pytest.raises(TypeError, match="Forgot has no space to hold to the contract"):
        type("Forgot", (SpaceContract,), {})
    with pytest.raises(TypeError, match="give an instance"):
        check_space(_Mini)  # pyright: ignore[reportArgumentType]


class _Gate(nn.Module):
    """Element-wise operations whose inputs are views, masks and tensors of other strides."""

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True).expand_as(x) * x
        kept = torch.where(~(x > 0), gate, x.flip(1))
        return kept.transpose(2, 3).clone(memory_format=torch.contiguous_format).view(1, -1)


def test_memory_of_ordinary_networks_can_be_measured() -> None:
    from torchvision.models import shufflenet_v2_x0_5

    assert measured_peak(shufflenet_v2_x0_5(weights=None), 64) >= 3 * 64 * 64 + 24 * 32 * 32
    # The image, the mask (a byte an element), what where() and flip() gave.
    assert measured_peak(_Gate(), 32) >= 3 * 3 * 32 * 32


@pytest.mark.parametrize("d", [0.2, 0.35, 0.6])
def test_rows_that_a_shallow_stage_leaves_out_name_no_other_network(d: float) -> None:
    space = get_space("ghostnet")
    one, other = space.network((1, d, 0.3585)), space.network((1, d, 0.359))
    assert (one == other) == (one.key == other.key) == (one.params == other.params)


def test_equal_shapes_of_two_spaces_are_two_networks() -> None:
    assert get_space("ghostnet_a").baseline() != get_space("ghostnet_a_hswish").baseline()
    assert len({get_space(name).baseline() for name in list_spaces()}) == len(list_spaces())
