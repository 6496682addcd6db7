"""Training loop of one image classifier: trains, evaluates, checkpoints every epoch and resumes.

Called by ``trainables.trial``. The module does not depend on Ray: its inputs are a trial, data, the
search directory and a reporter.

With several ranks (an initialised ``torch.distributed``) each rank processes its share of a step's
micro-batches; the computation is the same. Gradients are reduced over the ranks as one flat buffer
in a fixed order. DistributedDataParallel reorders its buckets after a process's first step, so with
it a resumed training would sum in a different order than an uninterrupted one.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from search_spaces import Network, RequestError
from trainables.checkpoint import (
    State,
    final_weights,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from trainables.data import ImageData, MicroBatch, Reading
from trainables.evaluation import Scores, evaluate
from trainables.execution import Execution
from trainables.memory import hold_memory
from trainables.modules import compile_module, keep_layout, pick_device, prepare_module, seed
from trainables.optim.flat import FlatBuffers
from trainables.optim.optimizers import Average, StepSums, make_optimizer, set_lr
from trainables.recipe import Recipe, ema_decay_at, lr_at
from trainables.result import EpochRecord, NetworkFigures
from trainables.run_name import RunName
from trainables.spec import Reporter, Stop, TrialFailure, TrialSpec, never_stop
from trainables.stopping import Stopped
from trainables.storage.folder import Folder
from trainables.trial_folder import CONFIG_FILE, WEIGHTS_FILE, shorter_budgets
from trainables.watch import Diverged, LossWatch

# Identifiers of independent random streams derived from a trial's seed.
ORDER, AUGMENT = 1, 2
# Largest evaluation batch, in images, unless the micro-batch is larger.
MAX_EVALUATION_BATCH = 128
# In evaluation an image takes at most a quarter of the memory that it takes in training.
EVALUATION_FACTOR = 4
# Number of steps between two exchanges of stop requests between ranks.
STOP_CHECK_STEPS = 8


class Trainer:
    """The training of one trial; ``run`` returns the figures of every epoch."""

    def __init__(
        self,
        spec: TrialSpec,
        data: ImageData,
        root: Folder,
        reporter: Reporter,
        execution: Execution | None = None,
        stop: Stop = never_stop,
    ) -> None:
        self.spec, self.data, self.reporter, self.stop = spec, data, reporter, stop
        self.recipe: Recipe = spec.recipe
        self.folder, self.root = root.sub(spec.folder), root
        self.device = pick_device()
        hold_memory()
        self.execution = execution or Execution()
        self.steps = data.train_size // self.recipe.batch
        self.resolved = self.execution.resolve(
            self.device, self.recipe.epochs * self.steps * self.recipe.micro_batches
        )
        self._check()
        torch.backends.cudnn.benchmark = self.resolved.autotune
        torch.manual_seed(spec.seed)
        network = spec.network()
        model = prepare_module(build_module(network, self.recipe), self.recipe, reporter.world_size)
        self.model = model.to(self.device, memory_format=self.resolved.layout)  # type: ignore[call-overload]
        self.flat = FlatBuffers(self.model)
        self._broadcast_weights()
        fused = self.flat if self.resolved.fused else None
        self.state = State(
            self.model,
            Average(self.model, self.flat),
            make_optimizer(self.recipe, self.model, fused),
            fused,
        )
        self.sums = StepSums(self.flat.statistics, self.recipe.micro_batches)
        reading = Reading(self.execution.loader_workers, self.resolved.pinned)
        self.loader = data.loader(network.resolution, self.recipe, self.device, reading)
        if self.resolved.channels_last and not self.resolved.compile:
            keep_layout(self.model)
        self.forward: nn.Module = (
            compile_module(self.model) if self.resolved.compile else self.model
        )

    def run(self) -> list[EpochRecord]:
        """Train all remaining epochs; returns the figures of every epoch."""
        self._resume()
        for epoch in range(self.state.epoch, self.recipe.epochs):
            record = self._epoch(epoch)
            self.state.end_epoch(record)
            self._save()
            self.reporter.report(record)
        if self.reporter.rank == 0:
            self._finish()
        return self.state.epochs

    def try_step(self) -> None:
        """Run one optimizer step and one evaluation batch on blank images, to test memory use."""
        pixels, size = self.spec.network().resolution, evaluation_batch_size(self.recipe)
        blank = torch.zeros(size, 3, pixels, pixels, device=self.device).contiguous(
            memory_format=self.resolved.layout
        )
        labels = torch.zeros(size, dtype=torch.int64, device=self.device)
        share = [MicroBatch(np.arange(self.recipe.micro_batch), 0)] * self.recipe.micro_batches
        part = blank[: self.recipe.micro_batch], labels[: self.recipe.micro_batch]
        self.model.train()
        self._step(0, share, iter([part] * len(share))).item()
        evaluate(self.model, [(blank, labels)], self.device, bf16=self.resolved.bf16)

    def _check(self) -> None:
        """Raise TrialFailure for settings that cannot be trained here."""
        share, world = self.recipe.micro_batches, self.reporter.world_size
        if share % world:
            raise TrialFailure(
                "recipe",
                f"{world} workers cannot divide {share} micro-batches per step: "
                f"use a divisor of {share}",
            )
        if self.steps < 1:
            raise TrialFailure(
                "data",
                f"{self.data.train_size} training images are fewer than "
                f"the batch of {self.recipe.batch}",
            )
        if self.recipe.sync_bn and self.device.type != "cuda":
            raise TrialFailure("recipe", "sync_bn: synchronised batch norm requires GPUs")

    def _resume(self) -> None:
        """Resume from the newest checkpoint, or from that of a shorter training of this trial.

        Rank 0 selects the checkpoint, so that all ranks use the same one. Only complete ones count.
        """
        runs = [
            self.spec.run,
            *(shorter_budgets(self.root, self.spec) if self.recipe.extendable else []),
        ]
        # The other ranks contribute zeros, so the sum is rank 0's choice.
        choice = self._newest(runs) if self.reporter.rank == 0 else (0, 0, 0)
        budget, epoch, step = map(
            int, self._all_sum(torch.tensor(choice, device=self.device)).tolist()
        )
        if epoch or step:
            run = self.spec.run.with_epochs(budget)
            load_checkpoint(self.root.sub(f"trials/{run}"), run, epoch, step, self.state)

    def _newest(self, runs: Sequence[RunName]) -> tuple[int, int, int]:
        """Newest checkpoint of the first run that has a complete one.

        Returns:
            (the run's total epochs, epochs done, steps done); zeros if there is none.
        """
        for run in runs:
            epoch, step = newest_checkpoint(self.root.sub(f"trials/{run}"), run)
            if epoch or step:
                return run.epochs, epoch, step
        return 0, 0, 0

    def _broadcast_weights(self) -> None:
        """Copy rank 0's weights to all ranks."""
        if self.reporter.world_size > 1:
            for buffer in (self.flat.parameters, self.flat.others):
                dist.broadcast(buffer, 0)

    def _save(self) -> None:
        """Write a checkpoint on rank 0; raise TrialFailure if the weights are not finite."""
        if not bool(torch.isfinite(self.flat.parameters.sum())):
            raise TrialFailure(
                "diverged",
                f"weights are not finite after step {self.state.step} "
                f"of epoch {self.state.epoch + 1}",
            )
        if self.reporter.rank == 0:
            save_checkpoint(self.folder, self.spec.run, self.state)

    def _epoch(self, epoch: int) -> EpochRecord:
        """Train the rest of one epoch and evaluate; a stop during evaluation saves the steps."""
        started = time.perf_counter()
        before, resumed_at = self.state.seconds, self.state.step
        total = self._train(epoch)
        trained = time.perf_counter() - started
        try:
            raw, ema = self._scores()
        except Stopped:
            if resumed_at < self.steps:
                self.state.step, self.state.loss, self.state.seconds = (
                    self.steps,
                    total,
                    before + trained,
                )
                self._save()
            raise
        if not math.isfinite(raw.loss + ema.loss):
            raise TrialFailure(
                "diverged",
                f"validation loss {raw.loss:g} after epoch {epoch + 1}, "
                f"{ema.loss:g} with averaged weights",
            )
        ranked = ema if self.recipe.ranks == "ema" else raw
        return EpochRecord(
            epoch=epoch + 1,
            ts=int(time.time() * 1000),
            lr=lr_at(self.recipe, (epoch + 1) * self.steps - 1, self.steps),
            train_loss=total / self.steps,
            top1=ranked.top1,
            top5=ranked.top5,
            val_loss=ranked.loss,
            top1_raw=raw.top1,
            top5_raw=raw.top5,
            val_loss_raw=raw.loss,
            top1_ema=ema.top1,
            top5_ema=ema.top5,
            val_loss_ema=ema.loss,
            seconds=round(before + time.perf_counter() - started, 3),
            images_per_s=round((self.steps - resumed_at) * self.recipe.batch / trained, 1),
        )

    def _train(self, epoch: int) -> float:
        """Run the remaining steps of the epoch; return the sum of the epoch's losses."""
        self.model.train()
        started, before = time.perf_counter(), self.state.seconds
        watch = LossWatch(self.spec.num_classes, self.device, self.state.loss)
        shares = self._shares(epoch)
        if not shares:
            return watch.finish()  # the training was stopped during this epoch's evaluation
        batches = self.loader.train([batch for share in shares for batch in share])
        every = self.execution.checkpoint_every_steps
        try:
            for step, share in enumerate(shares, self.state.step):
                stopping = self._stop_requested(step)
                if step > self.state.step and (stopping or (every and step % every == 0)):
                    self.state.step, self.state.loss = step, watch.finish()
                    self.state.seconds = before + time.perf_counter() - started
                    self._save()
                if stopping:
                    raise Stopped
                watch.add(step, self._step(epoch * self.steps + step, share, batches))
            return watch.finish()
        except Diverged as diverged:
            raise TrialFailure(
                "diverged",
                f"loss {diverged.loss:g} at epoch {epoch + 1}, "
                f"step {diverged.step + 1} of {self.steps}",
            ) from None

    def _stop_requested(self, step: int) -> bool:
        """Whether to stop before this step; several ranks decide together, every few steps."""
        if self.reporter.world_size == 1:
            return self.stop()
        if step % STOP_CHECK_STEPS:
            return False
        requested = self.reporter.rank == 0 and self.stop()
        return bool(self._all_sum(torch.tensor(float(requested), device=self.device)).item())

    def _until_stopped(
        self, batches: Iterator[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over an evaluation's batches; raise ``Stopped`` if a stop is requested.

        Several ranks check before the first batch only, because their numbers of batches may
        differ.
        """
        if self._stop_requested(0):
            raise Stopped
        for batch in batches:
            yield batch
            if self.reporter.world_size == 1 and self.stop():
                raise Stopped

    def _shares(self, epoch: int) -> list[list[MicroBatch]]:
        """This rank's micro-batches of each remaining step of the epoch.

        The k-th micro-batch of a step has the same images and seed for any number of ranks.
        """
        order = np.random.default_rng([self.spec.seed, ORDER, epoch]).permutation(
            self.data.train_size
        )
        size, count = self.recipe.micro_batch, self.recipe.micro_batches // self.reporter.world_size
        own = range(self.reporter.rank * count, (self.reporter.rank + 1) * count)

        def micro_batch(step: int, k: int) -> MicroBatch:
            start = step * self.recipe.batch + k * size
            return MicroBatch(
                order[start : start + size], stream_seed(self.spec.seed, AUGMENT, epoch, step, k)
            )

        return [[micro_batch(step, k) for k in own] for step in range(self.state.step, self.steps)]

    def _step(
        self, step: int, share: Sequence[MicroBatch], batches: Iterator[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Run one optimizer step over this rank's micro-batches.

        Returns:
            The mean loss over all micro-batches of all ranks, a scalar.
        """
        self.sums.begin()
        for micro, (images, labels) in zip(share, batches, strict=False):
            seed(micro.seed, self.device)
            self.sums.collect(self._backward(images, labels))
        loss = self.sums.finish(self._all_sum)
        self._all_sum(self.flat.gradients)
        set_lr(self.state.optimizer, lr_at(self.recipe, step, self.steps))
        self.state.optimizer.step()
        self.flat.gradients.zero_()
        self.state.average.update(ema_decay_at(self.recipe, step + 1))
        return loss

    def _backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward pass of one micro-batch; returns its loss.

        The loss is scaled so that gradients summed over a step's micro-batches and ranks are means.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.resolved.bf16):
            logits = self.forward(images)
        loss = functional.cross_entropy(
            logits.float(), labels, label_smoothing=self.recipe.label_smoothing
        )
        (loss / self.recipe.micro_batches).backward()
        return loss.detach()

    def _scores(self) -> list[Scores]:
        """Validation scores of the raw and the averaged weights over all ranks."""
        own = np.arange(self.reporter.rank, self.data.val_size, self.reporter.world_size)
        size = evaluation_batch_size(self.recipe)
        batches = self._until_stopped(
            self.loader.val([own[i : i + size] for i in range(0, len(own), size)])
        )
        weights = (nullcontext, self.state.average.applied)
        return evaluate(
            self.model,
            batches,
            self.device,
            bf16=self.resolved.bf16,
            all_sum=self._all_sum,
            weights=weights,
        )

    def _finish(self) -> None:
        """Write the weights that ``top1`` belongs to and the configuration of their network."""
        config = {
            **self.spec.to_json(),
            "network": NetworkFigures.of(self.spec.network()).to_json(),
            "class_names": list(self.data.class_names),
            "metrics": self.state.epochs[-1].to_json(),
        }
        weights = final_weights(self.state, self.recipe.ranks, self.data.class_names)
        self.folder.write(WEIGHTS_FILE, weights)
        self.folder.write(CONFIG_FILE, json.dumps(config, indent=1).encode())

    def _all_sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        if self.reporter.world_size > 1:
            dist.all_reduce(value)
        return value


def build_module(network: Network, recipe: Recipe) -> nn.Module:
    """Build the module to train.

    Raises:
        TrialFailure: a user's space raised an error. This includes OSError, which otherwise counts
            as a failure of the node.
    """
    try:
        return network.build(drop_rate=recipe.dropout, drop_path_rate=recipe.drop_path)
    except (OSError, RequestError) as error:
        raise TrialFailure("error", f"{type(error).__name__}: {error}"[:500]) from error


def evaluation_batch_size(recipe: Recipe) -> int:
    """Images per evaluation batch, chosen to take no more memory than a training step."""
    return max(
        recipe.micro_batch, min(MAX_EVALUATION_BATCH, EVALUATION_FACTOR * recipe.micro_batch)
    )


def stream_seed(*parts: int) -> int:
    """A 63-bit seed of an independent random stream; a function of ``parts`` on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
