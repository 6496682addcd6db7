"""Runs one training step in a separate process: ``python -m trainables.try_step JSON``.

Started by ``trainables.memory``. The exit code is 0 on success and ``OUT_OF_MEMORY_EXIT_CODE`` when
memory runs out; any other code is a different failure.
"""

import json
import sys
import tempfile
from collections.abc import Sequence

import torch

from trainables.data import IN_PROCESS, ImageData, Loader, Reading
from trainables.execution import Execution
from trainables.memory import OUT_OF_MEMORY_EXIT_CODE, is_out_of_memory
from trainables.recipe import Recipe
from trainables.spec import LocalReporter, TrialSpec
from trainables.storage.folder import open_folder
from trainables.trainer import Trainer


class BlankData(ImageData):
    """A data set that has a size but no images; ``Trainer.try_step`` creates blank ones."""

    fingerprint = "blank"

    def __init__(self, images: int, classes: int) -> None:
        self.train_size = self.val_size = images
        self.class_names: Sequence[str] = [str(k) for k in range(classes)]

    def loader(
        self, resolution: int, recipe: Recipe, device: torch.device, reading: Reading = IN_PROCESS
    ) -> Loader:
        return None  # type: ignore[return-value]  # never used

    def swap_splits(self) -> "BlankData":
        return self


def main(text: str) -> int:
    """Run the step described by a JSON list of trial, execution settings and thread count."""
    spec, execution, threads = json.loads(text)
    trial = TrialSpec.from_json(spec)
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            data = BlankData(trial.recipe.batch, trial.num_classes)
            Trainer(
                trial, data, open_folder(scratch), LocalReporter(), Execution(**execution)
            ).try_step()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return OUT_OF_MEMORY_EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
