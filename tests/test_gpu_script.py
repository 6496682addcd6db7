"""Tests that the script of the GPU checks runs on a CPU, without Ray, pydantic and MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_INSTALLED = ("ray", "pydantic", "mlflow")
NEEDS_A_GPU = {"compiled", "memory", "out_of_memory", "sync_bn"}


def run_checks(
    tmp_path: Path, *names: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, object]]]:
    for module in NOT_INSTALLED:
        (tmp_path / f"{module}.py").write_text(
            f"raise ModuleNotFoundError('{module} is not installed')\n"
        )
    out = tmp_path / "out.json"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.gpu.check", *names, "--tiny", "--out", str(out)]
    completed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    return completed, {row["check"]: row for row in json.loads(out.read_text())["checks"]}


def test_every_check_runs_on_a_cpu_with_small_sizes(tmp_path: Path) -> None:
    completed, rows = run_checks(tmp_path)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert {name for name, verdict in verdicts.items() if verdict == "SKIPPED"} == NEEDS_A_GPU
    assert set(verdicts.values()) == {"PASS", "SKIPPED"}
    assert [line.split()[0] for line in completed.stdout.splitlines()[1:]] == list(rows)


def test_a_failed_or_hanging_check_does_not_stop_the_others() -> None:
    from benchmarks.gpu.check import Check, Worker

    worker = Worker(tiny=True)
    try:
        assert worker.run(Check("speed", "no_such_check", 60), 60)["verdict"] == "FAIL"
        assert worker.run(Check("training", "sync_bn", 60), 60)["verdict"] == "SKIPPED"
        assert worker.run(Check("speed", "throughput", 0.0), 0.0)["figure"].startswith(
            "not finished after 0 s"
        )
    finally:
        worker.stop()
