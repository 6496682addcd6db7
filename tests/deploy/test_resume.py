"""Tests of ``deploy/resume.sh``, which repeats a search until it is done.

The script really runs: with commands of known exit codes, and as the entrypoint of a Ray job.
``test_lost_head`` runs it with a search whose head is killed.
"""

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY

SCRIPT = DEPLOY / "resume.sh"
# Ends with the exit codes in $CODES, one after the other, and counts its runs.
COMMAND = 'echo run >> runs; set -- $CODES; shift $(($(wc -l < runs) - 1)); exit "${1:-0}"'


def resume(home: Path, codes: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the script with a command that ends with these exit codes."""
    environment = os.environ | {"CODES": codes, "TINYNET_RETRY_SECONDS": "0"} | variables
    return subprocess.run(
        ["bash", str(SCRIPT), "bash", "-c", COMMAND],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def runs(home: Path) -> int:
    return len((home / "runs").read_text().splitlines())


@pytest.mark.quick
@pytest.mark.parametrize(
    ("codes", "code", "count"),
    [
        ("0", 0, 1),
        ("1 0", 0, 2),
        ("137 1 0", 0, 3),
        ("1 1 1 1 0", 1, 4),
        # A wrong request: once more, because of the lease of a driver that died, then never again.
        ("2 2 0", 2, 2),
        ("2 0", 0, 2),
        ("1 2 1 0", 0, 4),
        ("2 1 2 2", 2, 4),
        ("143 0", 143, 1),
        ("130 0", 130, 1),
    ],
)
def test_lost_search_is_repeated_and_a_wrong_request_is_not(
    tmp_path: Path, codes: str, code: int, count: int
) -> None:
    done = resume(tmp_path, codes)
    assert (done.returncode, runs(tmp_path)) == (code, count), done.stderr
    assert ("giving up" in done.stderr) == (code in (1, 2))


@pytest.mark.quick
def test_number_of_attempts_and_usage(tmp_path: Path) -> None:
    assert resume(tmp_path, "1 0", TINYNET_RETRIES="0").returncode == 1
    assert runs(tmp_path) == 1
    # An attempt that took long has made progress, and does not count.
    (tmp_path / "runs").unlink()
    assert resume(tmp_path, "1 1 1 1 1 0", TINYNET_LONG_SECONDS="0").returncode == 0
    assert runs(tmp_path) == 6
    usage = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert usage.returncode != 0 and "usage: resume.sh COMMAND..." in usage.stderr


@pytest.mark.quick
def test_head_that_does_not_return_is_an_error(tmp_path: Path) -> None:
    done = resume(
        tmp_path, "0", RAY_API_SERVER_ADDRESS="http://127.0.0.1:9", TINYNET_HEAD_SECONDS="0"
    )
    assert done.returncode == 1 and not (tmp_path / "runs").exists()
    assert done.stderr == "resume.sh: no head responds at http://127.0.0.1:9 for 0 s\n"


@pytest.mark.quick
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_reaches_the_command_and_ends_the_repetition(
    tmp_path: Path, number: signal.Signals
) -> None:
    inner = (
        'echo run >> runs; trap "echo stopping >> seen; exit 143" TERM; '
        "touch ready; while true; do sleep .1; done"
    )
    # A background job starts with SIGINT ignored, which bash cannot change.
    default_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        ["bash", str(SCRIPT), "bash", "-c", inner],
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=default_sigint,
    ) as process:
        try:
            end = time.monotonic() + 20
            while not (tmp_path / "ready").exists():
                assert time.monotonic() < end
                time.sleep(0.05)
            process.send_signal(number)
            assert process.wait(20) == 143
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "seen").read_text() == "stopping\n"
    assert runs(tmp_path) == 1


@pytest.mark.ray
@pytest.mark.parametrize(("code", "status"), [(2, "STOPPED"), (1, "FAILED"), (0, "SUCCEEDED")])
def test_kuberay_repeats_a_failed_job_and_not_a_wrong_request(
    ray_cluster: Any, tmp_path: Path, code: int, status: str
) -> None:
    """KubeRay repeats a RayJob only if the status of its Ray job is FAILED."""
    from tinynet_search.jobs.connection import connect

    head = f"http://{ray_cluster.head_node.address_info['webui_url']}"
    client = connect(head)
    environment = {"TINYNET_RETRY_SECONDS": "0", "TINYNET_RETRIES": "1"}
    # On a host with several heads, Ray gives a job the address of the one that started last.
    environment["RAY_API_SERVER_ADDRESS"] = head
    job = client.submit_job(
        entrypoint=f"bash {SCRIPT} bash -c 'exit {code}'", runtime_env={"env_vars": environment}
    )
    end = time.monotonic() + 60
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < end, client.get_job_logs(job)
        time.sleep(0.2)
    assert client.get_job_status(job).value == status, client.get_job_logs(job)
    # The submitter's command succeeds, so Kubernetes does not repeat the submitter.
    followed = subprocess.run(
        ["ray", "job", "logs", "--address", head, "--follow", job],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert followed.returncode == 0, followed.stderr
    if code == 2:
        assert f"stopping the job {job}, so that it is not repeated" in followed.stdout
