"""Training jobs small enough to run in a second, through the command, and what they left in MLflow."""

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
    """Of ``tinynet train``: one small network on a few petals, the job's name ``tiny`` unless ``more`` says otherwise."""
    named = () if "--name" in more else ("--name", "tiny")
    tiny = [part for setting in SETTINGS for part in ("--set", setting)]
    return [
        "train",
        *NETWORK,
        "--data",
        "petals",
        "--storage",
        str(storage),
        *named,
        "--epochs",
        str(epochs),
        *tiny,
        *more,
    ]


def call(capsys: pytest.CaptureFixture[str], *asked: str) -> tuple[int, str, str]:
    code = run(list(asked))
    out, err = capsys.readouterr()
    return code, out, err


def trained(capsys: pytest.CaptureFixture[str], *asked: str) -> dict[str, Any]:
    """The JSON document of a job that must end well."""
    code, out, err = call(capsys, *asked, "--json")
    assert code == 0, err
    return json.loads(out)


def refused(capsys: pytest.CaptureFixture[str], words: str, *asked: str) -> None:
    code, out, err = call(capsys, *asked)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err


# The command where Ray is not installed.
RAYLESS = "import sys; sys.modules['ray'] = None; from tinynet_search.cli.main import main; main()"


def stopped(
    asked: list[str], sent: signal.Signals, when: Callable[[], bool]
) -> tuple[int, str, str]:
    """The command in a process of its own and without Ray, and a signal to it as soon as ``when``."""
    # A background job starts with SIGINT ignored, and so would whatever it starts.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", RAYLESS, *asked]
    with subprocess.Popen(
        command, env={**os.environ}, stdout=pipe, stderr=pipe, text=True, preexec_fn=listening
    ) as process:
        deadline = time.monotonic() + 120
        while not when() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


class JobRuns:
    """The runs of training jobs as MLflow's own client sees them."""

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
        """(step, ms, value) of every point there is of a metric of the only run."""
        history = self.client.get_metric_history(self.only().info.run_id, metric)
        return sorted((point.step, point.timestamp, point.value) for point in history)
