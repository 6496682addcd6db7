"""Set-up time of plain pip, ``make demo`` and ``make test``, with empty caches.

Run by ``python -m benchmarks.run setup_time``. Plain pip is how the project was set up before uv.

One turn sets up each once, in a new environment, and each turn starts with a different one. pip's
configuration on this machine provides the indexes and certificates. Caches outside pip and uv, such
as the machine's page cache of a local mirror's files, persist between turns.
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
COMMANDS: Mapping[str, Sequence[str]] = {
    PIP: [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        "constraints.txt",
        "-e",
        ".[search,dev,dev-deploy,dev-docs]",
    ],
    DEMO: [*SCRIPT, ".[demo]"],
    TEST: [*SCRIPT, ".[search,dev,dev-deploy,dev-docs]"],
}
# The first import compiles the modules that have no bytecode yet.
IMPORTS = (
    "import torch, ray.tune, timm, mlflow.store.tracking.sqlalchemy_store, "
    "sklearn.gaussian_process, pymoo.core.problem"
)


def run() -> list[Row]:
    times: dict[str, list[float]] = {
        VENV: [],
        **{f"{name}{part}": [] for name in COMMANDS for part in ("", ", first import")},
    }
    for turn in range(TURNS):
        names = [list(COMMANDS)[(turn + step) % len(COMMANDS)] for step in range(len(COMMANDS))]
        for name in names:
            created, installed, imported = _set_up(COMMANDS[name])
            times[VENV].append(created)
            times[name].append(created + installed)
            times[f"{name}, first import"].append(imported)
            print(
                f"setup_time: turn {turn + 1} of {TURNS}, {name}: {created + installed:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    with_import = {
        name: [a + b for a, b in zip(times[name], times[f"{name}, first import"], strict=True)]
        for name in COMMANDS
    }
    return [
        *(
            Row(f"{name}, median of {len(seconds)}", median(seconds), "s")
            for name, seconds in times.items()
        ),
        Row(f"{DEMO} / {PIP}", ratio(times, DEMO, PIP), "times", 1 / 3),
        Row(f"{TEST} / {PIP}", ratio(times, TEST, PIP), "times"),
        Row(f"{DEMO} / {PIP}, with the first import", ratio(with_import, DEMO, PIP), "times"),
        Row(f"{TEST} / {PIP}, with the first import", ratio(with_import, TEST, PIP), "times"),
    ]


def _set_up(arguments: Sequence[str]) -> tuple[float, float, float]:
    """Seconds to create an environment, to install into it, and for the first import in it."""
    with tempfile.TemporaryDirectory(prefix="tinynet-setup-") as folder:
        python = f"{folder}/venv/bin/python"
        caches = {"PIP_CACHE_DIR": f"{folder}/pip", "UV_CACHE_DIR": f"{folder}/uv"}
        # Without uv this would measure pip twice. The bytecode setting is that of the Makefile.
        settings = {"TINYNET_INSTALLER": "uv", "PYTHONDONTWRITEBYTECODE": ""}
        environment = os.environ | caches | settings
        seconds = [
            # Use the machine's Python, not the environment that this process runs in.
            _seconds(
                [getattr(sys, "_base_executable", sys.executable), "-m", "venv", f"{folder}/venv"],
                environment,
            ),
            _seconds([python, *arguments], environment),
            _seconds([python, "-c", IMPORTS], environment),
        ]
    # Flush the deletions to disk before the next measurement starts.
    os.sync()
    created, installed, imported = seconds
    return created, installed, imported


def _seconds(command: Sequence[str], environment: Mapping[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    elapsed = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{command} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return elapsed
