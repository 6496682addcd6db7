"""Time of the closed-form network cost compared with building a module and counting.

Run by ``python -m benchmarks.run cost``. It also times candidate draws and width solving.

The networks are TinyNet-C, which timm has by name, and ResNet-50 and GhostNet-A at its (r, d, w).
The closed form on numbers and on arrays of 100,000 candidates is compared with four ways to build
the module and count the operations of its forward pass. For the complete cost, which includes peak
memory, the module is built, counted and run operation by operation to measure its memory.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, in_turns, ratio
from search_spaces import RDW, SearchSpace, get_space
from search_spaces.networks import get_named
from search_spaces.samplers import SAMPLERS, draw
from search_spaces.space import FLOAT32_BYTES
from search_spaces.testing import measured_peak
from tinynet_search.formula.tiny_formula import TinyFormula

B0 = get_space("efficientnet_b0")
SPACES = (B0, get_space("resnet50"), get_space("ghostnet_a"))
TINYNET_C = RDW(0.825, 0.85, 0.54)
CANDIDATES = 100_000
ROUNDS = 7
# Target: how many times faster the closed form is than building and counting.
SPEEDUP = 5_000

CLOSED_FORMS = (
    "space.network(rdw).macs",
    "space.macs(r, d, w)",
    "space.macs(arrays), per candidate",
)
COUNTERS = (
    "build + FlopCounterMode",
    "build + FlopCounterMode, meta device",
    "build + fvcore",
    "timm.create_model + FlopCounterMode",
)
MACS, COMPLETE = "multiply-adds", "complete cost"
ARRAYS = "complete cost in arrays, per candidate"
BUILT, RUN = "build + FlopCounterMode", "build + FlopCounterMode + a run that measures memory"


def run() -> list[Row]:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        # timm warns at its import, fvcore at each count.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        rows = [*_macs_costs(), *(row for space in SPACES for row in _complete_costs(space))]
        return [
            *rows,
            *(row for space in SPACES for row in (*_draws(space), *_widths(space))),
            *_samplers(),
        ]


def _macs_costs() -> list[Row]:
    arrays = _random_rdw(B0)
    closed: dict[str, Callable[[], object]] = {
        CLOSED_FORMS[0]: lambda: B0.network(TINYNET_C).macs,
        CLOSED_FORMS[1]: lambda: B0.macs(*TINYNET_C),
        CLOSED_FORMS[2]: lambda: B0.macs(*arrays),
    }
    counted = dict(
        zip(COUNTERS, (_flop_counter, _flop_counter_on_meta, _fvcore, _timm), strict=True)
    )
    times = in_turns({**closed, **counted}, ROUNDS, min_seconds=0.05)
    times[CLOSED_FORMS[2]] = [seconds / CANDIDATES for seconds in times[CLOSED_FORMS[2]]]
    exact = B0.network(TINYNET_C).macs
    counts = {name: count() for name, count in counted.items()}
    return [
        *(Row(name, 1e6 * min(times[name]), "us") for name in CLOSED_FORMS),
        *(Row(name, 1e3 * min(times[name]), "ms") for name in COUNTERS),
        *(
            Row(f"{slow} / {fast}", ratio(times, slow, fast), "times", SPEEDUP, "above")
            for fast in CLOSED_FORMS
            for slow in COUNTERS
        ),
        *(
            Row(f"multiply-adds of {name} over the exact ones", count / exact, "times")
            for name, count in counts.items()
        ),
    ]


def _complete_costs(space: SearchSpace) -> list[Row]:
    """Compare the complete cost with building, counting and running the module.

    The complete cost is the multiply-adds, parameters, activations and peak memory.
    """
    arrays, network = _random_rdw(space), space.network(TINYNET_C)

    def built_and_run() -> tuple[int, int]:
        module = network.build()
        return int(_flop_counter_macs(module, network.resolution)), FLOAT32_BYTES * measured_peak(
            module, network.resolution
        )

    calls: dict[str, Callable[[], object]] = {
        MACS: lambda: space.macs(*TINYNET_C),
        COMPLETE: lambda: space.cost(space.decode(*TINYNET_C), space.num_classes),
        ARRAYS: lambda: space.cost(space.decode(*arrays), space.num_classes),
        BUILT: lambda: _flop_counter_macs(network.build(), network.resolution),
        RUN: built_and_run,
    }
    times = in_turns(calls, ROUNDS, min_seconds=0.05)
    times[ARRAYS] = [seconds / CANDIDATES for seconds in times[ARRAYS]]
    assert built_and_run() == (network.macs, network.activation_bytes)
    return [
        *(
            Row(f"{space.name}: {name}", 1e6 * min(times[name]), "us")
            for name in (MACS, COMPLETE, ARRAYS)
        ),
        *(Row(f"{space.name}: {name}", 1e3 * min(times[name]), "ms") for name in (BUILT, RUN)),
        Row(
            f"{space.name}: {BUILT} / {MACS}", ratio(times, BUILT, MACS), "times", SPEEDUP, "above"
        ),
        *(
            Row(f"{space.name}: {RUN} / {name}", ratio(times, RUN, name), "times", SPEEDUP, "above")
            for name in (COMPLETE, ARRAYS)
        ),
    ]


def _random_rdw(space: SearchSpace) -> np.ndarray:
    """Random (r, d, w) within the space's ranges, as an array of shape (3, CANDIDATES)."""
    low, high = (np.array([space.ranges[key][edge] for key in "rdw"]) for edge in (0, 1))
    return (low + (high - low) * np.random.default_rng(0).random((CANDIDATES, 3))).T


