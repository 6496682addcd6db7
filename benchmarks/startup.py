"""Wall time of ``tinynet suggest 0.25`` and of imports, each in a new process.

Run by ``python -m benchmarks.run startup``. Python's start and ``import torch`` are timed for
comparison.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.measure import Row, in_turns, ratio

ROUNDS = 7
PASS, TORCH = "python -c pass", "python -c 'import torch'"
IMPORT, SUGGEST = "import tinynet_search", "tinynet suggest 0.25"
SUGGEST_RDW = "tinynet_search.suggest_rdw(0.25)"
# Seconds below which a user does not notice the wait.
TARGETS = {IMPORT: 0.4, SUGGEST: 1.0}


def run() -> list[Row]:
    commands = {
        PASS: [sys.executable, "-c", "pass"],
        TORCH: [sys.executable, "-c", "import torch"],
        IMPORT: [sys.executable, "-c", "import tinynet_search"],
        SUGGEST_RDW: [
            sys.executable,
            "-c",
            "import tinynet_search; tinynet_search.suggest_rdw(0.25)",
        ],
        SUGGEST: [str(Path(sys.executable).with_name("tinynet")), "suggest", "0.25"],
    }
    calls: dict[str, Callable[[], object]] = {
        name: lambda command=command: subprocess.run(command, check=True, capture_output=True)
        for name, command in commands.items()
    }
    times = in_turns(calls, ROUNDS)
    measured = (IMPORT, SUGGEST_RDW, SUGGEST)
    return [
        *(Row(f"{name}, least of {ROUNDS}", min(seconds), "s") for name, seconds in times.items()),
        *(
            Row(f"{name}, median of {ROUNDS}", median(seconds), "s", TARGETS.get(name))
            for name, seconds in times.items()
        ),
        *(Row(f"{name} / {PASS}", ratio(times, name, PASS), "times") for name in measured),
        *(Row(f"{TORCH} / {name}", ratio(times, TORCH, name), "times") for name in measured),
    ]
