"""Checks of speed and memory: throughput, layouts, compilation, and trials that share one GPU."""

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
from benchmarks.synthetic import Nowhere, Ready, ready_batch, spec_of
from benchmarks.turns import in_turns_with
from search_spaces import Network, get_space
from search_spaces.networks import get_named
from trainables.execution import Execution
from trainables.modules import pick_device
from trainables.recipe import Recipe, get_recipe
from trainables.result import EpochRecord
from trainables.spec import Alone
from trainables.trainer import Trainer

PAPER = ("efficientnet_b0", "tinynet_a", "tinynet_b", "tinynet_c", "tinynet_d", "tinynet_e")
AT_ONCE = (1, 2, 4)
NOISE = 0.95
WAIT = 100.0  # seconds after which a trial that waits for its neighbours gives up


def throughput(setting: Setting) -> Outcome:
    """EfficientNet-B0 and TinyNet-A to E: each must be as fast as the one before or faster, in inference and in training."""
    names = ("tinynet_d", "tinynet_e") if setting.tiny else PAPER
    figures = {name: _rates(get_named(name).network(), setting) for name in names}
    told = ", ".join(
        f"{name} {inferred:.0f}/{trained:.0f}" for name, (inferred, trained) in figures.items()
    )
    rising = all(NOISE * a[k] <= b[k] for a, b in pairwise(figures.values()) for k in (0, 1))
    rates = {
        name: {"inference": inferred, "training": trained}
        for name, (inferred, trained) in figures.items()
    }
    return Outcome(
        rising if setting.gpu else None,
        f"images/s, inference/training: {told}",
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
    return Trainer(spec_of(network, recipe, data), data, Nowhere(), Alone(), execution).run()


def _recipe(batch: int, epochs: int) -> Recipe:
    return get_recipe("efficientnet", batch=batch, micro_batch=batch, epochs=epochs)


def _seconds(call: Callable[[], object], setting: Setting) -> float:
    wait(setting.device)
    started = time.perf_counter()
    call()
    wait(setting.device)
    return time.perf_counter() - started


def channels_last(setting: Setting) -> Outcome:
    """channels_last against the default layout, forward and backward of EfficientNet-B0: the loop always uses it."""
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
    """torch.compile against eager, a whole training step of TinyNet-E."""
    if setting.tiny:
        raise Skipped(
            "compiling takes a minute: python -m benchmarks.run train_speed does it on a CPU"
        )
    network, batch, steps = get_named("tinynet_e").network(), 256, 30
    eager, data = (
        _recipe(batch, 7),
        Ready(ready_batch(network, batch, setting.device), steps, network.num_classes),
    )

    def other() -> float:
        return median(
            epoch.images_per_s
            for epoch in trained_epochs(network, data, _recipe(batch, 2), Execution(compile="off"))[
                1:
            ]
        )

    turns = in_turns_with(other, network, eager, data, Execution(compile="on"))
    figures = {"compiled": turns.ours, "eager": turns.others, "ratio": turns.ratio}
    told = (
        f"{turns.ratio:.2f} times eager's speed ({turns.ours:.0f} and {turns.others:.0f} images/s)"
    )
    return Outcome(turns.ratio >= 1 if setting.gpu else None, told, figures)


def sharing(setting: Setting) -> Outcome:
    """Small trials in processes of their own on one GPU: together they must be faster than one after another."""
    counts = (1, 2) if setting.tiny else AT_ONCE
    seconds = {count: _together(count, setting) for count in counts}
    gains = {count: count * seconds[1] / seconds[count] for count in counts[1:]}
    told = ", ".join(
        f"{count} at once {gain:.2f} times one after another" for count, gain in gains.items()
    )
    figures = {"seconds": seconds, "gains": gains}
    return Outcome(gains[counts[-1]] > 1 if setting.gpu else None, told, figures)


def _together(count: int, setting: Setting) -> float:
    """Seconds from the moment all have warmed up until the last is done."""
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
    if any(process.exitcode for process in processes):
        raise RuntimeError(
            f"{count} trials at once ended with exit codes {[process.exitcode for process in processes]}"
        )
    spans = [results.get() for _ in range(count)]
    return max(end for _, end in spans) - min(start for start, _ in spans)


@dataclass
class _Warmed:
    """Waits for the neighbours after the first epoch, and notes the time then."""

    barrier: Any
    started: float = 0.0
    rank: int = 0
    world_size: int = 1

    def report(self, record: EpochRecord) -> None:
        if record.epoch == 1:
            self.barrier.wait(WAIT)
            self.started = time.time()


def _trial(barrier: Any, results: Any, batch: int, steps: int, epochs: int) -> None:
    torch.set_num_threads(1)
    device, network = pick_device(), get_space("efficientnet_mini").network((1, 1, 1))
    data = Ready(ready_batch(network, batch, device), steps, network.num_classes)
    reporter = _Warmed(barrier)
    Trainer(
        spec_of(network, _recipe(batch, epochs), data),
        data,
        Nowhere(),
        reporter,
        Execution(compile="off"),
    ).run()
    wait(device)
    results.put((reporter.started, time.time()))
