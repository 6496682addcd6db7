"""Tests of the Slurm batch script, with stubs of Slurm, Ray and tinynet that record their calls."""

import os
import signal
import subprocess
import time
from pathlib import Path

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


def environment(home: Path, code: int = 0, addresses: str = ADDRESSES) -> dict[str, str]:
    """Write the stubs and return the environment of the job; ``code`` is the status of tinynet."""
    folder = home / "venv/bin"
    folder.mkdir(parents=True)
    for name, script in STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    (home / "mine.toml").write_text("")
    job = {
        "SLURM_JOB_ID": "12345",
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


def start(home: Path, code: int = 0, addresses: str = ADDRESSES) -> "subprocess.Popen[str]":
    """Start the batch script with stubs."""
    command = ["bash", str(SCRIPT), str(home / "mine.toml")]
    return subprocess.Popen(
        command,
        env=environment(home, code, addresses),
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


@pytest.mark.parametrize("code", [0, 1])
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
    assert (
        "--node-ip-address=192.0.2.1 --port=22345 --dashboard-host=127.0.0.1 "
        "--dashboard-port=32345 --temp-dir=/tmp/ray-12345"
    ) in head
    assert "--address=192.0.2.1:22345" in worker
    assert sorted(
        line.split("--nodelist=")[1].split()[0]
        for line in calls
        if line.startswith("srun --overlap")
    ) == ["one", "two"]
    assert (
        f"tinynet search {tmp_path}/mine.toml --storage {tmp_path}/tinynet/searches "
        "at 192.0.2.1:22345"
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
