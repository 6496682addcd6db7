"""Checks of training results: bf16 accuracy, memory, batch norm, resuming and the packed reader.

``benchmarks.gpu.check`` runs them.
"""

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
from benchmarks.synthetic import NullFolder, Ready, ready_batch, spec_of
from search_spaces import get_space
from search_spaces.networks import get_named
from trainables.data import MicroBatch, open_data
from trainables.evaluation import evaluate
from trainables.execution import Execution
from trainables.modules import prepare_module
from trainables.recipe import get_recipe
from trainables.result import EpochRecord
from trainables.spec import LocalReporter, TrialSpec
from trainables.storage.folder import open_folder
from trainables.trainer import Trainer
from trainables.trial import run_trial

MAX_TOP1_DIFFERENCE = 1.5  # points of top-1 between bf16 and float32
EAGER_FACTORS = (1.2, 2.3)  # eager inference's peak memory / closed form, as on a CPU
MAX_GREY_LEVELS = 2.0


def accuracy(setting: Setting) -> Outcome:
    """Require that short trainings in bf16 and float32 agree within 1.5 points of top-1.

    Top-1 is the mean over the seeds.
    """
    settings = {"name": "petals", "cache": str(setting.scratch)} | (
        {"train": 96, "val": 48} if setting.tiny else {}
    )
    tops: dict[str, list[float]] = {}
    for seed in range(setting.pick(3, 1)):
        for precision in ("bf16", "float32"):
            spec = petals(settings, seed, setting.pick(10, 1))
            root = setting.scratch / precision
            result = run_trial(
                spec, str(root), LocalReporter(), Execution(precision=precision, compile="off")
            )
            if result.metrics is None or not math.isfinite(result.metrics.train_loss):
                return Outcome(False, f"{precision}, seed {seed}: {result.reason}, {result.detail}")
            tops.setdefault(precision, []).append(result.metrics.top1)
    bf16, float32 = mean(tops["bf16"]), mean(tops["float32"])
    difference = abs(bf16 - float32)
    text = f"top-1 {bf16:.1f} in bf16, {float32:.1f} in float32: difference {difference:.1f} points"
    return Outcome(
        None if setting.tiny else difference <= MAX_TOP1_DIFFERENCE,
        text,
        {"top1": tops, "points_apart": difference},
    )


