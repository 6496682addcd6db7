"""Memory that runs out: how it is recognised, and which micro-batch would have fitted."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from trainables.data import ImageData
from trainables.folder import Folder
from trainables.recipe import Recipe
from trainables.trial import Alone, TrialSpec

if TYPE_CHECKING:
    from trainables.execution import Execution

ON_A_CPU = ("can't allocate memory", "could not create a primitive", "could not create a memory object")


def ran_out(error: BaseException) -> bool:
    """Whether an exception is a device's or the machine's memory running out; on a CPU only the words of torch and oneDNN tell."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ON_A_CPU)


def what_fits(spec: TrialSpec, data: ImageData, root: Folder, execution: "Execution | None") -> str:
    """The largest micro-batch of about a half, a quarter, ... that takes a training step on this device, in words.

    Nothing of the failed training may be held any more. Tried by real steps on blank images, a few seconds each.
    """
    from trainables.classification import Trainer

    recipe = spec.get_recipe()
    for size in smaller(recipe):
        # Two micro-batches a step, so that accumulation is part of it.
        tried = replace(spec, recipe={**spec.recipe, "micro_batch": size, "batch": 2 * size})
        try:
            Trainer(tried, data, root, Alone(), execution).try_step()
            return f"recipe.micro_batch = {size} fits, as {recipe.batch // size} parts of a batch of {recipe.batch}"
        except Exception as error:
            if not ran_out(error):
                raise
        release()
    return "no smaller recipe.micro_batch was found to fit: this network needs more memory, or a recipe.batch with smaller divisors"


def smaller(recipe: Recipe) -> Iterator[int]:
    """Divisors of the batch below the micro-batch, each about half of the one before."""
    size = recipe.micro_batch
    for candidate in range(size // 2, 1, -1):
        if recipe.batch % candidate == 0 and candidate <= size // 2:
            yield candidate
            size = candidate


def release() -> None:
    """Give back what is not held any more: the next trial of this process, and neighbours on the same GPU, need it."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
