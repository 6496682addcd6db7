"""One training step in a process of its own: ``python -m trainables.try_step JSON``; exit code 0 where it went well."""

import json
import sys
import tempfile

import torch

from trainables.classification import Trainer
from trainables.data import open_data
from trainables.execution import Execution
from trainables.folder import open_folder
from trainables.trial import Alone, TrialSpec


def main(text: str) -> None:
    spec, execution = json.loads(text)
    trial = TrialSpec.from_json(spec)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        Trainer(trial, open_data(trial.data), open_folder(scratch), Alone(), Execution(**execution)).try_step()


if __name__ == "__main__":
    main(sys.argv[1])
