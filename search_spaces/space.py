"""Base classes of all search spaces: (r, d, w), the network it rounds to, and the width solver.

The families in this package and custom spaces subclass ``SearchSpace``; samplers, the search and
the tiny formula use it. A space is a baseline network with ranges for the resolution r, depth d and
width w multipliers and a band of FLOPs. FLOPs are multiply-adds (``macs``) of every convolution and
linear layer at batch 1. Squeeze-excite convolutions are included; bias, normalisation, activation,
pooling and residual additions are not. They equal half of what
``torch.utils.flop_counter.FlopCounterMode`` counts on the built module.

Peak activation memory is what an inference runtime needs for feature maps at batch 1. Layers run
one after another in the built module's order, batch norm is folded into its convolution, and
activations, gates and residual additions happen in place. A tensor is freed after its last reader
has run. The input image counts; weights and the scratch space of kernels do not. An element is a
float32 of 4 bytes.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from search_spaces.errors import RequestError

if TYPE_CHECKING:
    import torch

# Valid multipliers. A value outside is a typing error: B0 at 64 x its width has 19 billion
# parameters.
RDW_LIMITS = (0.01, 64.0)
# All of ImageNet has 21,841.
MAX_CLASSES = 1_000_000
# Largest change of the requested resolution, as a fraction of it, that the width solver may make to
# meet the budget.
MAX_NUDGE = 0.25
FLOAT32_BYTES = 4
# Figures of a shape for display: whole numbers, and lists with one entry per stage (channels,
# repeats, ...).
Details = Mapping[str, int | float | str | list[int] | list[float] | list[str]]


class RDW(NamedTuple):
    """Unrounded multipliers of the baseline's resolution, depth and width (the paper's r, d, w)."""

    r: float
    d: float
    w: float


class Cost(NamedTuple):
    """Exact cost at batch 1: ints for one network, float64 arrays of equal length for many.

    Attributes:
        macs: multiply-adds.
        params: parameters.
        activations: elements written by all convolutions.
        peak: largest number of elements alive at once.
    """

    macs: Any
    params: Any
    activations: Any
    peak: Any


@dataclass(frozen=True, eq=False)
class Network:
    """One real network: (r, d, w) after rounding.

    Two networks are equal if their spaces, shapes and numbers of classes are equal.

    Attributes:
        rdw: the requested multipliers.
        resolution: side of the square input, pixels.
        shape: the family's decoded stage list; within a space, equal shapes mean equal networks.
        macs, params: multiply-adds and parameters, with the classifier for ``num_classes``.
        activations: elements written by all convolutions (the measure that tracks run time best).
        activation_bytes: peak memory of feature maps in inference at batch 1, float32 (see the
            module docstring).
        c: ``macs`` over the baseline's ``macs`` for the same number of classes.
    """

    space: "SearchSpace" = field(repr=False)
    rdw: RDW
    resolution: int
    shape: Any
    num_classes: int
    macs: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[Any, ...]:
        return self.space.name, self.space.version, self.shape, self.num_classes

    @property
    def params(self) -> int:
        return int(self._cost.params)

    @property
    def activations(self) -> int:
        return int(self._cost.activations)

    @property
    def activation_bytes(self) -> int:
        return FLOAT32_BYTES * int(self._cost.peak)

    @cached_property
    def _cost(self) -> Cost:
        return self.space.cost(self.shape, self.num_classes)

    @property
    def c(self) -> float:
        return self.macs / self.space.baseline_macs(self.num_classes)

    @property
    def key(self) -> str:
        """Identifier of the network within its space; equal keys train to equal results."""
        return f"{self.space.describe(self.shape)}-{self.num_classes}"

    @property
    def details(self) -> Details:
        """The family's own figures for display (repeats and channels per stage, ...)."""
        return self.space.details(self.shape)

    def build(self, *, pretrained: str | Path | None = None, **options: Any) -> "torch.nn.Module":
        """Build the torch module.

        Input: float tensor (batch, 3, resolution, resolution); output: logits (batch, num_classes).

        Args:
            pretrained: a .safetensors or .pth file, or the name of timm's published weights; None
                initialises at random.
            **options: the family's own options (``drop_rate=.2``, ...).

        Raises:
            RequestError: an option is unknown; the weights belong to a different network, are
                damaged or cannot be reached; or a required package is not installed.
        """
        try:
            module = self.space.build(self, **options)
            if pretrained is not None:
                from search_spaces.weights import load_weights

                load_weights(module, pretrained)
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "timm", "torchvision", "safetensors", "huggingface_hub"):
                raise
            raise RequestError(
                f"building needs {error.name}, which is not installed: "
                "install the extra 'search' (in a checkout: pip install '.[search]')"
            ) from error
        return module


