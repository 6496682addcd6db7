"""Training throughput compared with a loop of timm's components and with the machine's limit.

Run by ``python -m benchmarks.run train_speed``.

"Ours" is the public ``Trainer``; its figure is the ``images_per_s`` that every epoch records.
timm's loop is described in ``benchmarks/timm_reference.py``, the floor in ``benchmarks/floor.py``.
Both train the same network on the same preloaded batch, with the same recipe, precision and number
of threads (one). They alternate in one process: one epoch of the ``Trainer``, then the same number
of steps of timm's loop. Neither figure includes evaluation or checkpoints. A turn takes about two
seconds. With fewer steps, reallocating the memory that evaluation released to the system would
weigh more than it does in a real training.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.floor import POINTWISE, floor, matmul_rate, square, wait
from benchmarks.measure import Row
from benchmarks.synthetic import Ready, ready_batch
from benchmarks.timm_reference import TimmLoop
from benchmarks.turns import Turns, in_turns_with
from search_spaces import Network, get_space
from search_spaces.networks import get_named
from trainables.execution import Execution
from trainables.recipe import get_recipe
from trainables.trainer import pick_device

TURNS = 7
RECIPE = "efficientnet"


@dataclass(frozen=True)
class Case:
    """One comparison; ``batch`` and ``steps`` per turn are given as (CPU, GPU)."""

    name: str
    network: Network
    batch: tuple[int, int]
    steps: tuple[int, int]
    target: float = 1.0
    compiled: bool = False


def cases() -> list[Case]:
    """The demo's network, two of its search and three of the paper's; two also compiled."""
    demo, named = get_space("efficientnet_mini").network, get_named
    e = named("tinynet_e").network()
    return [
        Case("demo's network", demo((1, 1, 1)), (48, 512), (30, 40), 1.15),
        Case("demo's at c = .36", demo((0.961, 0.787, 0.425)), (48, 512), (40, 40), 1.15),
        Case("demo's at c = .15", demo((0.717, 0.649, 0.375)), (48, 512), (70, 40), 1.15),
        Case("TinyNet-E", e, (32, 512), (12, 40)),
        Case("TinyNet-C", named("tinynet_c").network(), (16, 256), (6, 30)),
        Case("EfficientNet-B0", named("efficientnet_b0").network(), (8, 128), (5, 30)),
        Case("demo's network, compiled", demo((1, 1, 1)), (48, 512), (40, 40), 1.15, compiled=True),
        Case("TinyNet-E, compiled", e, (32, 512), (12, 40), compiled=True),
    ]


def run() -> list[Row]:
    device = pick_device()
    dtype = torch.bfloat16 if Execution().resolve(device).bf16 else torch.float32
    with benchmark_settings():
        rates = {shape: matmul_rate(shape, device, dtype) for shape in (*POINTWISE, square(device))}
        rows = [
            Row(f"matrix product {a} x {b} by {b} x {c}", rate / 1e9, "GFLOP/s")
            for (a, b, c), rate in rates.items()
        ]
        for case in cases():
            rows += _rows(case, compared(case, device), device, dtype, max(rates.values()))
    return rows


def _rows(
    case: Case, turns: Turns, device: torch.device, dtype: torch.dtype, flops: float
) -> list[Row]:
    least = floor(case.network, case.batch[device.type == "cuda"], flops, device, dtype)
    return [
        Row(f"{case.name}: ours", turns.trainer_rate, "images/s"),
        Row(f"{case.name}: timm's", turns.other_rate, "images/s"),
        Row(f"{case.name}: ours / timm's", turns.ratio, "times", case.target, "above"),
        Row(f"{case.name}: floor's arithmetic", 1e6 * least.arithmetic, "us per image"),
        Row(f"{case.name}: floor's memory", 1e6 * least.memory, "us per image"),
        Row(
            f"{case.name}: ours, of the floor's speed",
            100 * least.seconds * turns.trainer_rate,
            "%",
        ),
    ]


def compared(case: Case, device: torch.device, turns: int = TURNS) -> Turns:
    """Alternate the ``Trainer`` with timm's loop on the same preloaded batch."""
    gpu = device.type == "cuda"
    size, steps = case.batch[gpu], case.steps[gpu]
    recipe = get_recipe(RECIPE, batch=size, micro_batch=size, epochs=turns + 1)
    execution = Execution(compile="on" if case.compiled else "off")
    batch = ready_batch(case.network, size, device)
    loop = TimmLoop(
        case.network, recipe, device, compiled=case.compiled, bf16=execution.resolve(device).bf16
    )

    def timm() -> float:
        return rate(steps * size, device, lambda: loop.train(batch for _ in range(steps)))

    return in_turns_with(
        timm, case.network, recipe, Ready(batch, steps, case.network.num_classes), execution
    )


def rate(images: int, device: torch.device, call: Callable[[], object]) -> float:
    """Images per second of a call that processes ``images``, including the device's queued work."""
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    return images / (time.perf_counter() - started)


@contextmanager
def benchmark_settings() -> Iterator[None]:
    """Set one CPU thread and cuDNN's autotuner inside the context, and restore both after it."""
    threads, autotune = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = autotune
