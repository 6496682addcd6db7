"""The exact closed-form cost of a network, peak memory included, against building it and counting; draws and widths beside it.

The network is TinyNet-C, which timm knows by name, and its (r, d, w) on ResNet-50 and GhostNet-A. What is compared: the
closed form on numbers, on arrays of 100,000 candidates, and four ways to build the module and count what its forward pass
does. For the whole cost the module is built, counted and run operation by operation to see what memory it holds.
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
TWIST = RDW(0.825, 0.85, 0.54)
MANY = 100_000
ROUNDS = 7
# A closed form should be this many times faster than building and counting.
FASTER = 5_000

CLOSED = ("space.network(rdw).macs", "space.macs(r, d, w)", "space.macs(arrays), a candidate")
COUNTED = (
    "build + FlopCounterMode",
    "build + FlopCounterMode, meta device",
    "build + fvcore",
    "timm.create_model + FlopCounterMode",
)
MACS, WHOLE, ARRAYS = "multiply-adds", "whole cost", "whole cost in arrays, a candidate"
BUILT, RUN = "build + FlopCounterMode", "build + FlopCounterMode + a run that watches memory"


def run() -> list[Row]:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        # timm at its import and fvcore at each count.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        rows = [*_costs(), *(row for space in SPACES for row in _whole(space))]
        return [
            *rows,
            *(row for space in SPACES for row in (*_draws(space), *_widths(space))),
            *_samplers(),
        ]


def _costs() -> list[Row]:
    arrays = _twists(B0)
    closed: dict[str, Callable[[], object]] = {
        CLOSED[0]: lambda: B0.network(TWIST).macs,
        CLOSED[1]: lambda: B0.macs(*TWIST),
        CLOSED[2]: lambda: B0.macs(*arrays),
    }
    counted = dict(
        zip(COUNTED, (_flop_counter, _flop_counter_on_meta, _fvcore, _timm), strict=True)
    )
    times = in_turns({**closed, **counted}, ROUNDS, least=0.05)
    times[CLOSED[2]] = [seconds / MANY for seconds in times[CLOSED[2]]]
    exact = B0.network(TWIST).macs
    counts = {name: count() for name, count in counted.items()}
    return [
        *(Row(name, 1e6 * min(times[name]), "us") for name in CLOSED),
        *(Row(name, 1e3 * min(times[name]), "ms") for name in COUNTED),
        *(
            Row(f"{slow} / {fast}", ratio(times, slow, fast), "times", FASTER, "above")
            for fast in CLOSED
            for slow in COUNTED
        ),
        *(
            Row(f"multiply-adds of {name} over the exact ones", count / exact, "times")
            for name, count in counts.items()
        ),
    ]


def _whole(space: SearchSpace) -> list[Row]:
    """Multiply-adds, parameters, activations and peak memory at once, against a build that is counted and run."""
    arrays, network = _twists(space), space.network(TWIST)

    def built_and_run() -> tuple[int, int]:
        module = network.build()
        return int(_counted(module, network.resolution)), FLOAT32_BYTES * measured_peak(
            module, network.resolution
        )

    calls: dict[str, Callable[[], object]] = {
        MACS: lambda: space.macs(*TWIST),
        WHOLE: lambda: space.cost(space.decode(*TWIST), space.num_classes),
        ARRAYS: lambda: space.cost(space.decode(*arrays), space.num_classes),
        BUILT: lambda: _counted(network.build(), network.resolution),
        RUN: built_and_run,
    }
    times = in_turns(calls, ROUNDS, least=0.05)
    times[ARRAYS] = [seconds / MANY for seconds in times[ARRAYS]]
    assert built_and_run() == (network.macs, network.activation_bytes)
    return [
        *(
            Row(f"{space.name}: {name}", 1e6 * min(times[name]), "us")
            for name in (MACS, WHOLE, ARRAYS)
        ),
        *(Row(f"{space.name}: {name}", 1e3 * min(times[name]), "ms") for name in (BUILT, RUN)),
        Row(f"{space.name}: {BUILT} / {MACS}", ratio(times, BUILT, MACS), "times", FASTER, "above"),
        *(
            Row(f"{space.name}: {RUN} / {name}", ratio(times, RUN, name), "times", FASTER, "above")
            for name in (WHOLE, ARRAYS)
        ),
    ]


def _twists(space: SearchSpace) -> np.ndarray:
    """MANY random r, d, w of the space's ranges, the rows of an array."""
    low, high = (np.array([space.ranges[key][edge] for key in "rdw"]) for edge in (0, 1))
    return (low + (high - low) * np.random.default_rng(0).random((MANY, 3))).T


def _flop_counter() -> float:
    network = B0.network(TWIST)
    return _counted(network.build(), network.resolution)


def _flop_counter_on_meta() -> float:
    with torch.device("meta"):
        return _flop_counter()


def _timm() -> float:
    import timm

    return _counted(timm.create_model("tinynet_c"), get_named("tinynet_c").network().resolution)


def _counted(module: nn.Module, resolution: int) -> float:
    """Multiply-adds by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, 3, resolution, resolution))
    return counter.get_total_flops() / 2


def _fvcore() -> float:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    network = B0.network(TWIST)
    images = torch.zeros(1, 3, network.resolution, network.resolution)
    return (
        FlopCountAnalysis(network.build().eval(), images)
        .unsupported_ops_warnings(False)
        .uncalled_modules_warnings(False)
        .total()
    )


def _draws(space: SearchSpace) -> list[Row]:
    """Random candidates drawn and costed: as the rejection sampler does, and with params, activations and memory."""
    calls: dict[str, Callable[[], object]] = {
        "multiply-adds": lambda: space.macs(*_twists(space)),
        "whole cost": lambda: space.cost(space.decode(*_twists(space)), space.num_classes),
    }
    times = in_turns(calls, ROUNDS)
    return [
        Row(f"{space.name}: {MANY:,} random candidates drawn, {name}", min(times[name]), "s", 2.0)
        for name in calls
    ]


def _widths(space: SearchSpace) -> list[Row]:
    """Widths solved where the published formula asks for them: r(c), d(c) at fifty budgets."""
    budgets = np.geomspace(0.06, 0.9, 50)
    found = TinyFormula.load("published").predict(budgets)
    asked = list(zip(budgets.tolist(), found.r_mean.tolist(), found.d_mean.tolist(), strict=True))
    calls: dict[str, Callable[[], object]] = {
        str(i): lambda crd=crd: space.solve_width(*crd) for i, crd in enumerate(asked)
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
    """A hundred draws of the adaptive sampler, each told a made-up result before the next; files included."""
    from benchmarks.simulated import simulated_result
    from tinynet_search.config import load_config
    from tinynet_search.plan.plan import make_plan
    from tinynet_search.search.adaptive import Adaptive
    from tinynet_search.search.state import SearchState
    from tinynet_search.store.directory import Candidate, SearchStore
    from trainables.trial_folder import result_name

    config = load_config(
        preset="demo", settings=['space.name="efficientnet_b0"', 'search.sampler="optuna"']
    )
    with tempfile.TemporaryDirectory() as scratch:
        store = SearchStore(scratch)
        state = SearchState(trials=100, epochs=1, adaptive=True, stop_at_failed=1.0, candidates=[])
        source = Adaptive(make_plan(config.resolve()), store, state, lambda drawn: None)
        while isinstance(found := source.next(), Candidate):
            result = simulated_result(found.spec, found.run, 0.0, found.network)
            store.write_json(result_name(found.run), result.to_json())
            state.ended(found.run, store.summary(found.run))
            source.done(found)
