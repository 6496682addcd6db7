"""Tests that other machines cannot reach a local cluster.

Ray without a token runs any code that it receives.
"""

import json
import os
import subprocess
import sys

import pytest

# Runs in a separate process, since this one is connected to the tests' cluster. Prints the
# addresses, in the format of /proc, on which that process and all its descendants listen.
SCRIPT = """
import json, os
from pathlib import Path
from tinynet_search.cluster.connect import cluster
from tinynet_search.config import load_config

def descendants():
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    pids = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= more
    return pids

def sockets():
    for pid in descendants():
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                yield os.readlink(file)
            except OSError:
                continue

with cluster(load_config(preset="demo", settings=["run.executor=ray_train"]).run):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    own_sockets = set(sockets())
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            row = line.split()
            if row[3] == "0A" and f"socket:[{row[9]}]" in own_sockets:
                addresses.add(row[1].partition(":")[0])
    print(json.dumps(sorted(addresses)))
"""
# 127.0.0.1 in the kernel's format, and mapped to IPv6.
LOOPBACK = ["0000000000000000FFFF00000100007F", "0100007F"]


@pytest.mark.ray
@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="requires /proc")
def test_local_cluster_listens_on_loopback_only() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    completed = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert json.loads(completed.stdout.splitlines()[-1]) == LOOPBACK
