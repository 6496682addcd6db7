"""The processes that pack shards, and what packing costs in disk space."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.packed import kept_size

if TYPE_CHECKING:
    from trainables.data.encoded import Part
    from trainables.data.packing import Done, Packing, Stop, Task

SAMPLE = 1000


def written(packing: "Packing", tasks: Sequence["Task"], workers: int) -> Iterator["Done"]:
    """Each shard when it is written: in this process, or in processes that are started afresh where ``workers`` > 1.

    Raises:
        PackingError: storage failed, or a worker process was lost.
    """
    from trainables.data.packing import PackingError

    try:
        if workers == 1 or len(tasks) < 2:
            never = threading.Event()
            for task in tasks:
                yield packing.write(task, never)
        else:
            yield from _in_processes(packing, tasks, min(workers, len(tasks)))
    except BrokenProcessPool as error:
        raise PackingError(
            "a worker process was killed (out of memory?): the same command goes on from here, with fewer --workers"
        ) from error
    except OSError as error:
        raise PackingError(f"{error}: the same command goes on from here") from error


def _in_processes(packing: "Packing", tasks: Sequence["Task"], workers: int) -> Iterator["Done"]:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start, (packing, stop))
    try:
        for future in as_completed([pool.submit(_write, task) for task in tasks]):
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


_job: tuple["Packing", "Stop"]


def _start(packing: "Packing", stop: "Stop") -> None:
    global _job
    _job = packing, stop
    # An interrupt is the parent's to handle; a parent that is killed must not leave workers behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _write(task: "Task") -> "Done":
    packing, stop = _job
    return packing.write(task, stop)


class Cost(NamedTuple):
    """Disk space in bytes: of the whole store, of what is still to be written, and what is free; ``exact`` or from a sample."""

    whole: int
    missing: int
    free: int
    exact: bool


def cost(packing: "Packing", missing: Sequence["Task"]) -> Cost:
    """What a packing takes, from the header of every image, or of ``SAMPLE`` of them."""
    whole = left = 0.0
    exact = True
    for name, part in packing.parts.items():
        count = len(part.labels)
        chosen = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(int))
        each = np.mean([_bytes(part, int(i), packing.short_side) for i in chosen])
        exact = exact and len(chosen) == count
        whole += each * count
        left += each * sum(task.stop - task.first for task in missing if task.part == name)
    existing = next(folder for folder in (packing.root.absolute(), *packing.root.absolute().parents) if folder.exists())
    return Cost(round(whole), round(left), shutil.disk_usage(existing).free, exact)


def check_room(costs: Cost, place: str) -> None:
    """Raise RequestError where the missing part does not fit, with a twentieth to spare for a sample's error."""
    needed = costs.missing * (1 if costs.exact else 1.05)
    if needed > costs.free:
        gigabytes = f"needs {needed / 1e9:.3g} GB and {costs.free / 1e9:.3g} GB are free"
        raise RequestError(f"no room: packing into {place!r} {gigabytes}: free some, give another --out, or a smaller --largest-r")


def _bytes(part: "Part", index: int, short: int) -> int:
    """Bytes of one image when packed; none of one that cannot be read, which the packing itself will name."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(part.read(index))) as image:
            width, height = kept_size(*image.size, short)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
    return 3 * width * height
