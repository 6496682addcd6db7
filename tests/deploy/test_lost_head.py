"""Tests that a search continues by itself after all processes of its head were killed.

Real heads: what the files of deploy/ run is repeated as Docker, KubeRay or a user would.
"""

import shlex
import subprocess
import time
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY
from tests.deploy.processes import Head, Ports, environment, short_folder, start_head
from tests.search.helpers import results, tiny_arguments

SCRIPT = DEPLOY / "resume.sh"


@pytest.mark.heads
def test_submitted_search_continues_after_its_head_was_killed(tmp_path: Path) -> None:
    """Every process of the head is killed during a search, and a new head is started.

    The script, which the files of deploy/ run, submits the search again. It ends with a result of
    every trial, and no trial with a result is trained again.
    """
    with short_folder() as folder:
        ports = Ports.free()
        fixed = f"--runtime-env-agent-port={ports.agent}"
        head = start_head(folder, ports, "--num-cpus=2", fixed)
        try:
            head.wait()
            variables = {
                "RAY_API_SERVER_ADDRESS": head.dashboard,
                # The new head responds before its node takes jobs.
                "TINYNET_RETRIES": "20",
                "TINYNET_RETRY_SECONDS": "3",
                "PYTHONUNBUFFERED": "1",
            }
            arguments = tiny_arguments(tmp_path, "recipe.epochs=8", "run.concurrency=1", trials=3)
            with (tmp_path / "log").open("wb") as log:
                script = subprocess.Popen(
                    ["bash", str(SCRIPT), "tinynet", "submit", *arguments, "--gpu=a100", "--yes"],
                    cwd=tmp_path,
                    env=environment(**variables),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            try:
                end = time.monotonic() + 240
                while not results(tmp_path):
                    assert script.poll() is None and time.monotonic() < end, log_text(tmp_path)
                    time.sleep(0.05)
                head.kill()
                before = result_files(tmp_path)
                assert 0 < len(before) < 3, "the head was killed too late"
                head = start_head(folder, ports, "--num-cpus=2", fixed)
                assert script.wait(240) == 0, log_text(tmp_path)
            finally:
                if script.poll() is None:
                    script.kill()
                    script.wait()
        finally:
            head.kill()
    assert len(results(tmp_path)) == 3
    assert {result["status"] for result in results(tmp_path).values()} == {"finished"}
    # The same bytes and times of writing: the results of before were not written again.
    assert before.items() <= result_files(tmp_path).items()
    text = log_text(tmp_path)
    assert "has lost job demo-1, because its head was restarted" in text
    assert "resume.sh: exit code 1: trying again in 3 s (20 attempts left)" in text
    assert text.count("Frontier\n") == 1


def result_files(storage: Path) -> dict[str, tuple[bytes, int]]:
    """Return the content and time of writing of every result, by file name."""
    files = (storage / "demo/results").glob("*.json")
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def log_text(home: Path) -> str:
    return (home / "log").read_text(errors="replace")


@pytest.mark.heads
def test_submitter_of_kuberay_submits_again_after_its_head_was_killed() -> None:
    """The command of the submitter's pod fails with a lost head, so Kubernetes repeats the pod.

    The command is that of KubeRay 1.7.0 (``BuildJobSubmitCommand``), without its wait for the head.
    """
    with short_folder() as folder:
        ports = Ports.free()
        fixed = f"--runtime-env-agent-port={ports.agent}"
        head = start_head(folder, ports, "--num-cpus=0", fixed)
        try:
            head.wait()
            # The first run waits until it is killed.
            entrypoint = (
                f"echo run >> {folder}/runs; test $(wc -l < {folder}/runs) -gt 1 || sleep 600"
            )
            command = submitter(head, f"bash -c {shlex.quote(entrypoint)}")
            pod = subprocess.Popen(
                ["bash", "-c", command], env=environment(), start_new_session=True
            )
            end = time.monotonic() + 120
            while not (folder / "runs").exists():
                assert pod.poll() is None and time.monotonic() < end
                time.sleep(0.1)
            # The submitter follows the output of the job.
            time.sleep(5)
            head.kill()
            assert pod.wait(120) != 0
            head = start_head(folder, ports, "--num-cpus=0", fixed)
            head.wait()
            repeated = subprocess.run(
                ["bash", "-c", command], env=environment(), timeout=120, check=False
            )
        finally:
            head.kill()
        assert repeated.returncode == 0
        assert (folder / "runs").read_text() == "run\nrun\n"


def submitter(head: Head, entrypoint: str) -> str:
    """Return the command of the submitter's pod for one job."""
    address = f"--address {head.dashboard}"
    return (
        f"if ! ray job status {address} search > /dev/null 2>&1 ; "
        f"then ray job submit {address} --no-wait --submission-id search -- {entrypoint} ; "
        f"fi ; ray job logs {address} --follow search"
    )
