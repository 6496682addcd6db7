"""Record what ``tinynet search --preset demo`` prints: ``python -m benchmarks.demo_output``.

Writes ``benchmarks/results/demo_output.json``, ``docs/frontier.svg`` and the demo's block in the
documentation. Takes about four minutes on two CPU cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.docs_tables import write
from benchmarks.frontier_picture import TARGET, draw
from benchmarks.run import RESULTS, ROOT, commit, hardware
from tinynet_search.store.directory import SearchStore

COMMAND = ("search", "--preset", "demo")


def main() -> int:
    """Run the demo, and write its output and its picture."""
    revision, started = commit(), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for variable in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        environment.pop(variable, None)
    with tempfile.TemporaryDirectory() as folder:
        completed = subprocess.run(
            [sys.executable, "-m", "tinynet_search.cli.main", *COMMAND],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        draw(SearchStore(str(Path(folder) / "searches" / "demo")), TARGET)
        # As in a checkout, without the paths of this machine.
        output = completed.stdout.replace(f"{Path(folder).resolve()}/", "")
        output = output.replace(f"{Path(sys.executable).parent}/", ".venv/bin/")
    record = {
        "benchmark": "demo_output",
        "about": f"What tinynet {' '.join(COMMAND)} prints.",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": revision,
        "hardware": hardware(),
        "seconds": round(time.perf_counter() - started, 1),
        "output": output.splitlines(),
    }
    path = RESULTS / "demo_output.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write()
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
