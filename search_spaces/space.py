"""What every search space shares: (r, d, w), the real network it rounds to, and the width that meets a budget.

A space is a baseline network with ranges for the resolution r, depth d and width w multipliers and a band of FLOPs.
FLOPs are multiply-adds (``macs``) of every convolution and linear layer at batch 1, squeeze-excite convolutions
included, without bias, normalisation, activation, pooling or residual additions; they equal half of what
``torch.utils.flop_counter.FlopCounterMode`` counts on the built module.

Peak activation memory is what an inference runtime needs for feature maps at batch 1: layers run one after another in
the built module's order, batch norm is folded into its convolution, activations, gates and residual additions happen in
place, and a tensor is freed when its last reader has run. The input image counts, weights and the scratch space of
kernels do not. An element is a float32 of 4 bytes.
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

# Beyond these a multiplier is a typing error, not a network: B0 at 64 x its width has 19 billion parameters.
SANE = (0.01, 64.0)
# ImageNet has 21,841 in all.
MOST_CLASSES = 1_000_000
# How far from the asked resolution the width solver may look for a network that meets the budget.
MAX_NUDGE = 0.25
FLOAT32_BYTES = 4
# What a family shows of a shape: whole numbers, and lists of one per stage (channels, repeats, ...).
Details = Mapping[str, int | float | str | list[int] | list[float] | list[str]]


class RDW(NamedTuple):
    """Multipliers of the baseline's resolution, depth and width (the paper's r, d, w); never rounded."""

    r: float
    d: float
    w: float


class Cost(NamedTuple):
    """Exact cost of one network at batch 1: ints, or equally long float64 arrays when many are costed at once.

    Attributes:
        macs: multiply-adds; params: parameters.
        activations: elements written by all convolutions; peak: elements alive at once at the worst moment.
    """

    macs: Any
    params: Any
    activations: Any
    peak: Any


@dataclass(frozen=True, eq=False)
class Network:
    """One real network: what (r, d, w) comes to after rounding; equal where space, shape and classes are.

    Attributes:
        rdw: the multipliers that were asked for.
        resolution: side of the square input, pixels.
        shape: the family's decoded stage list; equal shapes are equal networks.
        macs, params: multiply-adds and parameters, with the classifier for ``num_classes``.
        activations: elements written by all convolutions (the measure that tracks run time best).
        activation_bytes: peak memory of feature maps in inference at batch 1, float32 (defined above).
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
        """Names the real network within its space: equal keys train to equal results."""
        return f"{self.space.describe(self.shape)}-{self.num_classes}"

    @property
    def details(self) -> Details:
        """The family's own figures for people to read (repeats and channels per stage, ...)."""
        return self.space.details(self.shape)

    def build(self, *, pretrained: str | Path | None = None, **options: Any) -> "torch.nn.Module":
        """The torch module; options are the family's own (``drop_rate=.2``, ...).

        Input: float tensor (batch, 3, resolution, resolution); output: logits (batch, num_classes).

        Args:
            pretrained: a .safetensors or .pth file, or the name of timm's published weights; None starts at random.

        Raises:
            RequestError: an option is unknown, the weights are another network's, damaged or out of reach, or a package
                that this needs is not installed.
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
                f"building needs {error.name}, which is not installed: pip install 'tinynet-search[search]'"
            ) from error
        return module


class SearchSpace(ABC):
    """A baseline network and how it is twisted. Subclasses give ``decode``, ``cost``, ``build`` and the attributes.

    Attributes:
        name, version: identify the space; the version rises when the same (r, d, w) means another network.
        base_resolution: the baseline's input side in pixels.
        num_classes: classes when none are asked for.
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
        """The real shape of a twist; scalars give plain ints, equally long arrays give arrays in the same places."""

    @abstractmethod
    def cost(self, shape: Any, num_classes: int) -> Cost:
        """Closed-form cost of a decoded shape, scalar or array."""

    def count(self, shape: Any, num_classes: int) -> Any:
        """The multiply-adds alone, which searches ask for a hundred times as often as for the rest."""
        return self.cost(shape, num_classes).macs

    @abstractmethod
    def build(self, network: Network, **options: Any) -> "torch.nn.Module":
        """The torch module of a network of this space."""

    @abstractmethod
    def describe(self, shape: Any) -> str:
        """A short text that names a shape and no other."""

    def details(self, shape: Any) -> Details:
        """The family's own figures for people to read, as JSON has them; none by default."""
        return {}

    def narrowed(
        self, ranges: Mapping[str, Sequence[float]], band: Sequence[float] | None = None
    ) -> Self:
        """The same space with some ranges of r, d, w, or its band, replaced: other draws, the same networks."""
        space = copy.copy(self)
        space.ranges = {**self.ranges, **{key: (low, high) for key, (low, high) in ranges.items()}}
        if band is not None:
            low, high = band
            space.band = (low, high)
        return space

    def pixels(self, r: Any) -> Any:
        """int(base * r + 1e-6): the epsilon makes r = pixels / base come back as the same pixels."""
        return (
            np.floor(self.base_resolution * r + 1e-6)
            if isinstance(r, np.ndarray)
            else int(self.base_resolution * r + 1e-6)
        )

    def network(self, rdw: tuple[float, float, float], num_classes: int | None = None) -> Network:
        """The real network of (r, d, w).

        Raises:
            RequestError: a multiplier is not a positive, sane number, or the input shrinks to nothing.
        """
        try:
            r, d, w = (float(v) for v in rdw)
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(
                f"{str(rdw)[:80]} is no (r, d, w): give three numbers such as (0.86, 1.2, 1.0)"
            ) from error
        for label, value in (("r", r), ("d", d), ("w", w)):
            if not SANE[0] <= value <= SANE[1]:
                raise RequestError(
                    f"{label} = {value:g} is no multiplier: give a number in [{SANE[0]:g}, {SANE[1]:g}] (1 is the baseline)"
                )
        classes = self.num_classes if num_classes is None else num_classes
        if not isinstance(classes, (int, np.integer)) or not 2 <= classes <= MOST_CLASSES:
            raise RequestError(
                f"num_classes = {classes}: a classifier needs at least two classes, whole ones, and at most {MOST_CLASSES}"
            )
        if self.pixels(r) < 1:
            raise RequestError(
                f"r = {r:g} leaves no pixel of the baseline's {self.base_resolution}: raise r"
            )
        shape = self.decode(r, d, w)
        return Network(
            self, RDW(r, d, w), self.pixels(r), shape, classes, int(self.count(shape, classes))
        )

    def baseline(self, num_classes: int | None = None) -> Network:
        return self.network(RDW(1.0, 1.0, 1.0), num_classes)

    def baseline_macs(self, num_classes: int | None = None) -> int:
        """The paper's C0: multiply-adds of the baseline with a classifier of as many classes."""
        classes = self.num_classes if num_classes is None else num_classes
        cache = vars(self).setdefault("_baseline_macs", {})
        if classes not in cache:
            cache[classes] = self.baseline(classes).macs
        return cache[classes]

    def macs(self, r: Any, d: Any, w: Any, num_classes: int | None = None) -> Any:
        """Multiply-adds of one twist (int) or of equally long arrays of twists (float64, exact below 2**53)."""
        classes = self.num_classes if num_classes is None else num_classes
        return self.count(self.decode(r, d, w), classes)

    def solve_width(
        self, c: float, r: float, d: float, *, tol: float = 0.03, num_classes: int | None = None
    ) -> Network:
        """The network at (r, d) whose exact cost is nearest to c of the baseline's.

        Equation 5, w = sqrt(c / (r^2 d)), is only the first guess: rounding and the parts that do not scale move
        the real count by up to 65 %. Multiply-adds never fall as w grows, so the step nearest to the budget is found
        by bisection. Widths move the cost in steps of up to 18 %: where none lands within ``tol``, the nearest
        resolution that has one is taken instead.

        Args:
            c: budget as a fraction of the baseline's multiply-adds, above 0.
            r, d: resolution and depth multipliers.
            tol: largest accepted ``abs(network.c - c) / c``.

        Raises:
            RequestError: no width meets the budget at this depth and near this resolution; below what the thinnest network
                there costs, the line says the smallest c that can be met.
        """
        if not 0 < c < math.inf:
            raise RequestError(
                f"c = {c:g} is no budget: give a fraction of the baseline's FLOPs above 0"
            )
        if not 0 < tol < 1:
            raise RequestError(
                f"tol = {tol:g} is no tolerance: give a share of the budget between 0 and 1, such as 0.03"
            )
        classes = self.num_classes if num_classes is None else num_classes
        asked = self.network(RDW(r, d, 1.0), classes).resolution
        best = self.nearest_width(c, r, d, classes)
        if abs(best.c - c) <= tol * c:
            return best
        least = self.thinnest(r, d, classes).c
        if least - c > tol * c:
            # Rounded up: who asks for what is printed is answered.
            smallest = least / (1 + tol) * 1.0005
            raise RequestError(
                f"c = {c:g} is below every network near r = {r:g}, d = {d:g}: "
                f"the smallest that can be met there is c = {smallest:.4g}; raise c, or lower r or d"
            )
        for step in range(1, max(2, int(asked * MAX_NUDGE)) + 1):
            nudged = [p / self.base_resolution for p in (asked + step, asked - step)]
            around = [
                self.nearest_width(c, near, d, classes)
                for near in nudged
                if SANE[0] <= near <= SANE[1]
            ]
            best = min([best, *around], key=lambda n: abs(n.c - c))
            if abs(best.c - c) <= tol * c:
                return best
        raise RequestError(
            f"no width meets c = {c:g} within {tol:.0%} near r = {r:g}, d = {d:g}: the nearest has c = {best.c:.4f}; change r, d or c"
        )

    def thinnest(self, r: float, d: float, num_classes: int | None = None) -> Network:
        """The cheapest network that ``solve_width`` may answer with: no width at all, at the lowest resolution it tries."""
        asked = self.pixels(r)
        pixels = max(
            asked - max(2, int(asked * MAX_NUDGE)), math.ceil(SANE[0] * self.base_resolution)
        )
        return self.network(RDW(min(r, pixels / self.base_resolution), d, SANE[0]), num_classes)

    def nearest_width(
        self, c: float, r: float, d: float, num_classes: int | None = None
    ) -> Network:
        """At exactly this (r, d): of the two networks beside the budget on the staircase of widths, the nearer one."""
        classes = self.num_classes if num_classes is None else num_classes
        budget = c * self.baseline_macs(classes)
        low = high = min(max(math.sqrt(c / (r * r * d)), SANE[0]), SANE[1])
        while low > SANE[0] and self.macs(r, d, low, classes) > budget:
            low = max(low / 1.5, SANE[0])
        while high < SANE[1] and self.macs(r, d, high, classes) <= budget:
            high = min(high * 1.5, SANE[1])
        while high - low > 1e-4:
            middle = (low + high) / 2
            low, high = (
                (middle, high) if self.macs(r, d, middle, classes) <= budget else (low, middle)
            )
        pair = [self.network(RDW(r, d, w), classes) for w in (low, high)]
        return min(pair, key=lambda n: abs(n.macs - budget))