def petals(
    settings: Mapping[str, Any],
    seed: int,
    epochs: int,
    space: str = "efficientnet_mini",
    r: float = 1.0,
) -> TrialSpec:
    """The spec of a short training on petals; r, d and w all equal ``r``."""
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
    """Require that a small ResNet-50 and a small GhostNet-A train with finite losses."""
    settings = {
        "name": "petals",
        "cache": str(setting.scratch),
        "train": setting.pick(960, 48),
        "val": setting.pick(240, 24),
    }
    losses = {}
    for space in ("resnet50", "ghostnet_a"):
        spec = petals(settings, 0, setting.pick(3, 1), space, 0.25 if setting.tiny else 0.5)
        result = run_trial(
            spec, str(setting.scratch / space), LocalReporter(), Execution(compile="off")
        )
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
    """Require that peak memory follows the batch size in training and the closed form in inference.

    The peak of training steps must grow by a constant amount per image.
    """
    setting.need_gpu("a CPU's allocator does not report its peak")
    network = get_named("tinynet_a").network()
    peaks = {}
    for batch in (32, 64, 128):
        torch.cuda.reset_peak_memory_stats()
        data = Ready(ready_batch(network, batch, setting.device), 3, network.num_classes)
        recipe = get_recipe("efficientnet", batch=batch, micro_batch=batch, epochs=1)
        Trainer(
            spec_of(network, recipe, data),
            data,
            NullFolder(),
            LocalReporter(),
            Execution(compile="off"),
        ).run()
        peaks[batch] = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.empty_cache()
    factors = {
        name: _inference_factor(name)
        for name in ("efficientnet_b0", "tinynet_a", "tinynet_e", "resnet50", "ghostnet_a")
    }
    small, large = ((peaks[2 * b] - peaks[b]) / b for b in (32, 64))
    is_linear = abs(large / small - 1) < 0.3
    within = all(EAGER_FACTORS[0] <= factor <= EAGER_FACTORS[1] for factor in factors.values())
    text = ", ".join(f"{batch}: {peak:.0f} MB" for batch, peak in peaks.items())
    eager = ", ".join(f"{name} {factor:.2f}" for name, factor in factors.items())
    figures = {"peak_mb": peaks, "inference_over_closed_form": factors}
    return Outcome(
        is_linear and within,
        f"TinyNet-A trained at batch {text} ({large:.1f} MB per image); "
        f"eager / closed form {eager}",
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
    """Require that a micro-batch too large for any GPU yields a failed result.

    Its memory must be freed afterwards.
    """
    setting.need_gpu("on a CPU the operating system would kill the process")
    settings = {"name": "petals", "cache": str(setting.scratch), "train": 4096, "val": 24}
    spec = petals(settings, 0, 1, "efficientnet_b0", 1.2)
    recipe = get_recipe("efficientnet", epochs=1, batch=4096, micro_batch=4096, augment="shift")
    before = torch.cuda.memory_allocated()
    result = run_trial(replace(spec, recipe=recipe), str(setting.scratch), LocalReporter())
    kept = (torch.cuda.memory_allocated() - before) / 2**20
    passed = result.status == "failed" and result.reason == "out of memory" and kept < 64
    return Outcome(
        passed,
        f"{result.status}, {result.reason}; {kept:.0f} MB not freed",
        {"kept_mb": kept},
    )


def sync_bn(setting: Setting) -> Outcome:
    """Require that batch norm is converted to the synchronised class without changing the loss.

    With a single rank there is nothing to synchronise, so the loss of a step must equal that of
    plain batch norm.
    """
    setting.need_gpu("NCCL runs on GPUs only")
    dist.init_process_group(
        "nccl", init_method=f"file://{setting.scratch / 'group'}", rank=0, world_size=1
    )
    try:
        network = get_named("tinynet_e").network()
        recipe = get_recipe("efficientnet", sync_bn=True)
        images, labels = ready_batch(network, 32, setting.device)
        losses = []
        for ranks in (1, 2):  # batch norm is converted for two or more ranks
            torch.manual_seed(0)
            model = prepare_module(network.build(), recipe, ranks).to(
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
    difference = abs(losses[1] / losses[0] - 1)
    text = "class conversion only, the rest needs two GPUs: "
    text += f"loss {losses[1]:.4f}, plain {losses[0]:.4f}"
    return Outcome(
        converted and difference < 1e-3, text, {"losses": losses, "converted": converted}
    )


class _Stopped(BaseException):
    """Simulates the end of the process."""


@dataclass
class _StopsAfter:
    """Reporter that ends the training after an epoch."""

    epoch: int
    rank: int = 0
    world_size: int = 1

    def report(self, record: EpochRecord) -> None:
        if record.epoch == self.epoch:
            raise _Stopped


def resume(setting: Setting) -> Outcome:
    """Require that a training stopped after half its epochs resumes with the remaining epochs.

    Its last loss must be within 5 % of that of an uninterrupted training.
    """
    count = setting.pick(4, 2)
    settings = {
        "name": "petals",
        "cache": str(setting.scratch),
        "train": setting.pick(960, 96),
        "val": setting.pick(240, 48),
    }
    spec, data = petals(settings, 0, count), open_data(settings)
    execution = Execution(compile="off")
    uninterrupted = Trainer(spec, data, NullFolder(), LocalReporter(), execution).run()[-1]
    root = open_folder(setting.scratch / "stopped")
    with suppress(_Stopped):
        Trainer(spec, data, root, _StopsAfter(count // 2), execution).run()
    reporter = _EpochCounter()
    epochs = Trainer(spec, data, root, reporter, execution).run()
    loss_resumed, loss = epochs[-1].train_loss, uninterrupted.train_loss
    difference = abs(loss_resumed / loss - 1)
    text = f"last epoch's loss {loss_resumed:.4f} resumed, {loss:.4f} uninterrupted; "
    text += f"{reporter.epochs} of {count} epochs after the stop"
    passed = reporter.epochs == count - count // 2 and len(epochs) == count and difference < 0.05
    return Outcome(passed, text, {"loss_resumed": loss_resumed, "loss": loss})


@dataclass
class _EpochCounter:
    """Reporter that counts epochs."""

    epochs: int = 0
    rank: int = 0
    world_size: int = 1

    def report(self, record: EpochRecord) -> None:
        self.epochs += 1


class _ImageRecorder(torch.nn.Module):
    """A model of 24 classes that stores its last input images."""

    images: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        return images.new_zeros(len(images), 24)


def packed(setting: Setting) -> Outcome:
    """Compare the packed reader's crops on the device with those on the host.

    They must agree within two grey levels of 255. An evaluation in bf16 must get bit-identical
    images, because it reads outside of autocast. The outcome also reports the difference that
    autocast would cause in the reader.
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
    val = [batch.indices]
    differences = []
    for on_device, on_host in (
        (device.train([batch]), host.train([batch])),
        (device.val(val), host.val(val)),
    ):
        images, labels = next(iter(on_device))
        expected, expected_labels = next(iter(on_host))
        if labels.cpu().tolist() != expected_labels.tolist():
            return Outcome(False, "the labels differ")
        differences.append(_grey_levels(images, expected))
    recorder = _ImageRecorder()
    (expected, _), (plain, _) = next(iter(host.val(val))), next(iter(device.val(val)))
    evaluate(recorder, device.val(val), setting.device, bf16=True)
    same = torch.equal(recorder.images, plain)
    with torch.autocast(setting.device.type, torch.bfloat16):
        under_autocast = _grey_levels(next(iter(device.val(val)))[0], expected)
    training, evaluation = differences
    text = (
        f"mean difference {training:.2f} grey levels in training, {evaluation:.2f} in evaluation; "
    )
    text += f"{'the same images' if same else 'DIFFERENT images'} in bf16 "
    text += f"({under_autocast:.2f} if read under autocast)"
    return Outcome(
        same and max(differences) <= MAX_GREY_LEVELS,
        text,
        {"grey_levels": differences, "same_in_bf16": same, "under_autocast": under_autocast},
    )


def _grey_levels(images: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean absolute difference of normalised images in grey levels of 255."""
    return float((images.cpu().float() - expected).abs().mean()) * 255 * 0.226
