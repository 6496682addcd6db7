"""All checks that need a GPU, in under eight minutes: ``python -m benchmarks.gpu.check``; ``--tiny`` tries them on a CPU.

Needs torch, torchvision, timm, numpy, pillow, safetensors and scikit-learn: no Ray, no pydantic, no MLflow. Each check
prints one line. They run in a process of their own, which is replaced where a check fails, dies or takes too long, so
that none spoils the next. The exit code is 1 where one fails.
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
    """``module.function`` of a check, and the seconds it may take."""

    module: str
    function: str
    seconds: float


# Each may take several times what it should; all together have ALL_SECONDS.
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
ALL_SECONDS = 480.0


class Worker:
    """A process that runs checks one after another."""

    def __init__(self, tiny: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, tiny))
        self._process.start()
        theirs.close()

    def run(self, check: Check, seconds: float) -> dict[str, Any]:
        """The check's verdict, figure and figures; FAIL where it died or took too long."""
        try:
            self._end.send((check.module, check.function))
            if self._end.poll(seconds):
                return self._end.recv()
        except (EOFError, OSError):
            self._process.join(5)
            return _failed(f"its process ended with exit code {self._process.exitcode}")
        return _failed(f"not done after {seconds:.0f} s")

    def stop(self) -> None:
        """End the process, and those that a check started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def _failed(why: str) -> dict[str, Any]:
    return {"verdict": "FAIL", "figure": why, "figures": {}}


def _serve(end: Any, tiny: bool) -> None:
    """The worker's side: a group of processes of its own, one thread, one check at a time."""
    os.setsid()
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):
        while True:
            module, function = end.recv()
            with tempfile.TemporaryDirectory() as scratch:
                end.send(_checked(module, function, tiny, Path(scratch)))


def _checked(module: str, function: str, tiny: bool, scratch: Path) -> dict[str, Any]:
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


def checked(names: Sequence[str], tiny: bool) -> list[dict[str, Any]]:
    """Run the named checks, all where none is named, and print a line for each."""
    found, worker, started = [], None, time.perf_counter()
    for check in CHECKS:
        if names and check.function not in names:
            continue
        begun = time.perf_counter()
        left = ALL_SECONDS - (begun - started)
        worker = worker or Worker(tiny)
        outcome = (
            worker.run(check, min(check.seconds, left))
            if left > 1
            else {"verdict": "SKIPPED", "figure": "out of time", "figures": {}}
        )
        seconds = round(time.perf_counter() - begun, 1)
        found.append({"check": check.function, **outcome, "seconds": seconds})
        print(
            f"{check.function:14} {outcome['verdict']:8} {outcome['figure']} ({seconds:.0f} s)",
            flush=True,
        )
        if outcome["verdict"] == "FAIL":
            worker.stop()
            worker = None
    if worker:
        worker.stop()
    return found


def machine() -> dict[str, Any]:
    """The GPU, its driver, and what was checked."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _said("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"),
        "gpu": gpu,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if gpu
        else None,
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in PACKAGES},
    }


def _said(*command: str) -> str:
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
        help=f"all by default: {', '.join(check.function for check in CHECKS)}",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="the least that runs every line, on a CPU"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"JSON file; {RESULTS.relative_to(ROOT)} where a GPU was used, else none",
    )
    asked = parser.parse_args(arguments)
    strange = sorted(set(asked.checks) - {check.function for check in CHECKS})
    if strange:
        parser.error(f"no check {strange[0]!r}")
    if asked.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    about = machine()
    print(
        f"{about['gpu'] or 'no GPU: speeds are not judged'}, driver {about['driver']}, commit {about['commit']}",
        flush=True,
    )
    found = checked(asked.checks, asked.tiny)
    out = asked.out or (RESULTS if about["gpu"] and not asked.tiny else None)
    if out:
        out.write_text(
            json.dumps(about | {"tiny": asked.tiny, "checks": found}, indent=1) + "\n",
            encoding="utf-8",
        )
    return int(any(outcome["verdict"] == "FAIL" for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
