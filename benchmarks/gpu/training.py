"""Checks of what is computed: accuracy in bf16, memory and its end, synchronised batch norm, resuming, the packed reader."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.gpu.setting import Outcome, Setting
from benchmarks.synthetic import Nowhere, Ready, ready_batch, spec_of
from search_spaces import get_space
from search_spaces.networks import get_named
from trainables.data import MicroBatch, open_data
from trainables.evaluation import evaluate
from trainables.execution import Execution
from trainables.modules import prepared
from trainables.recipe import get_recipe
from trainables.result import EpochRecord
from trainables.spec import Alone, TrialSpec
from trainables.storage.folder import open_folder
from trainables.trainer import Trainer
from trainables.trial import run_trial

POINTS = 1.5  # of top-1 between bf16 and float32
EAGER = (1.2, 2.3)  # eager inference's peak over the closed form's, as on a CPU
GREY_LEVELS = 2.0


def accuracy(setting: Setting) -> Outcome:
    """A short real training in bf16 and in float32: mean top-1 over the seeds within 1.5 points."""
    settings = {"name": "petals", "cache": str(setting.scratch)} | (
        {"train": 96, "val": 48} if setting.tiny else {}
    )
    tops: dict[str, list[float]] = {}
    for seed in range(setting.pick(3, 1)):
        for precision in ("bf16", "float32"):
            spec = petals(settings, seed, setting.pick(10, 1))
            root = setting.scratch / precision
            result = run_trial(
                spec, str(root), Alone(), Execution(precision=precision, compile="off")
            )
            if result.metrics is None or not math.isfinite(result.metrics.train_loss):
                return Outcome(False, f"{precision}, seed {seed}: {result.reason}, {result.detail}")
            tops.setdefault(precision, []).append(result.metrics.top1)
    apart = abs(mean(tops["bf16"]) - mean(tops["float32"]))
    told = f"top-1 {mean(tops['bf16']):.1f} in bf16, {mean(tops['float32']):.1f} in float32: {apart:.1f} points apart"
    return Outcome(
        None if setting.tiny else apart <= POINTS, told, {"top1": tops, "points_apart": apart}
    )


def petals(
    settings: Mapping[str, Any],
    seed: int,
    epochs: int,
    space: str = "efficientnet_mini",
    r: float = 1.0,
) -> TrialSpec:
    data, recipe = open_data(settings), get_recipe("short", epochs=epochs)
    chosen = get_space(space)
    return TrialSpec(
        chosen.name,
        chosen.version,
        (r, r, r),
        24,
        recipe,
        dict(settings),
        data.fingerprint,
        seed,
    )


def families(setting: Setting) -> Outcome:
    """A small ResNet-50 and a small GhostNet-A train with finite losses."""
    settings = {
        "name": "petals",
        "cache": str(setting.scratch),
        "train": setting.pick(960, 48),
        "val": setting.pick(240, 24),
    }
    losses = {}
    for space in ("resnet50", "ghostnet_a"):
        spec = petals(settings, 0, setting.pick(3, 1), space, 0.25 if setting.tiny else 0.5)
        result = run_trial(spec, str(setting.scratch / space), Alone(), Execution(compile="off"))
        losses[space] = [epoch.train_loss for epoch in result.epochs]
        if not result.finished:
            return Outcome(False, f"{space}: {result.reason}, {result.detail}", losses)
    finite = all(math.isfinite(loss) for row in losses.values() for loss in row)
    return Outcome(
        finite,
        "; ".join(f"{space} loss {row[0]:.2f} to {row[-1]:.2f}" for space, row in losses.items()),
        losses,
    )


def memory(setting: Setting) -> Outcome:
    """Peak memory of training steps grows with the batch by a constant an image; of inference, by the closed form."""
    setting.need_gpu("a CPU's allocator does not count")
    network = get_named("tinynet_a").network()
    peaks = {}
    for batch in (32, 64, 128):
        torch.cuda.reset_peak_memory_stats()
        data = Ready(ready_batch(network, batch, setting.device), 3, network.num_classes)
        recipe = get_recipe("efficientnet", batch=batch, micro_batch=batch, epochs=1)
        Trainer(
            spec_of(network, recipe, data), data, Nowhere(), Alone(), Execution(compile="off")
        ).run()
        peaks[batch] = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.empty_cache()
    factors = {
        name: _inference_factor(name)
        for name in ("efficientnet_b0", "tinynet_a", "tinynet_e", "resnet50", "ghostnet_a")
    }
    small, large = ((peaks[2 * b] - peaks[b]) / b for b in (32, 64))
    straight = abs(large / small - 1) < 0.3
    within = all(EAGER[0] <= factor <= EAGER[1] for factor in factors.values())
    told = ", ".join(f"{batch}: {peak:.0f} MB" for batch, peak in peaks.items())
    eager = ", ".join(f"{name} {factor:.2f}" for name, factor in factors.items())
    figures = {"peak_mb": peaks, "inference_over_closed_form": factors}
    return Outcome(
        straight and within,
        f"TinyNet-A trained at batch {told} ({large:.1f} MB an image); eager / closed form {eager}",
        figures,
    )


def _inference_factor(name: str) -> float:
    network = get_named(name).network()
    module, image = (
        network.build().eval().cuda(),
        torch.zeros(1, 3, network.resolution, network.resolution).cuda(),
    )
    with torch.inference_mode():
        module(image)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        module(image)
    return (torch.cuda.max_memory_allocated() - before + image.nbytes) / network.activation_bytes


def out_of_memory(setting: Setting) -> Outcome:
    """A micro-batch that no GPU holds is a result, and its memory is given back."""
    setting.need_gpu("a CPU's system would end the process")
    settings = {"name": "petals", "cache": str(setting.scratch), "train": 4096, "val": 24}
    spec = petals(settings, 0, 1, "efficientnet_b0", 1.2)
    recipe = get_recipe("efficientnet", epochs=1, batch=4096, micro_batch=4096, augment="shift")
    before = torch.cuda.memory_allocated()
    result = run_trial(replace(spec, recipe=recipe), str(setting.scratch), Alone())
    kept = (torch.cuda.memory_allocated() - before) / 2**20
    passed = result.status == "failed" and result.reason == "out of memory" and kept < 64
    return Outcome(
        passed,
        f"{result.status}, {result.reason}; {kept:.0f} MB kept after it",
        {"kept_mb": kept},
    )


def sync_bn(setting: Setting) -> Outcome:
    """Batch norm is converted to the synchronised class, and a step is the plain one's: one rank has nothing to synchronise."""
    setting.need_gpu("NCCL has no other ranks")
    dist.init_process_group(
        "nccl", init_method=f"file://{setting.scratch / 'group'}", rank=0, world_size=1
    )
    try:
        network = get_named("tinynet_e").network()
        recipe = get_recipe("efficientnet", sync_bn=True)
        images, labels = ready_batch(network, 32, setting.device)
        losses = []
        for ranks in (1, 2):  # from two ranks on batch norm is converted
            torch.manual_seed(0)
            model = prepared(network.build(), recipe, ranks).to(
                setting.device, memory_format=torch.channels_last
            )  # type: ignore[call-overload]
            loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
            loss.backward()
            losses.append(loss.item())
            converted = any(
                isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()
            )
    finally:
        dist.destroy_process_group()
    apart = abs(losses[1] / losses[0] - 1)
    told = f"class conversion only; two GPUs are needed for the rest: loss {losses[1]:.4f}, plain {losses[0]:.4f}"
    return Outcome(converted and apart < 1e-3, told, {"losses": losses, "converted": converted})


