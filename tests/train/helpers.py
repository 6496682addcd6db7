"""Training jobs that run in about a second through the command, and access to their MLflow runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tinynet_search.cli.main import run

MINI, RDW = "efficientnet_mini", "0.4,0.4,0.5"
NETWORK = ("--rdw", RDW, "--space", MINI)
SETTINGS = ("data.train=96", "data.val=48", "recipe.batch=32", "recipe.micro_batch=16")
LABEL = "efficientnet_mini-r0.4-d0.4-w0.5"


def arguments(storage: Path, *more: str, epochs: int = 2) -> list[str]:
    """Arguments of ``tinynet train`` for a small network on a few petals images.

    The job is named ``tiny`` unless ``more`` contains ``--name``.
    """
    name = () if "--name" in more else ("--name", "tiny")
    tiny = [part for setting in SETTINGS for part in ("--set", setting)]
    return [
        "train",
        *NETWORK,
        "--data",
        "petals",
        "--storage",
        str(storage),
        *name,
        "--epochs",
        str(epochs),
        *tiny,
        *more,
    ]


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = run(list(args))
    out, err = capsys.readouterr()
    return code, out, err


def train_json(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """Run a job that must succeed and return its JSON document."""
    code, out, err = call(capsys, *args, "--json")
    assert code == 0, err
    return json.loads(out)


def assert_rejected(capsys: pytest.CaptureFixture[str], words: str, *args: str) -> None:
    code, out, err = call(capsys, *args)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err


# Runs the command as if Ray were not installed.
RAYLESS = "import sys; sys.modules['ray'] = None; from tinynet_search.cli.main import main; main()"


def run_and_signal(
    args: list[str], sent: signal.Signals, when: Callable[[], bool]
) -> tuple[int, str, str]:
    """Run the command in a separate process without Ray, and signal it once ``when`` is true."""
    # A background job starts with SIGINT ignored, and its child processes inherit that.
    default_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", RAYLESS, *args]
    with subprocess.Popen(
        command, env={**os.environ}, stdout=pipe, stderr=pipe, text=True, preexec_fn=default_sigint
    ) as process:
        deadline = time.monotonic() + 120
        while not when() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


class JobRuns:
    """The MLflow runs of training jobs, read through the MLflow client."""

    def __init__(self, uri: str, job: str = "tiny", kind: str = "train") -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiments = [
            e.experiment_id
            for e in self.client.search_experiments(filter_string=f"name = 'tinynet-{MINI}'")
        ]
        self.runs = self.client.search_runs(
            experiments, f"tags.`tinynet.kind` = '{kind}' and tags.`tinynet.job` = '{job}'"
        )

    def only(self) -> Any:
        (run,) = self.runs
        return run

    def steps(self, metric: str) -> list[tuple[int, int, float]]:
        """(step, timestamp in ms, value) of every point of a metric of the only run."""
        history = self.client.get_metric_history(self.only().info.run_id, metric)
        return sorted((point.step, point.timestamp, point.value) for point in history)
