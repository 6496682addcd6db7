"""Handles out-of-memory errors: recognises them and finds a micro-batch that fits.

Called by ``trainables.trial`` and ``trainables.trainer``.
"""

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

# Options of glibc's mallopt, and the value that both are set to, in bytes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MAX_HELD_BYTES = -1, -3, 2**30
# Messages (in lower case) of torch, oneDNN, cuDNN, cuBLAS and CUDA, where they raise a plain
# RuntimeError.
OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory object",
    "status_alloc_failed",
    "out of memory",
)
OUT_OF_MEMORY_EXIT_CODE = 3
# Seconds.
TRY_TIMEOUT = 300


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the device or the machine is out of memory.

    Most libraries raise no specific exception type, so their messages are matched.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error).lower() for phrase in OUT_OF_MEMORY_MESSAGES
    )


def describe_fitting_micro_batch(spec: TrialSpec, execution: "Execution | None") -> str:
    """Describe the largest micro-batch that fits on this device, of about a half, a quarter, ...

    Each candidate is tried with real training steps on blank images in a subprocess, which takes
    some seconds. This process is not used, because the memory that is available in it after the
    failed training is unpredictable.

    Returns:
        A sentence for the trial's failure message.
    """
    recipe = spec.recipe
    for size in smaller_micro_batches(recipe):
        # Two micro-batches per step, so that the trial step includes accumulation.
        smaller = replace(spec, recipe=replace(recipe, micro_batch=size, batch=2 * size))
        code, message = _try_step(smaller, execution)
        if code == 0:
            parts = recipe.batch // size
            return (
                f"recipe.micro_batch = {size} fits, as {parts} parts of a batch of {recipe.batch}"
            )
        # A negative code is a signal: Linux kills a process when the machine is out of memory.
        if code != OUT_OF_MEMORY_EXIT_CODE and code >= 0:
            return f"a smaller one could not be tried ({message})"
    return (
        "no smaller recipe.micro_batch was found to fit: this network needs more memory, "
        "or a recipe.batch with smaller divisors"
    )


def _try_step(spec: TrialSpec, execution: "Execution | None") -> tuple[int, str]:
    """Try a step of this trial in a subprocess; return its exit code and last line of stderr."""
    settings = [spec.to_json(), asdict(execution) if execution else {}, torch.get_num_threads()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "trainables.try_step", json.dumps(settings)]
    try:
        process = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TRY_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no step in {TRY_TIMEOUT} s"
    lines = process.stderr.strip().splitlines()
    return process.returncode, lines[-1][:200] if lines else ""


def smaller_micro_batches(recipe: Recipe) -> Iterator[int]:
    """Divisors of the batch smaller than the micro-batch, each about half of the previous one."""
    size = recipe.micro_batch
    for candidate in range(size // 2, 1, -1):
        if recipe.batch % candidate == 0 and candidate <= size // 2:
            yield candidate
            size = candidate


def hold_memory() -> None:
    """Keep freed memory in the process for the next tensor.

    By default the C library returns the memory of feature maps to the system at every step and
    gets it back page by page. ``release_memory`` returns the memory that is kept. Only glibc has
    these settings.
    """
    if libc := _glibc():
        for option, value in (
            (M_MMAP_THRESHOLD, MAX_HELD_BYTES),
            (M_TRIM_THRESHOLD, MAX_HELD_BYTES),
        ):
            libc.mallopt(option, value)


def release_memory() -> None:
    """Return unused memory to the system and the GPU.

    The next trial of this process and other processes on the same GPU need it.
    """
    gc.collect()
    if libc := _glibc():
        libc.malloc_trim(0)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _glibc() -> Any:
    """The C library if it is glibc, otherwise None."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
