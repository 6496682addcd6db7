"""Shards written one by one: decoded, shrunk and committed, in this process or in several.

JPEGs are decoded whole: draft mode (a smaller inverse transform) is faster but gives other pixels.
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
    """The packing ended without a whole store; the message is one line."""


class UnreadableImagesError(PackingError):
    """Images cannot be read; each of ``images`` is ``part/class/file (why)``, and ``file`` lists them all."""

    def __init__(self, message: str, images: Sequence[str], file: Path) -> None:
        super().__init__(message)
        self.images, self.file = images, file


class Stop(Protocol):
    """An event of threads or of processes."""

    def is_set(self) -> bool: ...


class PackingJob(NamedTuple):
    """What all shards have in common; it is sent to other processes."""

    parts: Mapping[str, Part]
    root: Path
    short_side: int


class Task(NamedTuple):
    """A shard to write: the images ``first`` to ``stop`` of a part, in the order in which they lie."""

    part: str
    number: int
    first: int
    stop: int


class Done(NamedTuple):
    """A written shard, how many images it is of, and why those that cannot be read cannot, by ``part/class/file``."""

    task: Task
    images: int
    unreadable: dict[str, str]


def written(job: PackingJob, tasks: Sequence[Task], workers: int) -> Iterator[Done]:
    """Each shard when it is written: in this process, or in processes that are started afresh where ``workers`` > 1.

    Raises:
        PackingError: storage failed, or a worker process was lost.
    """
    try:
        if workers == 1 or len(tasks) < 2:
            never = threading.Event()
            for task in tasks:
                yield write(job, task, never)
        else:
            yield from _in_processes(job, tasks, min(workers, len(tasks)))
    except BrokenProcessPool as error:
        raise PackingError(
            "a worker process was killed (out of memory?): the same command goes on from here, with fewer --workers"
        ) from error
    except OSError as error:
        raise PackingError(f"{error}: the same command goes on from here") from error


def write(job: PackingJob, task: Task, stop: Stop) -> Done:
    """Decode, shrink and commit one shard.

    Raises:
        OSError: storage failed. KeyboardInterrupt: ``stop`` was set.
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
                pixels = np.asarray(shrunk(part.image(i), job.short_side))
            except UnreadableImageError as error:
                unreadable[f"{task.part}/{part.names[i]}"] = str(error).rpartition(": ")[2]
                continue
            rows[row, HEIGHT:] = pixels.shape[:2]
            file.write(pixels.data)
    with committed(shard.index) as file:
        np.save(file, rows)
    return Done(task, len(rows), unreadable)


def shrunk(image: Any, short: int) -> Any:
    """The PIL image with a short side of ``short`` pixels, antialiased; a smaller one as it is."""
    from PIL import Image

    size = kept_size(image.width, image.height, short)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def _in_processes(job: PackingJob, tasks: Sequence[Task], workers: int) -> Iterator[Done]:
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
    # An interrupt is the parent's to handle; a parent that is killed must not leave workers behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _write(task: Task) -> Done:
    job, stop = _shared
    return write(job, task, stop)
