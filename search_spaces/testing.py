"""The contract of search spaces: ``SpaceContract`` checks it with pytest, ``check_space`` without.

The tests of the built-in spaces and of custom spaces use it. A space that fulfils the contract can
be searched, solved for a budget and trained. Needs torch.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch

from search_spaces.errors import RequestError
from search_spaces.measured import ModuleCost, counted, counted_macs, measured_peak
from search_spaces.space import FLOAT32_BYTES, RDW, Network, SearchSpace

__all__ = ["SpaceContract", "check_space", "counted", "counted_macs", "measured_peak"]

# A number of classes that is not the default of any space.
CLASSES = 7
INVALID_MULTIPLIERS = (
    (0.0, 1.0, 1.0),
    (1.0, -1.0, 1.0),
    (1.0, 1.0, float("nan")),
    (1.0, 1.0, 1e9),
    (float("inf"), 1.0, 1.0),
)
# Networks that are run are drawn from this fraction of the ranges of r, d and w, at their low end.
# They take seconds in any space.
SMALL_FRACTION = np.array([0.1, 0.3, 0.3])
TOL = 0.03


class SpaceContract:
    """The checks that every space must pass.

    pytest collects them from a subclass that sets ``space``::

        class TestMine(SpaceContract):
            space = MySpace()

    The checked values of (r, d, w) are the baseline, both ends of the space's ranges, and
    ``twists`` random values between these, drawn with ``seed``.
    """

    space: SearchSpace
    twists: int = 20
    seed: int = 0

    def __init_subclass__(cls) -> None:
        if not isinstance(getattr(cls, "space", None), SearchSpace):
            raise TypeError(
                f"{cls.__name__} has no space to check: set space = MySpace() in the class"
            )

    def test_baseline_has_c_of_one(self) -> None:
        for classes in (self.space.num_classes, CLASSES):
            with self._at(RDW(1.0, 1.0, 1.0), classes) as network:
                baseline = self.space.baseline(classes)
                _check_equal("c of the baseline", baseline.c, 1.0, "expected")
                _check_equal(
                    "pixels of the baseline",
                    baseline.resolution,
                    self.space.base_resolution,
                    "base_resolution is",
                )
                _check_equal("the baseline", baseline, network, "network() returns")

    def test_macs_match_module(self) -> None:
        for network, module in self._counted():
            with self._at(network.rdw):
                _check_equal("multiply-adds", network.macs, module.macs)

    def test_params_match_module(self) -> None:
        for network, module in self._counted():
            with self._at(network.rdw):
                _check_equal("parameters", network.params, module.params)

    def test_activations_match_module(self) -> None:
        for network, module in self._counted():
            with self._at(network.rdw):
                _check_equal(
                    "elements written by convolutions", network.activations, module.activations
                )

    def test_peak_matches_module(self) -> None:
        for rdw in (RDW(1.0, 1.0, 1.0), *self._small()):
            with self._at(rdw) as network:
                peak = measured_peak(network.build(), network.resolution)
                _check_equal(
                    "peak of live elements", network.activation_bytes // FLOAT32_BYTES, peak
                )

    def test_macs_never_decrease(self) -> None:
        """The width solver uses bisection, so more width or more pixels must not cost less."""
        low, high = self._ends()
        wider = np.linspace(low[2] / 4, 2 * high[2], 400)
        larger = (
            np.arange(self.space.pixels(low[0]), self.space.pixels(high[0]) + 1)
            / self.space.base_resolution
        )
        for rdw in self._drawn():
            for key, values in (("w", wider), ("r", larger)):
                steps = {
                    name: values if name == key else np.full(len(values), getattr(rdw, name))
                    for name in RDW._fields
                }
                macs = self.space.macs(**steps, num_classes=CLASSES)
                for i in np.flatnonzero(np.diff(macs) < 0)[:1]:
                    with self._at(rdw._replace(**{key: float(values[i])})):
                        raise AssertionError(
                            f"multiply-adds decrease from {macs[i]:.0f} to {macs[i + 1]:.0f} "
                            f"at {key} = {values[i + 1]:.6g}"
                        )

    def test_scalars_and_arrays_cost_the_same(self) -> None:
        drawn = self._drawn()
        with _with_context(f"{self.space.name} at {len(drawn)} (r, d, w) as arrays"):
            arrays = self._costs(*np.array(drawn).T)
        for i, rdw in enumerate(drawn):
            with self._at(rdw):
                scalars = self._costs(*rdw)
                _check_equal("count", scalars["count"], scalars["macs"], "the macs of its cost are")
                for name, value in scalars.items():
                    _check_equal(name, value, int(value), "expected an integer such as")
                    _check_equal(
                        name,
                        value,
                        np.broadcast_to(arrays[name], len(drawn))[i],
                        "for arrays it reports",
                    )

    def test_pixels_round_trip(self) -> None:
        base = self.space.base_resolution
        all_pixels = list(range(1, 3 * base))
        with _with_context(self.space.name):
            _check_equal(
                "pixels", [self.space.pixels(p / base) for p in all_pixels], all_pixels, "expected"
            )
            _check_equal(
                "pixels of an array",
                self.space.pixels(np.array(all_pixels) / base).tolist(),
                all_pixels,
                "expected",
            )
        for rdw in self._drawn():
            with self._at(rdw) as network:
                _check_equal(
                    "pixels",
                    network.resolution,
                    int(base * rdw.r + 1e-6),
                    "int(base * r + 1e-6) is",
                )

    def test_describe_is_unique_per_shape(self) -> None:
        drawn, described = self._drawn(), []
        mixed = [
            one._replace(**{key: getattr(other, key)})
            for one, other in pairwise(drawn)
            for key in RDW._fields
        ]
        for rdw in (*drawn, *mixed, *drawn):
            with self._at(rdw) as network:
                described.append((network, network.key))
        for (one, text), (other, other_text) in combinations(described, 2):
            if (one == other) != (text == other_text):
                kinds = "equal shapes" if one == other else "different shapes"
                with self._at(one.rdw):
                    raise AssertionError(
                        f"{kinds} are described as {text!r} here and {other_text!r} at {other.rdw}"
                    )

    def test_details_are_json(self) -> None:
        for rdw in self._drawn():
            with self._at(rdw) as network:
                _check_equal(
                    "details",
                    network.details,
                    json.loads(json.dumps(network.details, allow_nan=False)),
                    "after a JSON round trip they are",
                )

    def test_every_parameter_gets_a_gradient(self) -> None:
        """A parameter without a gradient would stop a training on several workers."""
        for rdw in self._small():
            with self._at(rdw) as network:
                module = network.build().train()
                logits = module(torch.randn(2, 3, network.resolution, network.resolution))
                _check_equal("shape of the logits", (2, CLASSES), tuple(logits.shape))
                logits.sum().backward()
                unreached = [
                    name for name, parameter in module.named_parameters() if parameter.grad is None
                ]
                _check_equal("parameters without a gradient", [], unreached)

    def test_build_accepts_both_drop_rates(self) -> None:
        """Every training passes them; the names of the weights must not depend on them."""
        with self._at(self._small()[0]) as network:
            plain, dropping = network.build(), network.build(drop_rate=0.2, drop_path_rate=0.1)
            _check_equal(
                "weights",
                list(plain.state_dict()),
                list(dropping.state_dict()),
                "with drop rates the module has",
            )
            dropping.train()(
                torch.randn(2, 3, network.resolution, network.resolution)
            ).sum().backward()

    def test_invalid_requests_raise(self) -> None:
        requests = [(rdw, CLASSES) for rdw in INVALID_MULTIPLIERS]
        for rdw, classes in (*requests, ((1.0, 1.0, 1.0), 1)):
            try:
                self.space.network(rdw, classes)
            except RequestError:
                continue
            with self._at(RDW(1.0, 1.0, 1.0)):
                raise AssertionError(
                    f"r, d, w = {rdw} with {classes} classes is accepted, expected a RequestError"
                )

    def test_solve_width_meets_budgets(self) -> None:
        """Some width meets the cost of any network, and no width meets a budget near 0."""
        for rdw in self._drawn():
            with self._at(rdw) as network:
                solved = self.space.solve_width(
                    network.c, rdw.r, rdw.d, tol=TOL, num_classes=CLASSES
                )
                if abs(solved.c - network.c) > TOL * network.c:
                    raise AssertionError(
                        f"solve_width for its c = {network.c:.6f} returns c = {solved.c:.6f}"
                    )
                _check_equal(
                    "the solved network",
                    solved,
                    self.space.network(solved.rdw, CLASSES),
                    "its r, d, w give",
                )
        with self._at(RDW(1.0, 1.0, 1.0)):
            try:
                network = self.space.solve_width(1e-9, 1.0, 1.0)
            except RequestError:
                return
            raise AssertionError(
                f"solve_width for c = 1e-9 returns c = {network.c:g}, expected a RequestError"
            )

    @classmethod
    @cache
    def _counted(cls) -> list[tuple[Network, ModuleCost]]:
        """Return each drawn network with the cost of its module.

        The space's default number of classes and another one alternate.
        """
        counts = []
        for i, rdw in enumerate(cls._drawn()):
            with cls._at(rdw, CLASSES if i % 2 else None) as network:
                counts.append((network, counted(network)))
        return counts

    def _costs(self, r: Any, d: Any, w: Any) -> dict[str, int | np.ndarray]:
        """Return each figure of the cost and the result of ``count``, as numbers or arrays."""
        shape = self.space.decode(r, d, w)
        return {
            **self.space.cost(shape, CLASSES)._asdict(),
            "count": self.space.count(shape, CLASSES),
        }

    @classmethod
    def _ends(cls) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.array([cls.space.ranges[key] for key in RDW._fields]).T
        return low, high

    @classmethod
    def _drawn(cls) -> list[RDW]:
        low, high = cls._ends()
        rows = low + (high - low) * np.random.default_rng(cls.seed).random((cls.twists, 3))
        return [RDW(1.0, 1.0, 1.0), *(RDW(*map(float, row)) for row in (low, high, *rows))]

    @classmethod
    def _small(cls) -> list[RDW]:
        """Return the low end of the ranges and a few random (r, d, w) near it."""
        low, high = cls._ends()
        rng = np.random.default_rng(cls.seed)
        rows = low + SMALL_FRACTION * (high - low) * rng.random((min(cls.twists, 4), 3))
        return [RDW(*map(float, row)) for row in (low, *rows)]

    @classmethod
    @contextmanager
    def _at(cls, rdw: RDW, classes: int | None = CLASSES) -> Iterator[Network]:
        """Yield the network of (r, d, w), and add these values to the errors of the block."""
        r, d, w = rdw
        with _with_context(f"{cls.space.name} at r, d, w = {r:.6g}, {d:.6g}, {w:.6g}"):
            yield cls.space.network(rdw, classes)


def check_space(space: SearchSpace, twists: int = 20, seed: int = 0) -> None:
    """Check a space against the complete contract.

    Args:
        space: the space to check.
        twists: number of random (r, d, w) from the space's ranges.
        seed: seed of these draws.

    Raises:
        AssertionError: the first violation, with (r, d, w), the value that the space reports and
            the value of its module.
        TypeError: ``space`` is not a SearchSpace.
    """
    if not isinstance(space, SearchSpace):
        raise TypeError(f"expected a space, got {space!r}: pass an instance of a SearchSpace")
    contract = type("Contract", (SpaceContract,), {"space": space, "twists": twists, "seed": seed})
    for name in vars(SpaceContract):
        if name.startswith("test_"):
            getattr(contract(), name)()


@contextmanager
def _with_context(where: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from None
    except Exception as error:
        error.add_note(f"{where}: this error violates the contract of search spaces")
        raise


def _check_equal(
    what: str, reported: Any, actual: Any, source: str = "the built module has"
) -> None:
    if reported != actual:
        raise AssertionError(f"{what}: the space reports {reported}, {source} {actual}")
