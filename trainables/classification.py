"""The training loop of one image classifier: trains, evaluates raw and averaged weights, commits every epoch, resumes.

It knows nothing of Ray: it takes a trial, data, the search directory and a reporter. With several ranks (an
initialised ``torch.distributed``) each takes its share of a step's micro-batches; what is computed is the same.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from trainables.checkpoint import State, final_weights, load_checkpoint, newest_epoch, save_checkpoint
from trainables.data import ImageData, MicroBatch, Reading
from trainables.execution import Execution
from trainables.folder import Folder
from trainables.optim import Average, MicroBatchStatistics, make_optimizer, set_lr
from trainables.recipe import Recipe, ema_decay_at, lr_at
from trainables.trial import CONFIG_FILE, WEIGHTS_FILE, Reporter, TrialFailure, TrialSpec, describe

# Independent streams of one trial's seed.
ORDER, AUGMENT = 1, 2


class Trainer:
    """One training. ``run`` returns (the last epoch's metrics, every epoch's)."""

    def __init__(self, spec: TrialSpec, data: ImageData, root: Folder, reporter: Reporter, execution: Execution | None = None) -> None:
        self.spec, self.data, self.reporter = spec, data, reporter
        self.recipe: Recipe = spec.get_recipe()
        self.folder, self.root = root.sub(spec.folder), root
        self.device = pick_device()
        self.execution = execution or Execution()
        self.chosen = self.execution.on(self.device)
        self.steps = data.train_size // self.recipe.batch
        self._check()
        torch.manual_seed(spec.seed)
        network = spec.network()
        model = network.build(drop_rate=self.recipe.dropout, drop_path_rate=self.recipe.drop_path)
        self.model = prepared(model, self.recipe).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = State(self.model, Average(self.model), make_optimizer(self.recipe, self.model), [])
        self.statistics = MicroBatchStatistics(self.model) if self.recipe.micro_batches > 1 else None
        reading = Reading(self.execution.loader_workers, self.chosen.pinned)
        self.loader = data.loader(network.resolution, self.recipe, self.device, reading)
        self.parallel: nn.Module = self.model
        if reporter.world_size > 1:
            self.parallel = DistributedDataParallel(self.model, forward_sync_buffers=False)

    def run(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        self._resume()
        for epoch in range(self.state.epoch, self.recipe.epochs):
            record = self._epoch(epoch)
            self.state.epochs.append(record)
            if self.reporter.rank == 0:
                save_checkpoint(self.folder, self.spec.run, self.state)
            self.reporter.report({"epochs_done": epoch + 1, **record})
        if self.reporter.rank == 0:
            self._finish()
        return self.state.epochs[-1], self.state.epochs

    def _check(self) -> None:
        share, world = self.recipe.micro_batches, self.reporter.world_size
        if share % world:
            raise TrialFailure("recipe", f"{world} workers cannot share {share} micro-batches a step: use a divisor of {share}")
        if self.steps < 1:
            raise TrialFailure("data", f"{self.data.train_size} training images are fewer than the batch of {self.recipe.batch}")

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint; rank 0 says which, so that all ranks take the same."""
        epoch = newest_epoch(self.folder, self.spec.run) if self.reporter.rank == 0 else 0
        epoch = int(self._summed(torch.tensor([float(epoch)], device=self.device)).item())
        if epoch:
            load_checkpoint(self.folder, self.spec.run, epoch, self.state)

    def _epoch(self, epoch: int) -> dict[str, Any]:
        started = time.perf_counter()
        self.model.train()
        loss = 0.0
        shares = self._shares(epoch)
        batches = self.loader.train([batch for share in shares for batch in share])
        for step, share in enumerate(shares):
            value = self._step(epoch * self.steps + step, share, batches)
            if not math.isfinite(value):
                raise TrialFailure("diverged", f"loss {value} at epoch {epoch + 1}, step {step + 1} of {self.steps}")
            loss += value / self.steps
        trained = time.perf_counter() - started
        scores = {"raw": self._top1()}
        self.state.average.swap()
        scores["ema"] = self._top1()
        self.state.average.swap()
        return {
            "epoch": epoch + 1,
            "ts": int(time.time() * 1000),
            "lr": lr_at(self.recipe, (epoch + 1) * self.steps - 1, self.steps),
            "train_loss": loss,
            "top1": scores[self.recipe.ranks],
            "top1_raw": scores["raw"],
            "top1_ema": scores["ema"],
            "seconds": round(time.perf_counter() - started, 3),
            "images_per_s": round(self.steps * self.recipe.batch / trained, 1),
        }

    def _shares(self, epoch: int) -> list[list[MicroBatch]]:
        """This rank's micro-batches of each step: the k-th of a step is the same images and seed on any number of ranks."""
        order = np.random.default_rng([self.spec.seed, ORDER, epoch]).permutation(self.data.train_size)
        size, count = self.recipe.micro_batch, self.recipe.micro_batches // self.reporter.world_size
        mine = range(self.reporter.rank * count, (self.reporter.rank + 1) * count)

        def micro_batch(step: int, k: int) -> MicroBatch:
            start = step * self.recipe.batch + k * size
            return MicroBatch(order[start : start + size], stream_seed(self.spec.seed, AUGMENT, epoch, step, k))

        return [[micro_batch(step, k) for k in mine] for step in range(self.steps)]

    def _step(self, step: int, share: Sequence[MicroBatch], batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        """One optimizer step over this rank's micro-batches; the mean loss over all of them on all ranks."""
        total = torch.zeros(1, device=self.device)
        if self.statistics:
            self.statistics.begin()
        for k, (micro, (images, labels)) in enumerate(zip(share, batches, strict=False)):
            torch.manual_seed(micro.seed)
            total += self._backward(images, labels, len(share), last=k == len(share) - 1)
            if self.statistics:
                self.statistics.collect()
        if self.statistics:
            self.statistics.finish(self.recipe.micro_batches, self._summed)
        set_lr(self.state.optimizer, lr_at(self.recipe, step, self.steps))
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.average.update(ema_decay_at(self.recipe, step + 1))
        return self._summed(total).item() / self.reporter.world_size

    def _backward(self, images: Tensor, labels: Tensor, per_rank: int, *, last: bool) -> Tensor:
        """Forward and backward of one micro-batch; gradients cross the ranks with a step's last one only."""
        if self.reporter.world_size > 1:
            self.parallel.require_backward_grad_sync = last  # type: ignore[assignment]  # what DDP.no_sync() sets
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.parallel(images)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing) / per_rank
        loss.backward()
        return loss.detach()

    @torch.inference_mode()
    def _top1(self) -> float:
        """Validation accuracy in percent over all ranks, every image counted once."""
        self.model.eval()
        mine = np.arange(self.reporter.rank, self.data.val_size, self.reporter.world_size)
        size = max(self.recipe.micro_batch, 128)
        right = torch.zeros(1, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            for images, labels in self.loader.val([mine[i : i + size] for i in range(0, len(mine), size)]):
                right += (self.model(images).argmax(1) == labels).sum()
        return 100.0 * self._summed(right).item() / self.data.val_size

    def _finish(self) -> None:
        """The weights that ``top1`` belongs to, and everything needed to build their network again."""
        config = {**self.spec.to_json(), "network": describe(self.spec.network()), "metrics": self.state.epochs[-1]}
        self.folder.write(WEIGHTS_FILE, final_weights(self.state, self.recipe.ranks))
        self.folder.write(CONFIG_FILE, json.dumps(config, indent=1).encode())

    def _summed(self, value: Tensor) -> Tensor:
        if self.reporter.world_size > 1:
            dist.all_reduce(value)
        return value


def pick_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def prepared(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model with the recipe's batch-norm momentum."""
    if recipe.bn_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = recipe.bn_momentum
    return model


def stream_seed(*parts: int) -> int:
    """A 63-bit seed of independent streams: the same for the same parts, on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
