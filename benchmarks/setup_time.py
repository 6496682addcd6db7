"""Set-up by pip, as it was, against that of ``make demo`` and of ``make test``: new environments, nothing in pip's and uv's caches.

A turn sets up each once, and each turn begins with another. Indexes and certificates are those that pip is set to on this
machine; what pip keeps nowhere, such as the machine's page cache of a local mirror's files, stays between turns.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.measure import Row, ratio

ROOT = Path(__file__).resolve().parents[1]
TURNS = int(os.environ.get("TINYNET_TURNS", "3"))
VENV, PIP, DEMO, TEST = "python -m venv", "pip, search and dev", "make demo", "make test"
SCRIPT = ["tools/install.py", "-c", "constraints.txt", "-e"]
WAYS: Mapping[str, Sequence[str]] = {
    PIP: [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        "constraints.txt",
        "-e",
        ".[search,dev]",
    ],
    DEMO: [*SCRIPT, ".[demo]"],
    TEST: [*SCRIPT, ".[search,dev]"],
}
# Where nothing has compiled these yet, the first import does.
LOADED = "import torch, ray.tune, timm, mlflow.store.tracking.sqlalchemy_store, sklearn.gaussian_process, pymoo.core.problem"


def run() -> list[Row]:
    times: dict[str, list[float]] = {
        VENV: [],
        **{f"{name}{part}": [] for name in WAYS for part in ("", ", first import")},
    }
    for turn in range(TURNS):
        names = [list(WAYS)[(turn + step) % len(WAYS)] for step in range(len(WAYS))]
        for name in names:
            made, installed, imported = _set_up(WAYS[name])
            times[VENV].append(made)
            times[name].append(made + installed)
            times[f"{name}, first import"].append(imported)
            print(
                f"setup_time: turn {turn + 1} of {TURNS}, {name}: {made + installed:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    both = {
        name: [a + b for a, b in zip(times[name], times[f"{name}, first import"], strict=True)]
        for name in WAYS
    }
    return [
        *(
            Row(f"{name}, median of {len(seconds)}", median(seconds), "s")
            for name, seconds in times.items()
        ),
        Row(f"{DEMO} / {PIP}", ratio(times, DEMO, PIP), "times", 1 / 3),
        Row(f"{TEST} / {PIP}", ratio(times, TEST, PIP), "times"),
        Row(f"{DEMO} / {PIP}, with the first import", ratio(both, DEMO, PIP), "times"),
        Row(f"{TEST} / {PIP}, with the first import", ratio(both, TEST, PIP), "times"),
    ]


def _set_up(arguments: Sequence[str]) -> tuple[float, float, float]:
    """Seconds to make an environment, to install into it, and to import in it for the first time."""
    with tempfile.TemporaryDirectory(prefix="tinynet-setup-") as folder:
        python = f"{folder}/venv/bin/python"
        caches = {"PIP_CACHE_DIR": f"{folder}/pip", "UV_CACHE_DIR": f"{folder}/uv"}
        # Without uv this would measure pip twice. Bytecode is written as the Makefile has it.
        own = {"TINYNET_INSTALLER": "uv", "PYTHONDONTWRITEBYTECODE": ""}
        environment = os.environ | caches | own
        seconds = [
            # Of the machine's Python, not of the environment that this runs in.
            _seconds(
                [getattr(sys, "_base_executable", sys.executable), "-m", "venv", f"{folder}/venv"],
                environment,
            ),
            _seconds([python, *arguments], environment),
            _seconds([python, "-c", LOADED], environment),
        ]
    # What is deleted here must not be written to the disk while the next one is timed.
    os.sync()
    made, installed, imported = seconds
    return made, installed, imported


def _seconds(command: Sequence[str], environment: Mapping[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    passed = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{command} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return passed
