"""Checks of speed: throughput, memory layouts, compilation, and trials that share one GPU.

``benchmarks.gpu.check`` runs them.
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.floor import wait
from benchmarks.gpu.setting import Outcome, Setting, Skipped
from benchmarks.measure import in_turns, ratio
from benchmarks.synthetic import NullFolder, Ready, ready_batch, spec_of
from benchmarks.turns import in_turns_with
from search_spaces import Network, get_space
from search_spaces.networks import get_named
from trainables.execution import Execution
from trainables.modules import pick_device
from trainables.recipe import Recipe, get_recipe
from trainables.result import EpochRecord
from trainables.spec import LocalReporter
from trainables.trainer import Trainer

PAPER = ("efficientnet_b0", "tinynet_a", "tinynet_b", "tinynet_c", "tinynet_d", "tinynet_e")
CONCURRENT_TRIALS = (1, 2, 4)
NOISE = 0.95  # tolerated ratio of the speeds of a network and the one before it
BARRIER_TIMEOUT = 100.0  # seconds that a trial waits for the other trials to warm up


def throughput(setting: Setting) -> Outcome:
    """Require that EfficientNet-B0 and TinyNet-A to E do not get slower in this order.

    Both inference and training are checked.
    """
    names = ("tinynet_d", "tinynet_e") if setting.tiny else PAPER
    figures = {name: _rates(get_named(name).network(), setting) for name in names}
    text = ", ".join(
        f"{name} {inferred:.0f}/{trained:.0f}" for name, (inferred, trained) in figures.items()
    )
    rising = all(NOISE * a[k] <= b[k] for a, b in pairwise(figures.values()) for k in (0, 1))
    rates = {
        name: {"inference": inferred, "training": trained}
        for name, (inferred, trained) in figures.items()
    }
    return Outcome(
        rising if setting.gpu else None,
        f"images/s, inference/training: {text}",
        {"images_per_s": rates},
    )


def _rates(network: Network, setting: Setting) -> tuple[float, float]:
    batch, steps = setting.pick(256, 2), setting.pick(15, 1)
    model = network.build().eval().to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = Ready(ready_batch(network, batch, setting.device), steps, network.num_classes)
    with (
        torch.inference_mode(),
        torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.bf16),
    ):
        inferred = batch / median(
            _seconds(lambda: model(data.batch[0]), setting) for _ in range(setting.pick(40, 2))
        )
    epochs = trained_epochs(
        network, data, _recipe(batch, setting.pick(4, 2)), Execution(compile="off")
    )
    return inferred, median(epoch.images_per_s for epoch in epochs[1:])


def trained_epochs(
    network: Network, data: Ready, recipe: Recipe, execution: Execution
) -> list[EpochRecord]:
    return Trainer(
        spec_of(network, recipe, data), data, NullFolder(), LocalReporter(), execution
    ).run()


def _recipe(batch: int, epochs: int) -> Recipe:
    return get_recipe("efficientnet", batch=batch, micro_batch=batch, epochs=epochs)


def _seconds(call: Callable[[], object], setting: Setting) -> float:
    wait(setting.device)
    started = time.perf_counter()
    call()
    wait(setting.device)
    return time.perf_counter() - started


def channels_last(setting: Setting) -> Outcome:
    """Compare channels_last, which the training loop always uses, with the default layout.

    Measures the forward and backward pass of EfficientNet-B0.
    """
    network = get_named("tinynet_e" if setting.tiny else "efficientnet_b0").network()
    batch, steps = setting.pick(128, 2), setting.pick(10, 1)
    layouts = {"plain": torch.contiguous_format, "last": torch.channels_last}
    times = in_turns(
        {name: _pass(network, layout, batch, steps, setting) for name, layout in layouts.items()},
        setting.pick(5, 1),
    )
    faster = ratio(times, "plain", "last")
    return Outcome(
        faster >= 1 if setting.gpu else None,
        f"{faster:.2f} times the default layout's speed",
        {"ratio": faster},
    )


def _pass(
    network: Network, layout: torch.memory_format, batch: int, steps: int, setting: Setting
) -> Callable[[], None]:
    model: nn.Module = network.build().to(setting.device, memory_format=layout)  # type: ignore[call-overload]
    images = ready_batch(network, batch, setting.device)[0].contiguous(memory_format=layout)

    def run() -> None:
        for _ in range(steps):
            with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.bf16):
                loss = model(images).float().logsumexp(1).mean()
            loss.backward()
        wait(setting.device)

    return run


def compiled(setting: Setting) -> Outcome:
    """Compare torch.compile with eager mode over complete training steps of TinyNet-E."""
    if setting.tiny:
        raise Skipped("compiling takes a minute: run python -m benchmarks.run train_speed on a CPU")
    network, batch, steps = get_named("tinynet_e").network(), 256, 30
    data = Ready(ready_batch(network, batch, setting.device), steps, network.num_classes)

    def eager() -> float:
        epochs = trained_epochs(network, data, _recipe(batch, 2), Execution(compile="off"))
        return median(epoch.images_per_s for epoch in epochs[1:])

    turns = in_turns_with(eager, network, _recipe(batch, 7), data, Execution(compile="on"))
    compiled_rate, eager_rate = turns.trainer_rate, turns.other_rate
    figures = {"compiled": compiled_rate, "eager": eager_rate, "ratio": turns.ratio}
    rates = f"{compiled_rate:.0f} and {eager_rate:.0f} images/s"
    text = f"{turns.ratio:.2f} times the speed of eager mode ({rates})"
    return Outcome(turns.ratio >= 1 if setting.gpu else None, text, figures)


def sharing(setting: Setting) -> Outcome:
    """Require that concurrent small trials on one GPU are faster than the same trials in sequence.

    Each trial runs in a separate process.
    """
    counts = (1, 2) if setting.tiny else CONCURRENT_TRIALS
    seconds = {count: _concurrent_seconds(count, setting) for count in counts}
    gains = {count: count * seconds[1] / seconds[count] for count in counts[1:]}
    text = ", ".join(
        f"{count} concurrent trials: {gain:.2f} times the sequential speed"
        for count, gain in gains.items()
    )
    figures = {"seconds": seconds, "gains": gains}
    return Outcome(gains[counts[-1]] > 1 if setting.gpu else None, text, figures)


def _concurrent_seconds(count: int, setting: Setting) -> float:
    """Seconds from the end of the warm-up until the last of ``count`` concurrent trials ends."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.SimpleQueue()
    sizes = (setting.pick(48, 4), setting.pick(100, 1), setting.pick(5, 2))  # batch, steps, epochs
    processes = [
        context.Process(target=_trial, args=(barrier, results, *sizes), daemon=True)
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    exit_codes = [process.exitcode for process in processes]
    if any(exit_codes):
        raise RuntimeError(f"{count} concurrent trials ended with exit codes {exit_codes}")
    spans = [results.get() for _ in range(count)]
    return max(end for _, end in spans) - min(start for start, _ in spans)


@dataclass
class _WarmUpBarrier:
    """Reporter that waits for the other trials after the first epoch and records the time."""

    barrier: Any
    started: float = 0.0
    rank: int = 0
    world_size: int = 1

    def report(self, record: EpochRecord) -> None:
        if record.epoch == 1:
            self.barrier.wait(BARRIER_TIMEOUT)
            self.started = time.time()


def _trial(barrier: Any, results: Any, batch: int, steps: int, epochs: int) -> None:
    torch.set_num_threads(1)
    device, network = pick_device(), get_space("efficientnet_mini").network((1, 1, 1))
    data = Ready(ready_batch(network, batch, device), steps, network.num_classes)
    reporter = _WarmUpBarrier(barrier)
    Trainer(
        spec_of(network, _recipe(batch, epochs), data),
        data,
        NullFolder(),
        reporter,
        Execution(compile="off"),
    ).run()
    wait(device)
    results.put((reporter.started, time.time()))
