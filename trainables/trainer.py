"""The training loop of one image classifier: trains, evaluates raw and averaged weights, commits every epoch, resumes.

It knows nothing of Ray: it takes a trial, data, the search directory and a reporter. With several ranks (an
initialised ``torch.distributed``) each takes its share of a step's micro-batches; what is computed is the same. Gradients
cross the ranks as one flat buffer, in one order: DistributedDataParallel orders its buckets anew after a process's first
step, so a training that is taken up would add in another order than one that never stopped.
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
from trainables.modules import compiled, keep_layout, pick_device, prepared, seed
from trainables.optim.flat import Flat
from trainables.optim.optimizers import Average, StepSums, make_optimizer, set_lr
from trainables.recipe import Recipe, ema_decay_at, lr_at
from trainables.result import EpochRecord, NetworkFigures
from trainables.run_name import RunName
from trainables.spec import Reporter, Stop, TrialFailure, TrialSpec, never
from trainables.stopping import Stopped
from trainables.storage.folder import Folder
from trainables.trial_folder import CONFIG_FILE, WEIGHTS_FILE, shorter_budgets
from trainables.watch import Diverged, LossWatch

# Independent streams of one trial's seed.
ORDER, AUGMENT = 1, 2
# Images evaluated at once, and how many training ones take as much memory as one of them at least.
EVALUATED_AT_ONCE, LIGHTER = 128, 4
# Steps between which ranks tell each other that they were asked to end.
AGREED_EVERY = 8


class Trainer:
    """One training. ``run`` returns the figures of every epoch."""

    def __init__(
        self,
        spec: TrialSpec,
        data: ImageData,
        root: Folder,
        reporter: Reporter,
        execution: Execution | None = None,
        stop: Stop = never,
    ) -> None:
        self.spec, self.data, self.reporter, self.stop = spec, data, reporter, stop
        self.recipe: Recipe = spec.recipe
        self.folder, self.root = root.sub(spec.folder), root
        self.device = pick_device()
        hold_memory()
        self.execution = execution or Execution()
        self.steps = data.train_size // self.recipe.batch
        self.chosen = self.execution.on(
            self.device, self.recipe.epochs * self.steps * self.recipe.micro_batches
        )
        self._check()
        torch.backends.cudnn.benchmark = self.chosen.autotune
        torch.manual_seed(spec.seed)
        network = spec.network()
        model = prepared(built(network, self.recipe), self.recipe, reporter.world_size)
        self.model = model.to(self.device, memory_format=self.chosen.layout)  # type: ignore[call-overload]
        self.flat = Flat(self.model)
        self._agree()
        fused = self.flat if self.chosen.fused else None
        self.state = State(
            self.model,
            Average(self.model, self.flat),
            make_optimizer(self.recipe, self.model, fused),
            fused,
        )
        self.sums = StepSums(self.flat.statistics, self.recipe.micro_batches)
        reading = Reading(self.execution.loader_workers, self.chosen.pinned)
        self.loader = data.loader(network.resolution, self.recipe, self.device, reading)
        if self.chosen.channels_last and not self.chosen.compile:
            keep_layout(self.model)
        self.forward: nn.Module = compiled(self.model) if self.chosen.compile else self.model

    def run(self) -> list[EpochRecord]:
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
        """One optimizer step and one batch of evaluation on blank images: do they fit into memory?"""
        pixels, size = self.spec.network().resolution, evaluated_at_once(self.recipe)
        blank = torch.zeros(size, 3, pixels, pixels, device=self.device).contiguous(
            memory_format=self.chosen.layout
        )
        labels = torch.zeros(size, dtype=torch.int64, device=self.device)
        share = [MicroBatch(np.arange(self.recipe.micro_batch), 0)] * self.recipe.micro_batches
        part = blank[: self.recipe.micro_batch], labels[: self.recipe.micro_batch]
        self.model.train()
        self._step(0, share, iter([part] * len(share))).item()
        evaluate(self.model, [(blank, labels)], self.device, bf16=self.chosen.bf16)

    def _check(self) -> None:
        share, world = self.recipe.micro_batches, self.reporter.world_size
        if share % world:
            raise TrialFailure(
                "recipe",
                f"{world} workers cannot share {share} micro-batches a step: use a divisor of {share}",
            )
        if self.steps < 1:
            raise TrialFailure(
                "data",
                f"{self.data.train_size} training images are fewer than the batch of {self.recipe.batch}",
            )
        if self.recipe.sync_bn and self.device.type != "cuda":
            raise TrialFailure("recipe", "sync_bn: synchronised batch norm exists on GPUs only")

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, where there is none from that of a shorter training of the same trial.

        Rank 0 says which, so that all ranks take the same.
        """
        runs = [
            self.spec.run,
            *(shorter_budgets(self.root, self.spec) if self.recipe.continues else []),
        ]
        found = self._newest(runs) if self.reporter.rank == 0 else (0, 0, 0)
        budget, epoch, step = map(
            int, self._summed(torch.tensor(found, device=self.device)).tolist()
        )
        if epoch or step:
            run = self.spec.run.with_epochs(budget)
            load_checkpoint(self.root.sub(f"trials/{run}"), run, epoch, step, self.state)

    def _newest(self, runs: Sequence[RunName]) -> tuple[int, int, int]:
        """(the run's epochs, epochs done, steps done) of the first run that has a whole checkpoint; zeros where none has."""
        for run in runs:
            epoch, step = newest_checkpoint(self.root.sub(f"trials/{run}"), run)
            if epoch or step:
                return run.epochs, epoch, step
        return 0, 0, 0

    def _agree(self) -> None:
        """All ranks start with the weights of the first."""
        if self.reporter.world_size > 1:
            for buffer in (self.flat.parameters, self.flat.others):
                dist.broadcast(buffer, 0)

    def _save(self) -> None:
        if not bool(torch.isfinite(self.flat.parameters.sum())):
            raise TrialFailure(
                "diverged",
                f"weights are no numbers after step {self.state.step} of epoch {self.state.epoch + 1}",
            )
        if self.reporter.rank == 0:
            save_checkpoint(self.folder, self.spec.run, self.state)

    def _epoch(self, epoch: int) -> EpochRecord:
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
                f"validation loss {raw.loss:g} after epoch {epoch + 1}, {ema.loss:g} of the average",
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
        """The epoch's steps, from where it was left; the sum of its losses."""
        self.model.train()
        started, before = time.perf_counter(), self.state.seconds
        watch = LossWatch(self.spec.num_classes, self.device, self.state.loss)
        shares = self._shares(epoch)
        if not shares:
            return watch.finish()  # it was left in its evaluation
        batches = self.loader.train([batch for share in shares for batch in share])
        every = self.execution.checkpoint_every_steps
        try:
            for step, share in enumerate(shares, self.state.step):
                stopping = self._asked_to_stop(step)
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
                f"loss {diverged.loss:g} at epoch {epoch + 1}, step {diverged.step + 1} of {self.steps}",
            ) from None

    def _asked_to_stop(self, step: int) -> bool:
        """Whether to end before this step; several ranks agree on it, every few steps."""
        if self.reporter.world_size == 1:
            return self.stop()
        if step % AGREED_EVERY:
            return False
        asked = self.reporter.rank == 0 and self.stop()
        return bool(self._summed(torch.tensor(float(asked), device=self.device)).item())

    def _until_asked(
        self, batches: Iterator[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """An evaluation's batches; several ranks, which need not have as many, are asked before the first alone."""
        if self._asked_to_stop(0):
            raise Stopped
        for batch in batches:
            yield batch
            if self.reporter.world_size == 1 and self.stop():
                raise Stopped

    def _shares(self, epoch: int) -> list[list[MicroBatch]]:
        """This rank's micro-batches of each step that is left: the k-th of a step is the same images and seed on any number of ranks."""
        order = np.random.default_rng([self.spec.seed, ORDER, epoch]).permutation(
            self.data.train_size
        )
        size, count = self.recipe.micro_batch, self.recipe.micro_batches // self.reporter.world_size
        mine = range(self.reporter.rank * count, (self.reporter.rank + 1) * count)

        def micro_batch(step: int, k: int) -> MicroBatch:
            start = step * self.recipe.batch + k * size
            return MicroBatch(
                order[start : start + size], stream_seed(self.spec.seed, AUGMENT, epoch, step, k)
            )

        return [[micro_batch(step, k) for k in mine] for step in range(self.state.step, self.steps)]

    def _step(
        self, step: int, share: Sequence[MicroBatch], batches: Iterator[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """One optimizer step over this rank's micro-batches; the mean loss over all of them on all ranks, a scalar."""
        self.sums.begin()
        for micro, (images, labels) in zip(share, batches, strict=False):
            seed(micro.seed, self.device)
            self.sums.collect(self._backward(images, labels))
        loss = self.sums.finish(self._summed)
        self._summed(self.flat.gradients)
        set_lr(self.state.optimizer, lr_at(self.recipe, step, self.steps))
        self.state.optimizer.step()
        self.flat.gradients.zero_()
        self.state.average.update(ema_decay_at(self.recipe, step + 1))
        return loss

    def _backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward of one micro-batch; gradients add up over a step's micro-batches and ranks to their mean."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.chosen.bf16):
            logits = self.forward(images)
        loss = functional.cross_entropy(
            logits.float(), labels, label_smoothing=self.recipe.label_smoothing
        )
        (loss / self.recipe.micro_batches).backward()
        return loss.detach()

    def _scores(self) -> list[Scores]:
        """Validation scores of the raw and of the averaged weights over all ranks, every image counted once."""
        mine = np.arange(self.reporter.rank, self.data.val_size, self.reporter.world_size)
        size = evaluated_at_once(self.recipe)
        batches = self._until_asked(
            self.loader.val([mine[i : i + size] for i in range(0, len(mine), size)])
        )
        both = (nullcontext, self.state.average.in_place)
        return evaluate(
            self.model,
            batches,
            self.device,
            bf16=self.chosen.bf16,
            all_sum=self._summed,
            weights=both,
        )

    def _finish(self) -> None:
        """The weights that ``top1`` belongs to, and everything needed to build their network again."""
        config = {
            **self.spec.to_json(),
            "network": NetworkFigures.of(self.spec.network()).to_json(),
            "metrics": self.state.epochs[-1].to_json(),
        }
        self.folder.write(WEIGHTS_FILE, final_weights(self.state, self.recipe.ranks))
        self.folder.write(CONFIG_FILE, json.dumps(config, indent=1).encode())

    def _summed(self, value: Tensor) -> Tensor:
        if self.reporter.world_size > 1:
            dist.all_reduce(value)
        return value


def built(network: Network, recipe: Recipe) -> nn.Module:
    """The module to train. What a user's space raises here is the trial's failure, though it be an error of files."""
    try:
        return network.build(drop_rate=recipe.dropout, drop_path_rate=recipe.drop_path)
    except (OSError, RequestError) as error:
        raise TrialFailure("error", f"{type(error).__name__}: {error}"[:500]) from error


def evaluated_at_once(recipe: Recipe) -> int:
    """Images of an evaluation's batch: as many as take no more memory than a training step."""
    return max(recipe.micro_batch, min(EVALUATED_AT_ONCE, LIGHTER * recipe.micro_batch))


def stream_seed(*parts: int) -> int:
    """A 63-bit seed of independent streams: the same for the same parts, on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