class SearchSpace(ABC):
    """A baseline network and the rules that scale it by (r, d, w).

    Subclasses implement ``decode``, ``cost``, ``build`` and ``describe`` and set the attributes.

    Attributes:
        name, version: identify the space; raise the version when the same (r, d, w) means a
            different network.
        base_resolution: the baseline's input side in pixels.
        num_classes: default number of classes.
        ranges: lowest and highest r, d and w that samplers draw.
        band: lowest and highest c that a search keeps (the paper's .03 and 1.05, section 3.2).
    """

    name: str
    version: int = 1
    base_resolution: int
    num_classes: int = 1000
    ranges: Mapping[str, tuple[float, float]] = {
        "r": (0.35, 2.8),
        "d": (0.35, 2.8),
        "w": (0.35, 2.8),
    }
    band: tuple[float, float] = (0.03, 1.05)

    @abstractmethod
    def decode(self, r: Any, d: Any, w: Any) -> Any:
        """Round (r, d, w) to a real shape.

        Scalars give plain ints; arrays of equal length give arrays in the same fields.
        """

    @abstractmethod
    def cost(self, shape: Any, num_classes: int) -> Cost:
        """Return the closed-form cost of a decoded shape, scalar or array."""

    def count(self, shape: Any, num_classes: int) -> Any:
        """Return only the multiply-adds; searches need them 100 times as often as the full cost."""
        return self.cost(shape, num_classes).macs

    @abstractmethod
    def build(self, network: Network, **options: Any) -> "torch.nn.Module":
        """Build the torch module of a network of this space."""

    @abstractmethod
    def describe(self, shape: Any) -> str:
        """Return a short text that identifies a shape uniquely."""

    def details(self, shape: Any) -> Details:
        """Return the family's own figures for display, as JSON types; empty by default."""
        return {}

    def narrowed(
        self, ranges: Mapping[str, Sequence[float]], band: Sequence[float] | None = None
    ) -> Self:
        """Return a copy with some ranges of r, d, w, or the band, replaced.

        Samplers draw differently from it; the network of a given (r, d, w) stays the same.
        """
        space = copy.copy(self)
        space.ranges = {**self.ranges, **{key: (low, high) for key, (low, high) in ranges.items()}}
        if band is not None:
            low, high = band
            space.band = (low, high)
        return space

    def pixels(self, r: Any) -> Any:
        """Return int(base * r + 1e-6); the epsilon maps r = pixels / base to the same pixels."""
        return (
            np.floor(self.base_resolution * r + 1e-6)
            if isinstance(r, np.ndarray)
            else int(self.base_resolution * r + 1e-6)
        )

    def network(self, rdw: tuple[float, float, float], num_classes: int | None = None) -> Network:
        """Return the real network of (r, d, w).

        Raises:
            RequestError: a multiplier is not a number in ``RDW_LIMITS``, the number of classes is
                invalid, or the input would have no pixel.
        """
        try:
            r, d, w = (float(v) for v in rdw)
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(
                f"expected three numbers (r, d, w) such as (0.86, 1.2, 1.0), got {str(rdw)[:80]}"
            ) from error
        for label, value in (("r", r), ("d", d), ("w", w)):
            if not RDW_LIMITS[0] <= value <= RDW_LIMITS[1]:
                raise RequestError(
                    f"{label} = {value:g} is not a valid multiplier: pass a number in "
                    f"[{RDW_LIMITS[0]:g}, {RDW_LIMITS[1]:g}] (1 is the baseline)"
                )
        classes = self.num_classes if num_classes is None else num_classes
        if not isinstance(classes, (int, np.integer)) or not 2 <= classes <= MAX_CLASSES:
            raise RequestError(
                f"num_classes = {classes} is not valid: pass an integer in [2, {MAX_CLASSES}]"
            )
        if self.pixels(r) < 1:
            raise RequestError(
                f"r = {r:g} leaves none of the baseline's {self.base_resolution} pixels: raise r"
            )
        shape = self.decode(r, d, w)
        return Network(
            self, RDW(r, d, w), self.pixels(r), shape, classes, int(self.count(shape, classes))
        )

    def baseline(self, num_classes: int | None = None) -> Network:
        return self.network(RDW(1.0, 1.0, 1.0), num_classes)

    def baseline_macs(self, num_classes: int | None = None) -> int:
        """Return the paper's C0: multiply-adds of the baseline with this number of classes."""
        classes = self.num_classes if num_classes is None else num_classes
        cache = vars(self).setdefault("_baseline_macs", {})
        if classes not in cache:
            cache[classes] = self.baseline(classes).macs
        return cache[classes]

    def macs(self, r: Any, d: Any, w: Any, num_classes: int | None = None) -> Any:
        """Return the multiply-adds of (r, d, w).

        Scalars give an int; arrays of equal length give float64, exact below 2**53.
        """
        classes = self.num_classes if num_classes is None else num_classes
        return self.count(self.decode(r, d, w), classes)

    def solve_width(
        self, c: float, r: float, d: float, *, tol: float = 0.03, num_classes: int | None = None
    ) -> Network:
        """Return the network at (r, d) whose exact cost is nearest to c times the baseline's.

        Equation 5, w = sqrt(c / (r^2 d)), is only the first guess: rounding and the parts that do
        not scale change the real count by up to 65 %. Multiply-adds never decrease as w grows, so
        bisection finds the step nearest to the budget. Widths change the cost in steps of up to
        18 %: if no width is within ``tol``, the nearest resolution that has one is used instead.

        Args:
            c: budget as a fraction of the baseline's multiply-adds, above 0.
            r, d: resolution and depth multipliers.
            tol: largest accepted ``abs(network.c - c) / c``.
            num_classes: classes of the network and of the baseline; by default the space's.

        Raises:
            RequestError: no width meets the budget at this depth and near this resolution. If the
                budget is below the cost of the narrowest network there, the message gives the
                smallest c that can be met.
        """
        if not 0 < c < math.inf:
            raise RequestError(
                f"c = {c:g} is not a valid budget: pass a fraction of the baseline's FLOPs above 0"
            )
        if not 0 < tol < 1:
            raise RequestError(
                f"tol = {tol:g} is not a valid tolerance: "
                "pass a fraction of the budget between 0 and 1, such as 0.03"
            )
        classes = self.num_classes if num_classes is None else num_classes
        requested = self.network(RDW(r, d, 1.0), classes).resolution
        best = self.nearest_width(c, r, d, classes)
        if abs(best.c - c) <= tol * c:
            return best
        least = self.narrowest(r, d, classes).c
        if least - c > tol * c:
            # Rounded up, so that a request for the printed value succeeds.
            smallest = least / (1 + tol) * 1.0005
            raise RequestError(
                f"c = {c:g} is below every network near r = {r:g}, d = {d:g}: "
                f"the smallest c that can be met there is {smallest:.4g}; raise c, or lower r or d"
            )
        for step in range(1, max(2, int(requested * MAX_NUDGE)) + 1):
            nudged = [p / self.base_resolution for p in (requested + step, requested - step)]
            around = [
                self.nearest_width(c, near, d, classes)
                for near in nudged
                if RDW_LIMITS[0] <= near <= RDW_LIMITS[1]
            ]
            best = min([best, *around], key=lambda n: abs(n.c - c))
            if abs(best.c - c) <= tol * c:
                return best
        raise RequestError(
            f"no width meets c = {c:g} within {tol:.0%} near r = {r:g}, d = {d:g}: "
            f"the nearest has c = {best.c:.4f}; change r, d or c"
        )

    def narrowest(self, r: float, d: float, num_classes: int | None = None) -> Network:
        """Return the cheapest network that ``solve_width`` may return.

        It has the smallest width, at the lowest resolution that the solver tries.
        """
        requested = self.pixels(r)
        pixels = max(
            requested - max(2, int(requested * MAX_NUDGE)),
            math.ceil(RDW_LIMITS[0] * self.base_resolution),
        )
        rdw = RDW(min(r, pixels / self.base_resolution), d, RDW_LIMITS[0])
        return self.network(rdw, num_classes)

    def nearest_width(
        self, c: float, r: float, d: float, num_classes: int | None = None
    ) -> Network:
        """Return the network at exactly this (r, d) whose cost is nearest to the budget.

        Cost is a step function of the width. Bisection finds the steps just below and just above
        the budget; the nearer one is returned.
        """
        classes = self.num_classes if num_classes is None else num_classes
        budget = c * self.baseline_macs(classes)
        narrowest, widest = RDW_LIMITS
        low = high = min(max(math.sqrt(c / (r * r * d)), narrowest), widest)
        while low > narrowest and self.macs(r, d, low, classes) > budget:
            low = max(low / 1.5, narrowest)
        while high < widest and self.macs(r, d, high, classes) <= budget:
            high = min(high * 1.5, widest)
        while high - low > 1e-4:
            middle = (low + high) / 2
            if self.macs(r, d, middle, classes) <= budget:
                low = middle
            else:
                high = middle
        pair = [self.network(RDW(r, d, w), classes) for w in (low, high)]
        return min(pair, key=lambda n: abs(n.macs - budget))