def _flop_counter() -> float:
    network = B0.network(TINYNET_C)
    return _flop_counter_macs(network.build(), network.resolution)


def _flop_counter_on_meta() -> float:
    with torch.device("meta"):
        return _flop_counter()


def _timm() -> float:
    import timm

    return _flop_counter_macs(
        timm.create_model("tinynet_c"), get_named("tinynet_c").network().resolution
    )


def _flop_counter_macs(module: nn.Module, resolution: int) -> float:
    """Multiply-adds as counted by torch's ``FlopCounterMode``."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, 3, resolution, resolution))
    return counter.get_total_flops() / 2


def _fvcore() -> float:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    network = B0.network(TINYNET_C)
    images = torch.zeros(1, 3, network.resolution, network.resolution)
    return (
        FlopCountAnalysis(network.build().eval(), images)
        .unsupported_ops_warnings(False)
        .uncalled_modules_warnings(False)
        .total()
    )


def _draws(space: SearchSpace) -> list[Row]:
    """Time drawing random candidates and computing their cost.

    First the multiply-adds alone, as the rejection sampler does, then also parameters, activations
    and memory.
    """
    calls: dict[str, Callable[[], object]] = {
        "multiply-adds": lambda: space.macs(*_random_rdw(space)),
        "complete cost": lambda: space.cost(space.decode(*_random_rdw(space)), space.num_classes),
    }
    times = in_turns(calls, ROUNDS)
    return [
        Row(
            f"{space.name}: {CANDIDATES:,} random candidates drawn, {name}",
            min(times[name]),
            "s",
            2.0,
        )
        for name in calls
    ]


def _widths(space: SearchSpace) -> list[Row]:
    """Time solving the width at r(c) and d(c) of the published formula, at 50 budgets."""
    budgets = np.geomspace(0.06, 0.9, 50)
    predicted = TinyFormula.load("published").predict(budgets)
    r, d = predicted.r_mean.tolist(), predicted.d_mean.tolist()
    points = list(zip(budgets.tolist(), r, d, strict=True))
    calls: dict[str, Callable[[], object]] = {
        str(i): lambda crd=crd: space.solve_width(*crd) for i, crd in enumerate(points)
    }
    best = [min(seconds) for seconds in in_turns(calls, ROUNDS).values()]
    return [
        Row(f"{space.name}: a width solved, median of 50 budgets", 1e3 * median(best), "ms", 2.0),
        Row(f"{space.name}: a width solved, slowest of 50 budgets", 1e3 * max(best), "ms"),
    ]


def _samplers() -> list[Row]:
    options: dict[str, dict[str, Any]] = {"near": {"c": 0.25}}
    calls: dict[str, Callable[[], object]] = {
        name: lambda name=name: draw(B0, name, 100, 0, **options.get(name, {})) for name in SAMPLERS
    }
    times = in_turns({**calls, "optuna": _optuna}, ROUNDS)
    return [
        Row(f"100 candidates, sampler {name}", min(seconds), "s", 0.2)
        for name, seconds in times.items()
    ]


def _optuna() -> None:
    """100 draws of the adaptive sampler; each gets a simulated result before the next draw.

    Includes writing and reading the files.
    """
    from benchmarks.simulated import simulated_result
    from tinynet_search.config import load_config
    from tinynet_search.plan.plan import make_plan
    from tinynet_search.search.adaptive import AdaptiveSource
    from tinynet_search.search.state import SearchState
    from tinynet_search.store.directory import Candidate, SearchStore
    from trainables.trial_folder import result_name

    config = load_config(
        preset="demo", settings=['space.name="efficientnet_b0"', 'search.sampler="optuna"']
    )
    with tempfile.TemporaryDirectory() as scratch:
        store = SearchStore(scratch)
        state = SearchState(trials=100, epochs=1, adaptive=True, stop_at_failed=1.0, candidates=[])
        source = AdaptiveSource(make_plan(config.resolve()), store, state, lambda drawn: None)
        while isinstance(candidate := source.next(), Candidate):
            result = simulated_result(candidate.spec, candidate.run, 0.0, candidate.network)
            store.write_json(result_name(candidate.run), result.to_json())
            state.ended(candidate.run, store.summary(candidate.run))
            source.done(candidate)
