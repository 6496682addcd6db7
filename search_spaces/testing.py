"""The contract that every space is held to: with pytest through ``SpaceContract``, without it through ``check_space``.

A space that keeps it can be searched, solved for a budget and trained. Needs torch.
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
from search_spaces.measured import Counted, counted, counted_macs, measured_peak
from search_spaces.space import FLOAT32_BYTES, RDW, Network, SearchSpace

__all__ = ["SpaceContract", "check_space", "counted", "counted_macs", "measured_peak"]

# Any number of classes that no space has of itself.
CLASSES = 7
ABSURD = (
    (0.0, 1.0, 1.0),
    (1.0, -1.0, 1.0),
    (1.0, 1.0, float("nan")),
    (1.0, 1.0, 1e9),
    (float("inf"), 1.0, 1.0),
)
# How far into its ranges of r, d and w goes a twist that is run for real: seconds for any space.
SMALL = np.array([0.1, 0.3, 0.3])
TOL = 0.03


class SpaceContract:
    """What every space must keep. pytest collects these checks from a subclass that gives its ``space``::

        class TestMine(SpaceContract):
            space = MySpace()

    Twists are the baseline, both ends of the space's ranges and ``twists`` random ones between them, drawn with ``seed``.
    """

    space: SearchSpace
    twists: int = 20
    seed: int = 0

    def __init_subclass__(cls) -> None:
        if not isinstance(getattr(cls, "space", None), SearchSpace):
            raise TypeError(
                f"{cls.__name__} has no space to hold to the contract: write space = MySpace() in it"
            )

    def test_the_baseline_is_one(self) -> None:
        for classes in (self.space.num_classes, CLASSES):
            with self._at(RDW(1.0, 1.0, 1.0), classes) as network:
                baseline = self.space.baseline(classes)
                _same("c of the baseline", baseline.c, 1.0, "due is")
                _same(
                    "pixels of the baseline",
                    baseline.resolution,
                    self.space.base_resolution,
                    "base_resolution is",
                )
                _same("the baseline", baseline, network, "network() gives")

    def test_macs_are_the_modules(self) -> None:
        for network, module in self._counted():
            with self._at(network.rdw):
                _same("multiply-adds", network.macs, module.macs)

    def test_params_are_the_modules(self) -> None:
        for network, module in self._counted():
            with self._at(network.rdw):
                _same("parameters", network.params, module.params)

    def test_activations_are_the_modules(self) -> None:
        for network, module in self._counted():
            with self._at(network.rdw):
                _same("elements that convolutions write", network.activations, module.activations)

    def test_peak_is_the_modules(self) -> None:
        for rdw in (RDW(1.0, 1.0, 1.0), *self._small()):
            with self._at(rdw) as network:
                peak = measured_peak(network.build(), network.resolution)
                _same(
                    "most elements alive at once", network.activation_bytes // FLOAT32_BYTES, peak
                )

    def test_cost_never_falls(self) -> None:
        """Widths are solved by bisection: more width or more pixels may not cost less."""
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
                            f"multiply-adds fall from {macs[i]:.0f} to {macs[i + 1]:.0f} at {key} = {values[i + 1]:.6g}"
                        )

    def test_scalars_and_arrays_cost_the_same(self) -> None:
        drawn = self._drawn()
        with _naming(f"{self.space.name}, asked for {len(drawn)} twists in arrays"):
            arrays = self._costs(*np.array(drawn).T)
        for i, rdw in enumerate(drawn):
            with self._at(rdw):
                scalars = self._costs(*rdw)
                _same("count", scalars["count"], scalars["macs"], "its cost has macs")
                for name, value in scalars.items():
                    _same(name, value, int(value), "due is a whole number such as")
                    _same(
                        name,
                        value,
                        np.broadcast_to(arrays[name], len(drawn))[i],
                        "of arrays it says",
                    )

    def test_pixels_come_back(self) -> None:
        base = self.space.base_resolution
        every = list(range(1, 3 * base))
        with _naming(self.space.name):
            _same("pixels", [self.space.pixels(p / base) for p in every], every, "asked were")
            _same(
                "pixels of an array",
                self.space.pixels(np.array(every) / base).tolist(),
                every,
                "asked were",
            )
        for rdw in self._drawn():
            with self._at(rdw) as network:
                _same(
                    "pixels",
                    network.resolution,
                    int(base * rdw.r + 1e-6),
                    "int(base * r + 1e-6) is",
                )

    def test_a_description_names_one_shape(self) -> None:
        drawn, described = self._drawn(), []
        mixed = [
            one._replace(**{key: getattr(other, key)})
            for one, other in pairwise(drawn)
            for key in RDW._fields
        ]
        for rdw in (*drawn, *mixed, *drawn):
            with self._at(rdw) as network:
                described.append((network, network.key))
        for (one, text), (other, its_text) in combinations(described, 2):
            if (one == other) != (text == its_text):
                kinds = "equal shapes" if one == other else "different shapes"
                with self._at(one.rdw):
                    raise AssertionError(
                        f"{kinds} are described as {text!r} here and {its_text!r} at {other.rdw}"
                    )

    def test_details_are_json(self) -> None:
        for rdw in self._drawn():
            with self._at(rdw) as network:
                _same(
                    "details",
                    network.details,
                    json.loads(json.dumps(network.details, allow_nan=False)),
                    "as JSON they are",
                )

    def test_a_training_step_reaches_every_parameter(self) -> None:
        """A parameter without a gradient would stop a training on several workers."""
        for rdw in self._small():
            with self._at(rdw) as network:
                module = network.build().train()
                logits = module(torch.randn(2, 3, network.resolution, network.resolution))
                _same("shape of the logits", (2, CLASSES), tuple(logits.shape))
                logits.sum().backward()
                unreached = [
                    name for name, parameter in module.named_parameters() if parameter.grad is None
                ]
                _same("parameters out of reach of a training", [], unreached)

    def test_build_takes_both_drop_rates(self) -> None:
        """Every training passes them; the weights are the same with and without."""
        with self._at(self._small()[0]) as network:
            plain, dropping = network.build(), network.build(drop_rate=0.2, drop_path_rate=0.1)
            _same(
                "weights",
                list(plain.state_dict()),
                list(dropping.state_dict()),
                "with drop rates the module has",
            )
            dropping.train()(
                torch.randn(2, 3, network.resolution, network.resolution)
            ).sum().backward()

    def test_absurd_twists_are_refused(self) -> None:
        for rdw, classes in (*((rdw, CLASSES) for rdw in ABSURD), ((1.0, 1.0, 1.0), 1)):
            try:
                self.space.network(rdw, classes)
            except RequestError:
                continue
            with self._at(RDW(1.0, 1.0, 1.0)):
                raise AssertionError(
                    f"r, d, w = {rdw} with {classes} classes is taken, a RequestError is due"
                )

    def test_widths_are_solved(self) -> None:
        """Whatever a twist costs is met by some width, and next to nothing by none."""
        for rdw in self._drawn():
            with self._at(rdw) as network:
                solved = self.space.solve_width(
                    network.c, rdw.r, rdw.d, tol=TOL, num_classes=CLASSES
                )
                if abs(solved.c - network.c) > TOL * network.c:
                    raise AssertionError(
                        f"its c of {network.c:.6f} is asked of solve_width, which gives {solved.c:.6f}"
                    )
                _same(
                    "the solved network",
                    solved,
                    self.space.network(solved.rdw, CLASSES),
                    "its own r, d, w give",
                )
        with self._at(RDW(1.0, 1.0, 1.0)):
            try:
                found = self.space.solve_width(1e-9, 1.0, 1.0)
            except RequestError:
                return
            raise AssertionError(
                f"c = 1e-9 is asked of solve_width, which gives {found.c:g}; a RequestError is due"
            )

    @classmethod
    @cache
    def _counted(cls) -> list[tuple[Network, Counted]]:
        """Each twist beside what its module has, with the space's own number of classes and another in turn."""
        counts = []
        for i, rdw in enumerate(cls._drawn()):
            with cls._at(rdw, CLASSES if i % 2 else None) as network:
                counts.append((network, counted(network)))
        return counts

    def _costs(self, r: Any, d: Any, w: Any) -> dict[str, int | np.ndarray]:
        """Each figure of the cost, and what ``count`` gives: whole numbers, or arrays for arrays."""
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
        """The low end of the ranges, and a few random twists near it."""
        low, high = cls._ends()
        rows = low + SMALL * (high - low) * np.random.default_rng(cls.seed).random(
            (min(cls.twists, 4), 3)
        )
        return [RDW(*map(float, row)) for row in (low, *rows)]

    @classmethod
    @contextmanager
    def _at(cls, rdw: RDW, classes: int | None = CLASSES) -> Iterator[Network]:
        """The network of a twist; what goes wrong with it names the twist."""
        r, d, w = rdw
        with _naming(f"{cls.space.name} at r, d, w = {r:.6g}, {d:.6g}, {w:.6g}"):
            yield cls.space.network(rdw, classes)


def check_space(space: SearchSpace, twists: int = 20, seed: int = 0) -> None:
    """Hold a space to the whole contract; returns where it keeps it.

    Args:
        twists: random twists of the space's ranges; seed: of their draw.

    Raises:
        AssertionError: the first breach: the twist (r, d, w), what the space says and what its module really has.
    """
    if not isinstance(space, SearchSpace):
        raise TypeError(
            f"check_space takes a space, not {space!r}: give an instance of a SearchSpace"
        )
    contract = type("Contract", (SpaceContract,), {"space": space, "twists": twists, "seed": seed})
    for name in vars(SpaceContract):
        if name.startswith("test_"):
            getattr(contract(), name)()


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from None
    except Exception as error:
        error.add_note(f"{where}: the contract of spaces is broken by this error")
        raise


def _same(what: str, said: Any, does: Any, other: str = "the built module has") -> None:
    if said != does:
        raise AssertionError(f"{what}: the space says {said}, {other} {does}")
