"""Run benchmarks, write ``benchmarks/results/<name>.json`` and print a table of the figures.

Called by hand and by the Makefile: ``python -m benchmarks.run [NAME...]``.

Without names it takes about five minutes on two CPU cores, mostly for the training of ``overhead``.
The other benchmarks run only when they are named: ``train_speed`` and ``train_data`` take about ten
minutes together, ``search_scale`` and ``formula_fit`` about five, ``demo``, ``setup_time`` and
``frontier_time`` ten each, ``search_scale_10000`` half an hour. The table marks each target as met
or missed; a missed target is not an error.
"""

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import docs_tables
from benchmarks.measure import Row
from tinynet_search.text import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DEFAULT_NAMES = ("cost", "memory", "startup", "overhead")
OTHER_NAMES = (
    "train_speed",
    "train_data",
    "search_scale",
    "search_scale_10000",
    "tracking_scale",
    "formula_fit",
    "frontier_time",
    "demo",
    "setup_time",
)
PACKAGES = ("torch", "ray", "timm", "numpy", "mlflow")


def main(names: Sequence[str]) -> int:
    """Run the named benchmarks, or the default ones; return 2 if a name is unknown."""
    known = (*DEFAULT_NAMES, *OTHER_NAMES)
    unknown = [name for name in names if name not in known]
    if unknown:
        expected = ", ".join(known)
        print(f"unknown benchmark {unknown[0]!r}; expected one of {expected}", file=sys.stderr)
        return 2
    for name in names or DEFAULT_NAMES:
        record = measure(name)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(formatted(record), end="\n\n", flush=True)
    docs_tables.write()
    return 0


def measure(name: str) -> dict[str, Any]:
    """Run one benchmark; return its figures with the date, commit, hardware and versions."""
    load, started = os.getloadavg()[0], time.perf_counter()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    module = importlib.import_module(f"benchmarks.{name}")
    rows: list[Row] = module.run()
    return {
        "benchmark": name,
        "about": (module.__doc__ or "").split("\n", 1)[0],
        "date": date,
        "commit": commit(),
        # Load averages of the last minute, before and after. A load above the number of the
        # benchmark's own processes means that other processes were running.
        "hardware": hardware() | {"load": [round(load, 2), round(os.getloadavg()[0], 2)]},
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in PACKAGES},
        "seconds": round(time.perf_counter() - started, 1),
        "figures": [row.to_json() for row in rows],
    }


def formatted(record: dict[str, Any]) -> str:
    machine = record["hardware"]
    rows = [
        (f["name"], f"{f['value']:,.4g}", f["unit"], f["target"], f["verdict"])
        for f in record["figures"]
    ]
    head = (
        f"{record['benchmark']}: {record['about']}\n"
        f"{record['date']}, commit {record['commit']}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']:g} GB, load {machine['load'][0]:g} before"
    )
    return f"{head}\n\n{table(('', 'measured', '', 'target', ''), rows)}"


def hardware() -> dict[str, Any]:
    """The CPU model, the number of cores available to this process, and the memory in GB."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gb": round(memory / 2**30, 1),
    }


def commit() -> str:
    """The commit, with ``-dirty`` if files other than ``benchmarks/results`` differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return f"{head}-dirty" if changes else head


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
