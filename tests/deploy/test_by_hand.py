"""Tests that the commands of docs/cluster/by-hand.md start a cluster and run a search.

All blocks of the page run as they are printed, in one shell and in a folder of the test. Only the
variables that the page reads from the environment are set: ports that are free, and Ray's folder.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY, ROOT
from tests.deploy.processes import Ports, descendants, environment, kill, short_folder
from tests.deploy.test_consistency import START_LIMITS
from tests.search.helpers import results
from tests.tracking.helpers import free_port

PAGE = ROOT / "docs/cluster/by-hand.md"
# The page runs in an environment with these; the tests have no others of a cluster.
REMOVED = ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI")


def blocks() -> list[str]:
    """Return the shell commands of the page, by block."""
    return re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.quick
def test_page_sets_the_limits_and_options_of_the_files() -> None:
    text = "\n".join(blocks())
    limits = dict(re.findall(r"^export (RAY_\w+)=(\d+)$", text, re.MULTILINE))
    assert limits == START_LIMITS
    # Every process that the page starts is ended by its id.
    started = set(re.findall(r"echo \$! > \"\$CLUSTER/(\w+)\.pid\"", text))
    (stopped,) = re.findall(r"^for name in (.*); do\n  kill \"\$\(cat", text, re.MULTILINE)
    assert started == set(stopped.split()) == {"mlflow", "head", "worker"}
    assert "ray stop" not in text and "0.0.0.0" not in text


@pytest.mark.slow
def test_commands_of_the_page_start_a_cluster_and_run_a_search(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(DEPLOY)
    ports = Ports.free()
    (tmp_path / "page.sh").write_text("set -e\n" + "\n".join(blocks()))
    with short_folder() as folder:
        variables = {
            "PORT": str(ports.gcs),
            "DASHBOARD": str(ports.dashboard),
            "CLIENT": str(ports.client),
            "AGENT": str(ports.agent),
            "MLFLOW": str(free_port()),
            "SCRATCH": str(folder / "ray"),
            "HOME": str(tmp_path),
        }
        values = {
            key: value for key, value in environment(**variables).items() if key not in REMOVED
        }
        shell = subprocess.Popen(
            ["bash", "page.sh"],
            cwd=tmp_path,
            env=values,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = shell.communicate(timeout=400)
        finally:
            left = left_over(tmp_path)
            kill(left)
    assert shell.returncode == 0, output[-3000:]
    assert "created user tinynet" in output
    assert "Frontier\n" in output and re.search(r"demo-1 +\S+ +search +succeeded", output), output
    assert len(results(tmp_path / "cluster/searches")) == 3
    # The last block ended everything that the page started.
    assert left == []
    secrets = [
        (tmp_path / "cluster" / name).stat().st_mode & 0o777 for name in ("token", "admin.sh")
    ]
    assert secrets == [0o600, 0o600]


def left_over(home: Path) -> list[int]:
    """Return the processes of the page that still run, and their descendants."""
    pids: list[int] = []
    for file in (home / "cluster").glob("*.pid"):
        pid = int(file.read_text())
        if Path(f"/proc/{pid}").exists():
            pids += [*descendants(pid), pid]
    return pids
