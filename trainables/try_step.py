"""One training step in a process of its own: ``python -m trainables.try_step JSON``.

Exit code 0 where it went well, ``NO_MEMORY`` where memory ran out; anything else is another failure.
"""

import json
import sys
import tempfile
from collections.abc import Sequence

import torch

from trainables.data import IN_PROCESS, ImageData, Loader, Reading
from trainables.execution import Execution
from trainables.memory import NO_MEMORY, ran_out
from trainables.recipe import Recipe
from trainables.spec import Alone, TrialSpec
from trainables.storage.folder import open_folder
from trainables.trainer import Trainer


class Blank(ImageData):
    """Of a set only its size: a step that is tried brings its own images."""

    fingerprint = "blank"

    def __init__(self, images: int, classes: int) -> None:
        self.train_size = self.val_size = images
        self.class_names: Sequence[str] = [str(k) for k in range(classes)]

    def loader(
        self, resolution: int, recipe: Recipe, device: torch.device, reading: Reading = IN_PROCESS
    ) -> Loader:
        return None  # type: ignore[return-value]  # nothing is read

    def swapped(self) -> "Blank":
        return self


def main(text: str) -> int:
    spec, execution, threads = json.loads(text)
    trial = TrialSpec.from_json(spec)
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            data = Blank(trial.recipe.batch, trial.num_classes)
            Trainer(trial, data, open_folder(scratch), Alone(), Execution(**execution)).try_step()
    except Exception as error:
        if not ran_out(error):
            raise
        return NO_MEMORY
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
