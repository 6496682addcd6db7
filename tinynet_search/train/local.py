"""A training in this process, without Ray, on what this machine has.

Called by ``run_job``.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from search_spaces import RequestError
from tinynet_search.config import Config, ScalingSection
from tinynet_search.signals import Stopping
from tinynet_search.store.directory import Candidate
from tinynet_search.store.lease import Lease
from tinynet_search.train.progress import EpochLines

# Multiply-adds of a forward pass from which several threads are worth it on a CPU.
THREADED_FROM = 1e9


@dataclass(frozen=True)
class Drive:
    """One run of a job: what is trained below ``root``, and what may end it early."""

    config: Config
    root: str
    candidate: Candidate
    lease: Lease
    stopping: Stopping


def train_here(drive: Drive, lines: EpochLines, *, loaders: int) -> None:
    """The whole training in this process, which needs no Ray; ``loaders`` as ``take_machine`` gives them."""
    from trainables.stopping import Stopped
    from trainables.trial import run_trial

    execution = replace(drive.config.computed, loader_workers=loaders)
    stopping = drive.stopping
    with _failure_unsaid(), stopping.gently(lambda: None), contextlib.suppress(Stopped):
        run_trial(
            drive.candidate.spec, drive.root, lines, execution, lambda: stopping.why is not None
        )


def take_machine(scaling: ScalingSection, macs: float) -> int:
    """Keep to what ``[scaling]`` names; what it does not name is the machine's own: its GPU, its CPUs where they help.

    Args:
        macs: multiply-adds of one forward pass: threads that share a small one wait for each other longer than they work.

    Returns:
        Processes that read images: as named, else one a CPU but one where a GPU waits for them.

    Raises:
        RequestError: a GPU is named, and there is none.
    """
    named = scaling.model_fields_set
    if "gpus" in named and not scaling.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if scaling.gpus and not torch.cuda.is_available():
        raise RequestError(
            f"scaling.gpus = {scaling.gpus:g}, and torch finds no GPU here: leave it out, or train on a machine with one"
        )
    if "cpus" in named or macs < THREADED_FROM:
        torch.set_num_threads(max(1, int(scaling.cpus)))
    if "loader_workers" in named or not torch.cuda.is_available():
        return scaling.loader_workers
    return max(0, len(os.sched_getaffinity(0)) - 1)


@contextlib.contextmanager
def _failure_unsaid() -> Iterator[None]:
    """The trial's failure is in its result, and is said from there."""
    log = logging.getLogger("tinynet")

    def quiet(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("trial ") or record.levelno != logging.WARNING

    log.addFilter(quiet)
    try:
        yield
    finally:
        log.removeFilter(quiet)
