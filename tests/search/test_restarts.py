"""Tests of drivers that are killed or interrupted: the same command resumes the search."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.search.helpers import results, results_without_times, tiny_arguments, tiny_config
from tinynet_search.search.driver import run_search
from tinynet_search.store.lease import live_holder
from trainables.storage.folder import LocalFolder

pytestmark = pytest.mark.ray


def _driver(storage: Path, address: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tinynet_search.cli.main",
        "search",
        *tiny_arguments(storage, "recipe.epochs=4", trials=6),
    ]
    environment = {**os.environ, "RAY_ADDRESS": address}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )


def test_search_resumes_after_a_killed_driver(ray_cluster: Any, tmp_path: Path) -> None:
    """After SIGKILL and a restart, each trial ran once with equal numbers; MLflow is complete."""
    undisturbed = run_search(tiny_config(tmp_path / "undisturbed", "recipe.epochs=4", trials=6))
    storage = tmp_path / "cut"
    driver = _driver(storage, ray_cluster.address)
    deadline = time.time() + 120
    while len(results(storage)) < 2 and time.time() < deadline and driver.poll() is None:
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = set(results(storage))
    assert 0 < len(done) < 6
    resumed = run_search(tiny_config(storage, "recipe.epochs=4", trials=6))
    assert resumed.new == 6 - len(done)
    assert results_without_times(storage) == results_without_times(tmp_path / "undisturbed")
    assert resumed.frontier == undisturbed.frontier
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`tinynet.kind` = 'trial'")
    assert len(runs) == 6
    assert {r.info.status for r in runs} == {"FINISHED"}
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "top1")
        assert sorted(m.step for m in history) == [1, 2, 3, 4]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_search_commits_checkpoints(
    ray_cluster: Any, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    """The driver exits after all trainings have committed mid-epoch, and releases its lease."""
    settings = ("recipe.epochs=40", "data.train=960")
    command = [
        sys.executable,
        "-m",
        "tinynet_search.cli.main",
        "search",
        *tiny_arguments(tmp_path, *settings, trials=2),
    ]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster.address}
    # A background job starts with SIGINT ignored, and its child processes inherit that.
    default_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, preexec_fn=default_sigint
    ) as driver:
        deadline = time.time() + 120
        while (
            not list(tmp_path.glob("demo/trials/*/epoch-*"))
            and time.time() < deadline
            and driver.poll() is None
        ):
            time.sleep(0.1)
        time.sleep(0.5)  # wait for the next epoch: a finished epoch has nothing new to commit
        sent_at = time.time()
        driver.send_signal(sent)
        out, err = driver.communicate(timeout=60)
    assert (driver.returncode, out) == (code, "")
    assert "stopping once every training has committed a checkpoint" in err
    assert err.strip().splitlines()[-1] == "tinynet: interrupted: run the same command to continue"
    assert "Traceback" not in err
    newest = [
        max(trial.glob("epoch-*/progress.json"), key=lambda p: p.stat().st_mtime)
        for trial in tmp_path.glob("demo/trials/*")
    ]
    after = [file for file in newest if file.stat().st_mtime > sent_at]
    assert after
    # A training that received the signal between two epochs had already committed everything.
    assert all("step" not in file.parent.name for file in set(newest) - set(after))
    assert results(tmp_path) == {}
    assert live_holder(LocalFolder(tmp_path / "demo")) is None
