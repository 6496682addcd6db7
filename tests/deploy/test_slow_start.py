"""Tests that a head survives a dashboard that starts slowly, with the settings of deploy/.

Real heads: the dashboard of each is delayed by a module that its Python loads first.
"""

import time
from pathlib import Path

import pytest

from tests.deploy.processes import Head, Ports, short_folder, start_head
from tests.deploy.test_consistency import START_LIMITS

# Delays the process that Ray starts for the dashboard.
DELAY = """
import os, sys, time
if any(part.endswith("/dashboard/dashboard.py") for part in sys.orig_argv):
    time.sleep(float(os.environ["SLOW_SECONDS"]))
"""
# Longer than the 30 seconds of Ray's client server.
SECONDS = 40.0


@pytest.mark.heads
def test_head_with_the_options_of_the_files_survives_a_slow_dashboard() -> None:
    """Without them, ``ray start --head --block`` ends its own head."""
    with short_folder() as first, short_folder() as second:
        heads: list[Head] = []
        try:
            ports = Ports.free()
            fixed = f"--runtime-env-agent-port={ports.agent}"
            heads.append(slow_head(first, ports, fixed, **START_LIMITS))
            heads.append(slow_head(second, Ports.free()))
            set_up, default = heads
            set_up.wait(240)
            end = time.monotonic() + 120
            while default.process.poll() is None:
                assert time.monotonic() < end, "Ray's defaults changed: are the settings needed?"
                time.sleep(0.5)
            assert default.process.returncode == 1
            assert set_up.process.poll() is None and set_up.responds()
        finally:
            for head in heads:
                if head.process.poll() is None:
                    head.kill()


def slow_head(folder: Path, ports: Ports, *options: str, **limits: str) -> Head:
    """Start a head whose dashboard is delayed."""
    (folder / "sitecustomize.py").write_text(DELAY)
    variables = {"PYTHONPATH": str(folder), "SLOW_SECONDS": str(SECONDS), **limits}
    return start_head(folder, ports, "--num-cpus=0", *options, variables=variables)
