"""Runs the checks that need a GPU, in under eight minutes; ``--tiny`` runs small ones on a CPU.

Called by hand, by ``make gpu-check`` and by the tests: ``python -m benchmarks.gpu.check``.

It needs torch, torchvision, timm, numpy, pillow, safetensors and scikit-learn, but not Ray,
pydantic or MLflow. Each check prints one line. The checks run in a worker process, which is
replaced after a check fails, dies or exceeds its time limit, so that one check does not affect the
next. The exit code is 1 if a check fails.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
PACKAGES = ("torch", "torchvision", "timm", "numpy")


class Check(NamedTuple):
    """``module.function`` of a check, and its time limit in seconds."""

    module: str
    function: str
    seconds: float


# Each limit is several times the expected time; TOTAL_SECONDS limits all checks together.
CHECKS = (
    Check("speed", "throughput", 100),
    Check("speed", "channels_last", 30),
    Check("speed", "compiled", 90),
    Check("speed", "sharing", 90),
    Check("training", "accuracy", 120),
    Check("training", "families", 40),
    Check("training", "memory", 40),
    Check("training", "out_of_memory", 120),
    Check("training", "sync_bn", 40),
    Check("training", "resume", 40),
    Check("training", "packed", 40),
)
TOTAL_SECONDS = 480.0


class Worker:
    """A process that runs checks one after another."""

    def __init__(self, tiny: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, worker_connection = context.Pipe()
        self._process = context.Process(target=_serve, args=(worker_connection, tiny))
        self._process.start()
        worker_connection.close()

    def run(self, check: Check, seconds: float) -> dict[str, Any]:
        """Run a check; return its verdict, figure and figures.

        The verdict is FAIL if the process dies or the check takes longer than ``seconds``.
        """
        try:
            self._connection.send((check.module, check.function))
            if self._connection.poll(seconds):
                return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            return _failed(f"the worker process ended with exit code {self._process.exitcode}")
        return _failed(f"not finished after {seconds:.0f} s")

    def stop(self) -> None:
        """Kill the process and the processes that its checks started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def _failed(reason: str) -> dict[str, Any]:
    return {"verdict": "FAIL", "figure": reason, "figures": {}}


def _serve(connection: Any, tiny: bool) -> None:
    """Run the requested checks one at a time in a new process group, with one thread."""
    os.setsid()
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):
        while True:
            module, function = connection.recv()
            with tempfile.TemporaryDirectory() as scratch:
                connection.send(_run_check(module, function, tiny, Path(scratch)))


def _run_check(module: str, function: str, tiny: bool, scratch: Path) -> dict[str, Any]:
    import importlib

    from benchmarks.gpu.setting import Outcome, Setting, Skipped

    try:
        run: Callable[[Setting], Outcome] = getattr(
            importlib.import_module(f"benchmarks.gpu.{module}"), function
        )
        outcome = run(Setting(tiny, scratch))
    except Skipped as reason:
        return {"verdict": "SKIPPED", "figure": str(reason), "figures": {}}
    except Exception as error:
        return _failed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return {"verdict": outcome.verdict, "figure": outcome.figure, "figures": outcome.figures}


def run_checks(names: Sequence[str], tiny: bool) -> list[dict[str, Any]]:
    """Run the named checks, or all if ``names`` is empty, and print one line per check."""
    outcomes, worker, started = [], None, time.perf_counter()
    for check in CHECKS:
        if names and check.function not in names:
            continue
        check_started = time.perf_counter()
        remaining = TOTAL_SECONDS - (check_started - started)
        worker = worker or Worker(tiny)
        outcome = (
            worker.run(check, min(check.seconds, remaining))
            if remaining > 1
            else {"verdict": "SKIPPED", "figure": "out of time", "figures": {}}
        )
        seconds = round(time.perf_counter() - check_started, 1)
        outcomes.append({"check": check.function, **outcome, "seconds": seconds})
        print(
            f"{check.function:14} {outcome['verdict']:8} {outcome['figure']} ({seconds:.0f} s)",
            flush=True,
        )
        if outcome["verdict"] == "FAIL":
            worker.stop()
            worker = None
    if worker:
        worker.stop()
    return outcomes


def machine() -> dict[str, Any]:
    """The date, the commit, the GPU, its driver and the package versions."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"),
        "gpu": gpu,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if gpu
        else None,
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in PACKAGES},
    }


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check", description=__doc__)
    parser.add_argument(
        "checks",
        nargs="*",
        metavar="CHECK",
        help=f"Check to run (default: all of {', '.join(check.function for check in CHECKS)}).",
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="Run the smallest checks that execute every line, on a CPU.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"Write the results to this JSON file (default: {RESULTS.relative_to(ROOT)} "
        "on a GPU without --tiny, otherwise none).",
    )
    options = parser.parse_args(arguments)
    known = [check.function for check in CHECKS]
    unknown = sorted(set(options.checks) - set(known))
    if unknown:
        parser.error(f"unknown check {unknown[0]!r}; expected one of {', '.join(known)}")
    if options.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    about = machine()
    print(
        f"{about['gpu'] or 'no GPU: speeds are not judged'}, "
        f"driver {about['driver']}, commit {about['commit']}",
        flush=True,
    )
    outcomes = run_checks(options.checks, options.tiny)
    out = options.out or (RESULTS if about["gpu"] and not options.tiny else None)
    if out:
        out.write_text(
            json.dumps(about | {"tiny": options.tiny, "checks": outcomes}, indent=1) + "\n",
            encoding="utf-8",
        )
    return int(any(outcome["verdict"] == "FAIL" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
