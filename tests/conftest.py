"""What all tests share: the quick tests, the order of files, and a Ray cluster in each process.

The cluster has a head without CPUs and two nodes of one CPU each. Every process of a run (``-n 2``)
starts its own at the first test that needs one: trials wait for processes to start and for each other,
so two clusters on two cores take little more than half the time of one.
"""

import functools
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# What the user's shell names must not reach the tests.
for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
    os.environ.pop(name, None)
# Of the local S3 server; nodes of a cluster need them in their own environment, so they are there before any starts.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# Every cluster of the tests lets nobody in without this token; the processes of one run share it.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("TINYNET_TEST_TOKEN", secrets.token_hex(16))
os.environ["RAY_AUTH_TOKEN"] = os.environ["TINYNET_TEST_TOKEN"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="run only the tests of make check")


def pytest_configure(config: pytest.Config) -> None:
    """``--quick`` imports only the files that have quick tests: the others load Ray and MLflow."""
    if config.getoption("--quick"):
        config.option.markexpr = "quick and not slow and not ray"
        config.args = [str(file) for file in _test_files(config) if _is_quick(file)]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """List by folder the files that ``--quick`` leaves out."""
    if not config.getoption("--quick"):
        return
    left: dict[Path, list[str]] = {}
    for file in _test_files(config):
        if not _is_quick(file):
            left.setdefault(file.parent.relative_to(config.rootpath), []).append(file.stem)
    terminalreporter.section("left out: slow tests, tests on a Ray cluster, and these files")
    for folder, stems in sorted(left.items()):
        terminalreporter.write_line(f"{folder}: {' '.join(stems)}")


def _test_files(config: pytest.Config) -> list[Path]:
    return sorted((config.rootpath / "tests").rglob("test_*.py"))


def _is_quick(file: Path) -> bool:
    return "mark.quick" in file.read_text(encoding="utf-8")


# Files that take minutes on a quiet machine.
LONGEST = ("search/test_driver.py", "store/test_object_storage.py", "chaos/test_quick.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, so that no process is left with one at the end."""
    items.sort(key=lambda item: _length(item.path), reverse=True)


@functools.cache
def _length(file: Path) -> int:
    """2 for the longest files, 1 for the others that use a cluster, 0 for the rest."""
    if str(file).endswith(LONGEST):
        return 2
    return 1 if "mark.ray" in file.read_text(encoding="utf-8") else 0


@pytest.fixture(scope="session")
def object_storage() -> Iterator[Callable[[str], str]]:
    """A local S3 server and a bucket; gives the URL of a key in it."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    filesystem, _ = fs.FileSystem.from_uri(f"s3://bucket?{options}&allow_bucket_creation=true")
    filesystem.create_dir("bucket")
    yield lambda key: f"s3://bucket/{key}?{options}"
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """The cluster, and this process in it; ``.address`` is for other processes."""
    from tests.tracking.helpers import free_port
    from tinynet_search.cluster.connect import QUIET

    os.environ.update(QUIET)
    # A job's first process is started through a shell: by this Python, as on an image.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    import ray
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 0,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": 0,
    }
    # Jobs go through the head's agent, whose own port would be another cluster's of this machine.
    head["dashboard_agent_listen_port"] = free_port()
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
