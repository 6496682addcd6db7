"""A cluster of a search's own: nobody else reaches it, since Ray without a token runs whatever it is sent."""

import json
import os
import subprocess
import sys

import pytest

# In a process of its own: this one is in the tests' cluster. What its whole family listens on, as /proc has it.
LOOK = """
import json, os
from pathlib import Path
from tinynet_search.cluster.connect import cluster
from tinynet_search.config import load_config

def family():
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found

def sockets():
    for pid in family():
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                yield os.readlink(file)
            except OSError:
                continue

with cluster(load_config(preset="demo", settings=["run.executor=ray_train"]).run):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    ours = set(sockets())
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    print(json.dumps(sorted({row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in ours})))
"""
# 127.0.0.1 as the kernel writes it, and the same within IPv6.
LOOPBACK = ["0000000000000000FFFF00000100007F", "0100007F"]


@pytest.mark.ray
@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="this system has no /proc")
def test_it_listens_on_loopback_alone() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == LOOPBACK
