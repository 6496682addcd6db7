"""Trains a job in this process, without Ray, on the resources of this machine.

Called by ``run_job``.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from search_spaces import RequestError
from tinynet_search.config import Config
from tinynet_search.config.sections import ScalingSection
from tinynet_search.signals import Stopping
from tinynet_search.store.directory import Candidate
from tinynet_search.store.lease import Lease
from tinynet_search.train.progress import EpochLines

# Multiply-adds of a forward pass above which several CPU threads are faster than one.
MIN_THREADED_MACS = 1e9


@dataclass(frozen=True)
class JobRun:
    """One run of a job: the candidate to train, its directory, its lease and its stop signal."""

    config: Config
    root: str
    candidate: Candidate
    lease: Lease
    stopping: Stopping


def train_here(job_run: JobRun, lines: EpochLines, *, loaders: int) -> None:
    """Run the complete training in this process, without Ray.

    Args:
        loaders: Number of loader processes, as returned by ``configure_process``.
    """
    from trainables.stopping import Stopped
    from trainables.trial import run_trial

    execution = replace(job_run.config.training_execution, loader_workers=loaders)
    stopping = job_run.stopping
    with _trial_warnings_hidden(), stopping.graceful(lambda: None), contextlib.suppress(Stopped):
        run_trial(
            job_run.candidate.spec,
            job_run.root,
            lines,
            execution,
            lambda: stopping.reason is not None,
        )


def configure_process(scaling: ScalingSection, macs: float) -> int:
    """Limit this process to the resources set in ``[scaling]``.

    Resources that are not set default to the machine's: its GPU, and all CPUs if the network is
    large enough to use them.

    Args:
        macs: Multiply-adds of one forward pass. Threads that share a small pass spend more time
            waiting for each other than computing.

    Returns:
        Number of loader processes: as configured, else all CPUs but one on a machine with a GPU.

    Raises:
        RequestError: A GPU is configured, but torch finds none.
    """
    configured = scaling.model_fields_set
    if "gpus" in configured and not scaling.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if scaling.gpus and not torch.cuda.is_available():
        raise RequestError(
            f"scaling.gpus = {scaling.gpus:g}, but torch finds no GPU: "
            "omit it, or train on a machine with a GPU"
        )
    if "cpus" in configured or macs < MIN_THREADED_MACS:
        torch.set_num_threads(max(1, int(scaling.cpus)))
    if "loader_workers" in configured or not torch.cuda.is_available():
        return scaling.loader_workers
    return max(0, len(os.sched_getaffinity(0)) - 1)


@contextlib.contextmanager
def _trial_warnings_hidden() -> Iterator[None]:
    """Suppress the log line of a failed trial; the command prints the failure from the result."""
    logger = logging.getLogger("tinynet")

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("trial ") or record.levelno != logging.WARNING

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
