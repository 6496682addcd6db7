"""Tests of the Slurm batch script, with stubs of Slurm, Ray and tinynet that record their calls."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY

SCRIPT = DEPLOY / "slurm/search.sbatch"
# srun runs the command after its own options; `ray start` does not return, as with --block.
STUBS = {
    "srun": 'echo "srun $*" >> "$CALLS"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; [ "$1" != show ] || printf "one\\ntwo\\n"',
    "ray": 'echo "ray $* mode=$RAY_AUTH_MODE" >> "$CALLS"; [ "$1" != start ] || exec sleep 60',
    # The host name has a loopback address, as on many Debian systems.
    "hostname": (
        'case "$1" in -I | --all-ip-addresses) echo "$ADDRESSES" ;; *) echo 127.0.1.1 ;; esac'
    ),
    "python": (
        # Like the script's Python code, the stub waits for the nodes.
        'if [ "$1" = - ]; then cat > /dev/null; '
        "for _ in $(seq 200); do "
        '[ "$(grep -c "^ray start" "$CALLS")" -ge "$2" ] && break; sleep .1; done; '
        'echo "python $*" >> "$CALLS"; else echo 0123456789abcdef; fi; '
        'ls -l "$RAY_AUTH_TOKEN_PATH" 2> /dev/null | cut -c1-10 >> "$CALLS" || true'
    ),
    "tinynet": (
        'echo "tinynet $* at $RAY_ADDRESS" >> "$CALLS"; [ ! -e "$HOLD" ] || '
        '{ sleep 60 > /dev/null 2>&1 & trap "kill $!; exit 143" TERM; wait; }; exit "$CODE"'
    ),
}


# The first address is a loopback address, the second is not IPv4.
ADDRESSES = "127.0.1.1 fd00::2 192.0.2.1 192.0.2.2 "


def environment(
    home: Path, code: int = 0, addresses: str = ADDRESSES, job_id: int = 12345, restarts: int = 0
) -> dict[str, str]:
    """Write the stubs and return the environment of the job; ``code`` is the status of tinynet."""
    folder = home / "venv/bin"
    folder.mkdir(parents=True)
    for name, script in STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    (home / "mine.toml").write_text("")
    job = {
        "SLURM_JOB_ID": str(job_id),
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_JOB_NODELIST": "one,two",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_GPUS_ON_NODE": "4",
    }
    settings = {
        "HOME": str(home),
        "TINYNET_VENV": str(home / "venv"),
        "CALLS": str(home / "calls"),
        "CODE": str(code),
        "HOLD": str(home / "hold"),
        "ADDRESSES": addresses,
    }
    return {"PATH": os.environ["PATH"]} | job | settings


def start(home: Path, code: int = 0, **job: Any) -> "subprocess.Popen[str]":
    """Start the batch script with stubs; ``job`` as for ``environment``."""
    command = ["bash", str(SCRIPT), str(home / "mine.toml")]
    return subprocess.Popen(
        command,
        env=environment(home, code, **job),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_script_is_valid_bash_and_prints_its_usage() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    completed = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert completed.returncode != 0
    assert "usage: sbatch search.sbatch CONFIG.toml" in completed.stderr


@pytest.mark.parametrize("code", [0, 2])
def test_ray_starts_on_every_node_and_the_search_connects_to_it(tmp_path: Path, code: int) -> None:
    job = start(tmp_path, code)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == code, errors
    calls = (tmp_path / "calls").read_text().splitlines()
    starts = [line for line in calls if line.startswith("ray start")]
    (head,) = [line for line in starts if "--head" in line]
    (worker,) = [line for line in starts if "--address=" in line]
    for line in (head, worker):
        assert "--num-cpus=32 --num-gpus=4" in line and "--block mode=token" in line
        assert "--dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0" in line
    port = head_ports(calls)["--port"]
    assert "--node-ip-address=192.0.2.1 " in head and "--dashboard-host=127.0.0.1 " in head
    assert "--temp-dir=/tmp/ray-12345" in head
    assert f"--address=192.0.2.1:{port}" in worker
    assert sorted(
        line.split("--nodelist=")[1].split()[0]
        for line in calls
        if line.startswith("srun --overlap")
    ) == ["one", "two"]
    assert (
        f"tinynet search {tmp_path}/mine.toml --storage {tmp_path}/tinynet/searches "
        f"at 192.0.2.1:{port}"
    ) in calls
    assert "-rw-------" in calls
    assert not any("0123456789abcdef" in line or "requeue" in line for line in calls)
    # The token is deleted when the job ends.
    assert not (tmp_path / ".tinynet/12345").exists()


@pytest.mark.parametrize(
    "addresses", ["127.0.1.1 ", "", "127.0.0.1 fd00::2 "], ids=["loopback", "none", "not IPv4"]
)
def test_first_node_without_a_reachable_address_is_an_error(tmp_path: Path, addresses: str) -> None:
    job = start(tmp_path, addresses=addresses)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 1
    assert errors == (
        "one has no IPv4 address except loopback: the other Ray nodes cannot connect to it\n"
    )
    assert "ray start" not in (tmp_path / "calls").read_text()
    assert not (tmp_path / ".tinynet/12345").exists()


def head_ports(calls: list[str]) -> dict[str, int]:
    """Return the ports of the head by option of ``ray start``."""
    (head,) = [line for line in calls if line.startswith("ray start --head")]
    options = ("--port", "--dashboard-port", "--ray-client-server-port", "--runtime-env-agent-port")
    return {name: int(head.split(f" {name}=")[1].split()[0]) for name in options}


def test_two_jobs_on_one_node_have_different_ports(tmp_path: Path) -> None:
    """The ports of two jobs differ, even if their IDs lead to the same ones."""
    chosen: list[dict[str, int]] = []
    with contextlib.ExitStack() as stack:
        for number, job_id in enumerate((12345, 12346, 12345 + 2500)):
            home = tmp_path / str(number)
            home.mkdir()
            job = start(home, job_id=job_id)
            _, errors = job.communicate(timeout=30)
            assert job.returncode == 0, errors
            chosen.append(head_ports((home / "calls").read_text().splitlines()))
            # The heads of the first jobs keep running, each on its ports.
            for port in chosen[-1].values():
                listener = stack.enter_context(socket.socket())
                listener.bind(("127.0.0.1", port))
                listener.listen()
    used = [port for ports in chosen for port in ports.values()]
    assert len(set(used)) == 12 and all(20000 <= port < 30000 for port in used), chosen


def test_lost_search_is_requeued_and_a_wrong_request_is_not(tmp_path: Path) -> None:
    cases = {
        (0, 0): False,
        (1, 0): True,
        (1, 2): True,
        (1, 3): False,
        (137, 0): True,
        (2, 0): False,
    }
    for number, ((code, restarts), requeued) in enumerate(cases.items()):
        home = tmp_path / str(number)
        home.mkdir()
        job = start(home, code, restarts=restarts)
        output, errors = job.communicate(timeout=30)
        assert job.returncode == code, errors
        assert ("scontrol requeue 12345" in (home / "calls").read_text()) == requeued, (
            code,
            restarts,
        )
        assert (f"ended with exit code {code}" in output + errors) == (code not in (0, 2))


def test_search_stops_and_job_is_requeued_at_the_time_limit(
    tmp_path: Path,
) -> None:
    (tmp_path / "hold").touch()
    job = start(tmp_path)
    calls = tmp_path / "calls"
    end = time.monotonic() + 20
    while not (calls.exists() and "tinynet search" in calls.read_text()):
        assert time.monotonic() < end, "the search did not start"
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    output, errors = job.communicate(timeout=30)
    assert job.returncode == 143, errors
    assert "scontrol requeue 12345" in calls.read_text().splitlines()
    assert "requeueing the job" in output
    assert not (tmp_path / ".tinynet/12345").exists()
