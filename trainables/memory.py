"""Memory that runs out: how it is recognised, and which micro-batch would have fitted."""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from trainables.recipe import Recipe
from trainables.spec import TrialSpec

if TYPE_CHECKING:
    from trainables.execution import Execution

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, HELD = -1, -3, 2**30
# Words of torch, oneDNN, cuDNN, cuBLAS and CUDA, in lower case, where they raise no error of its own for it.
SAYING_SO = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory object",
    "status_alloc_failed",
    "out of memory",
)
NO_MEMORY = 3
TRY_SECONDS = 300


def ran_out(error: BaseException) -> bool:
    """Whether an exception is a device's or the machine's memory running out; of most libraries only the words tell."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in SAYING_SO
    )


def what_fits(spec: TrialSpec, execution: "Execution | None") -> str:
    """The largest micro-batch of about a half, a quarter, ... that takes a training step on this device, in words.

    Tried by real steps on blank images in a process of its own, some seconds each: what the failed training leaves of a
    process's memory is not to be relied on.
    """
    recipe = spec.recipe
    for size in smaller(recipe):
        # Two micro-batches a step, so that accumulation is part of it.
        tried = replace(spec, recipe=replace(recipe, micro_batch=size, batch=2 * size))
        code, said = _tried(tried, execution)
        if code == 0:
            return f"recipe.micro_batch = {size} fits, as {recipe.batch // size} parts of a batch of {recipe.batch}"
        if (
            code != NO_MEMORY and code >= 0
        ):  # below zero: killed, as a machine does that has no memory left
            return f"a smaller one could not be tried ({said})"
    return "no smaller recipe.micro_batch was found to fit: this network needs more memory, or a recipe.batch with smaller divisors"


def _tried(spec: TrialSpec, execution: "Execution | None") -> tuple[int, str]:
    """Exit code and last words of a process that tries a step of this trial."""
    settings = [spec.to_json(), asdict(execution) if execution else {}, torch.get_num_threads()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "trainables.try_step", json.dumps(settings)]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TRY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no step in {TRY_SECONDS} s"
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1][:200]


def smaller(recipe: Recipe) -> Iterator[int]:
    """Divisors of the batch below the micro-batch, each about half of the one before."""
    size = recipe.micro_batch
    for candidate in range(size // 2, 1, -1):
        if recipe.batch % candidate == 0 and candidate <= size // 2:
            yield candidate
            size = candidate


def hold_memory() -> None:
    """Have freed memory kept for the next tensor: the C library would give feature maps back to the system at every step,
    and get them again a page at a time. ``release`` gives it back. Only glibc knows these settings."""
    if libc := _glibc():
        for option, value in ((M_MMAP_THRESHOLD, HELD), (M_TRIM_THRESHOLD, HELD)):
            libc.mallopt(option, value)


def release() -> None:
    """Give back what is not held any more: the next trial of this process, and neighbours on the same GPU, need it."""
    gc.collect()
    if libc := _glibc():
        libc.malloc_trim(0)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _glibc() -> Any:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
