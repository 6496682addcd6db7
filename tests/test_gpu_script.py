"""The script of the GPU checks runs, in small and on a CPU, where neither Ray nor pydantic nor MLflow is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_THERE = ("ray", "pydantic", "mlflow")
NEEDS_A_GPU = {"compiled", "memory", "out_of_memory", "sync_bn"}


def checked(
    tmp_path: Path, *names: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, object]]]:
    for module in NOT_THERE:
        (tmp_path / f"{module}.py").write_text(
            f"raise ModuleNotFoundError('{module} is not installed')\n"
        )
    out = tmp_path / "out.json"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.gpu.check", *names, "--tiny", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    return done, {row["check"]: row for row in json.loads(out.read_text())["checks"]}


def test_every_check_runs_in_small_on_a_cpu(tmp_path: Path) -> None:
    done, rows = checked(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert {name for name, verdict in verdicts.items() if verdict == "SKIPPED"} == NEEDS_A_GPU
    assert set(verdicts.values()) == {"PASS", "SKIPPED"}
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == list(rows)


def test_a_check_that_fails_or_hangs_does_not_stop_the_others() -> None:
    from benchmarks.gpu.check import Check, Worker

    worker = Worker(tiny=True)
    try:
        assert worker.run(Check("speed", "no_such_check", 60), 60)["verdict"] == "FAIL"
        assert worker.run(Check("training", "sync_bn", 60), 60)["verdict"] == "SKIPPED"
        assert worker.run(Check("speed", "throughput", 0.0), 0.0)["figure"].startswith(
            "not done after 0 s"
        )
    finally:
        worker.stop()
