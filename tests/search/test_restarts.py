"""Drivers that end before their search: killed, or interrupted; the same command continues."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.search.helpers import results, timeless_results, tiny_arguments, tiny_config
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


def test_a_killed_driver_is_taken_up(ray_cluster: Any, tmp_path: Path) -> None:
    """SIGKILL in the middle, the same command again: every trial once, the same numbers as undisturbed, MLflow complete."""
    undisturbed = run_search(tiny_config(tmp_path / "whole", "recipe.epochs=4", trials=6))
    storage = tmp_path / "cut"
    driver = _driver(storage, ray_cluster.address)
    deadline = time.time() + 120
    while len(results(storage)) < 2 and time.time() < deadline and driver.poll() is None:
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = set(results(storage))
    assert 0 < len(done) < 6
    again = run_search(tiny_config(storage, "recipe.epochs=4", trials=6))
    assert again.new == 6 - len(done)
    assert timeless_results(storage) == timeless_results(tmp_path / "whole")
    assert again.frontier == undisturbed.frontier
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
def test_an_interrupted_search_says_so(
    ray_cluster: Any, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    """Every training commits what it has, in mid-epoch; the lease is free, and only then the driver ends."""
    settings = ("recipe.epochs=40", "data.train=960")
    command = [
        sys.executable,
        "-m",
        "tinynet_search.cli.main",
        "search",
        *tiny_arguments(tmp_path, *settings, trials=2),
    ]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster.address}
    # A background job starts with SIGINT ignored, and so would whatever it starts.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, preexec_fn=listening
    ) as driver:
        deadline = time.time() + 120
        while (
            not list(tmp_path.glob("demo/trials/*/epoch-*"))
            and time.time() < deadline
            and driver.poll() is None
        ):
            time.sleep(0.1)
        time.sleep(0.5)  # into the next epoch: at the end of one there is nothing new to commit
        at = time.time()
        driver.send_signal(sent)
        out, err = driver.communicate(timeout=60)
    assert (driver.returncode, out) == (code, "")
    assert "stopping once every training has committed a checkpoint" in err
    assert (
        err.strip().splitlines()[-1] == "tinynet: interrupted: the same command goes on from here"
    )
    assert "Traceback" not in err
    newest = [
        max(trial.glob("epoch-*/progress.json"), key=lambda p: p.stat().st_mtime)
        for trial in tmp_path.glob("demo/trials/*")
    ]
    after = [file for file in newest if file.stat().st_mtime > at]
    assert after
    # A training that was between two epochs when it was asked has committed all that it had.
    assert all("step" not in file.parent.name for file in set(newest) - set(after))
    assert results(tmp_path) == {}
    assert live_holder(LocalFolder(tmp_path / "demo")) is None
