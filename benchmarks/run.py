"""Measure, write ``benchmarks/results/<name>.json`` and print a table: ``python -m benchmarks.run [NAME...]``.

Without names, about five minutes on two CPU cores, most of them the training of ``overhead``. ``train_speed`` and
``train_data`` take some ten minutes more, ``search_scale`` and ``formula_fit`` some five, ``demo``, ``setup_time`` and
``frontier_time`` ten each, ``search_scale_10000`` half an hour: they run when they are named. Targets are printed beside the
figures as met or missed, and never asserted.
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

from benchmarks.measure import Row
from tinynet_search.text import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = ("cost", "memory", "startup", "overhead")
WHEN_NAMED = (
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
    """Run the named benchmarks; exit code 2 where one is unknown."""
    known = (*NAMES, *WHEN_NAMED)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {unknown[0]!r}: there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or NAMES:
        record = measured(name)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(shown(record), end="\n\n", flush=True)
    return 0


def measured(name: str) -> dict[str, Any]:
    """One benchmark's figures, with when, where and on what they were measured."""
    load, started = os.getloadavg()[0], time.perf_counter()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    module = importlib.import_module(f"benchmarks.{name}")
    rows: list[Row] = module.run()
    return {
        "benchmark": name,
        "about": (module.__doc__ or "").split("\n", 1)[0],
        "date": date,
        "commit": commit(),
        # Of the last minute, before and after: above a benchmark's own processes others were at work.
        "hardware": hardware() | {"load": [round(load, 2), round(os.getloadavg()[0], 2)]},
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in PACKAGES},
        "seconds": round(time.perf_counter() - started, 1),
        "figures": [row.to_json() for row in rows],
    }


def shown(record: dict[str, Any]) -> str:
    machine = record["hardware"]
    rows = [
        (f["name"], f"{f['value']:,.4g}", f["unit"], f["target"], f["verdict"])
        for f in record["figures"]
    ]
    place = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:g} GB, load {machine['load'][0]:g} before"
    head = f"{record['benchmark']}: {record['about']}\n{record['date']}, commit {record['commit']}, {place}"
    return f"{head}\n\n{table(('', 'measured', '', 'target', ''), rows)}"


def hardware() -> dict[str, Any]:
    """The CPU's model, the cores this process may use, and the machine's memory."""
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
    """The commit, with ``-dirty`` where files differ from it; results themselves do not count."""
    head, changes = (
        _git("rev-parse", "--short=12", "HEAD"),
        _git("status", "--porcelain", "--", ".", ":!benchmarks/results"),
    )
    return "unknown" if head is None else f"{head}-dirty" if changes else head


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