class _Stopped(BaseException):
    """As if the process had been ended."""


@dataclass
class _StopsAfter:
    epoch: int
    rank: int = 0
    world_size: int = 1

    def report(self, record: EpochRecord) -> None:
        if record.epoch == self.epoch:
            raise _Stopped


def resume(setting: Setting) -> Outcome:
    """A training that is stopped after half its epochs and taken up again ends as one that was not."""
    count = setting.pick(4, 2)
    settings = {
        "name": "petals",
        "cache": str(setting.scratch),
        "train": setting.pick(960, 96),
        "val": setting.pick(240, 48),
    }
    spec, data = petals(settings, 0, count), open_data(settings)
    execution = Execution(compile="off")
    through = Trainer(spec, data, Nowhere(), Alone(), execution).run()[-1]
    root = open_folder(setting.scratch / "stopped")
    with suppress(_Stopped):
        Trainer(spec, data, root, _StopsAfter(count // 2), execution).run()
    second = _Counted()
    epochs = Trainer(spec, data, root, second, execution).run()
    resumed = epochs[-1]
    apart = abs(resumed.train_loss / through.train_loss - 1)
    told = f"last epoch's loss {resumed.train_loss:.4f} resumed, {through.train_loss:.4f} in one go; {second.epochs} of {count} epochs"
    passed = second.epochs == count - count // 2 and len(epochs) == count and apart < 0.05
    return Outcome(passed, told, {"loss_resumed": resumed.train_loss, "loss": through.train_loss})


@dataclass
class _Counted:
    epochs: int = 0
    rank: int = 0
    world_size: int = 1

    def report(self, record: EpochRecord) -> None:
        self.epochs += 1


class _Seen(torch.nn.Module):
    """A model of 24 classes that keeps the images it was given."""

    images: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        return images.new_zeros(len(images), 24)


def packed(setting: Setting) -> Outcome:
    """The packed reader's crops made on the device against those made in the host: within two grey levels of 255.

    Once more as an evaluation in bf16 gets them, which must be the same to the bit: it reads outside of autocast. What
    autocast would do to the reader is told beside it.
    """
    from benchmarks.jpegs import make_tree
    from trainables.data.packed.dataset import PackedData
    from trainables.data.packed.loader import PackedLoader
    from trainables.data.packed.packing import Packing
    from trainables.data.sources.imagefolder import ImageFolderData

    files, store = setting.scratch / "files", setting.scratch / "packed"
    make_tree(files, setting.pick(480, 24), 24, photos=not setting.tiny)
    Packing(ImageFolderData(str(files)), Path(store), 384).pack(1, "fail")
    data, recipe = PackedData(str(store)), get_recipe("efficientnet")
    pixels = setting.pick(192, 32)
    host = PackedLoader(
        data.train, data.val, pixels, recipe, torch.device("cpu"), resample="native"
    )
    device = PackedLoader(data.train, data.val, pixels, recipe, setting.device, resample="matmul")
    batch = MicroBatch(np.arange(24), seed=1)
    worst = []
    for ours, other in (
        (device.train([batch]), host.train([batch])),
        (device.val([batch.indices]), host.val([batch.indices])),
    ):
        (images, labels), (expected, same) = next(iter(ours)), next(iter(other))
        if labels.cpu().tolist() != same.tolist():
            return Outcome(False, "the labels differ")
        worst.append(_grey_levels(images, expected))
    val, seen = [batch.indices], _Seen()
    (expected, _), (plain, _) = next(iter(host.val(val))), next(iter(device.val(val)))
    evaluate(seen, device.val(val), setting.device, bf16=True)
    same = torch.equal(seen.images, plain)
    with torch.autocast(setting.device.type, torch.bfloat16):
        within = _grey_levels(next(iter(device.val(val)))[0], expected)
    told = f"mean difference {worst[0]:.2f} grey levels in training, {worst[1]:.2f} in evaluation, in bf16 "
    told += f"{'the same images' if same else 'OTHER images'} ({within:.2f} were it read under autocast)"
    return Outcome(
        same and max(worst) <= GREY_LEVELS,
        told,
        {"grey_levels": worst, "same_in_bf16": same, "under_autocast": within},
    )


def _grey_levels(images: torch.Tensor, expected: torch.Tensor) -> float:
    return float((images.cpu().float() - expected).abs().mean()) * 255 * 0.226
