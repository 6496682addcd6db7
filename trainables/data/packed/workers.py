"""Writing of shards in this process or in worker processes: decode, shrink, commit.

Called by packing. JPEGs are decoded at full size: draft mode (a smaller inverse transform) is
faster but gives different pixels.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from trainables.data.packed.files import committed
from trainables.data.packed.shards import HEIGHT, LABEL, NUMBER, Shard, kept_size
from trainables.data.sources.encoded import Part, UnreadableImageError


class PackingError(RuntimeError):
    """The packing ended without a complete store; the message is one line."""


class UnreadableImagesError(PackingError):
    """Some images cannot be read.

    Attributes:
        images: ``split/class/file (reason)`` of each image.
        file: the file that lists them.
    """

    def __init__(self, message: str, images: Sequence[str], file: Path) -> None:
        super().__init__(message)
        self.images, self.file = images, file


class Stop(Protocol):
    """The part of ``threading.Event`` and ``multiprocessing.Event`` that is needed here."""

    def is_set(self) -> bool: ...


class PackingJob(NamedTuple):
    """The inputs that all shards share; sent to worker processes."""

    parts: Mapping[str, Part]
    root: Path
    short_side: int


class Task(NamedTuple):
    """A shard to write.

    It holds the images ``first`` to ``stop`` (exclusive) of a split, in storage order.
    """

    part: str
    number: int
    first: int
    stop: int


class ShardResult(NamedTuple):
    """The result of writing a shard.

    Attributes:
        images: number of images processed, including those that cannot be read.
        unreadable: the reason of each image that cannot be read, by ``split/class/file``.
    """

    task: Task
    images: int
    unreadable: dict[str, str]


def write_shards(job: PackingJob, tasks: Sequence[Task], workers: int) -> Iterator[ShardResult]:
    """Write the shards and yield the result of each, in completion order.

    It writes in this process, or in spawned processes if ``workers`` > 1.

    Raises:
        PackingError: The storage failed, or a worker process was killed.
    """
    try:
        if workers == 1 or len(tasks) < 2:
            no_stop = threading.Event()
            for task in tasks:
                yield write_shard(job, task, no_stop)
        else:
            yield from _in_processes(job, tasks, min(workers, len(tasks)))
    except BrokenProcessPool as error:
        raise PackingError(
            "a worker process was killed (out of memory?): "
            "run the same command again with fewer --workers to resume"
        ) from error
    except OSError as error:
        raise PackingError(f"{error}: run the same command again to resume") from error


def write_shard(job: PackingJob, task: Task, stop: Stop) -> ShardResult:
    """Decode, shrink and commit one shard.

    Raises:
        OSError: The storage failed.
        KeyboardInterrupt: ``stop`` was set.
    """
    part, shard = job.parts[task.part], Shard.at(job.root, task.part, task.number)
    numbers = getattr(part, "order", np.arange(len(part.labels)))[task.first : task.stop]
    rows, unreadable = np.zeros((len(numbers), 4), np.int32), {}
    rows[:, NUMBER], rows[:, LABEL] = numbers, part.labels[numbers]
    with committed(shard.pixels) as file:
        for row, i in enumerate(numbers.tolist()):
            if stop.is_set():
                raise KeyboardInterrupt
            try:
                pixels = np.asarray(shrink(part.image(i), job.short_side))
            except UnreadableImageError as error:
                unreadable[f"{task.part}/{part.names[i]}"] = str(error).rpartition(": ")[2]
                continue
            rows[row, HEIGHT:] = pixels.shape[:2]
            file.write(pixels.data)
    with committed(shard.index) as file:
        np.save(file, rows)
    return ShardResult(task, len(rows), unreadable)


def shrink(image: Any, short: int) -> Any:
    """Shrink a PIL image to a short side of ``short`` pixels, antialiased.

    Smaller images are returned unchanged.
    """
    from PIL import Image

    size = kept_size(image.width, image.height, short)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def _in_processes(job: PackingJob, tasks: Sequence[Task], workers: int) -> Iterator[ShardResult]:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start, (job, stop))
    try:
        for future in as_completed([pool.submit(_write, task) for task in tasks]):
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


_shared: tuple[PackingJob, Stop]


def _start(job: PackingJob, stop: Stop) -> None:
    global _shared
    _shared = job, stop
    # The parent process handles interrupts. If it is killed, its workers must exit too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _write(task: Task) -> ShardResult:
    job, stop = _shared
    return write_shard(job, task, stop)
