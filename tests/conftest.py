"""What all tests share: the quick tests, the order of files, and Ray clusters.

A cluster has a head without CPUs and two nodes of one CPU each. Of the processes of a run (``-n 3``) all but the
last have a cluster of their own, from the first test that needs one, and run the files that use it first. Three
processes keep two cores busy: trials spend much of their time waiting for processes to start.
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
    return _has_mark(file, "quick")


# Two files that run one after the other: beside the kills of the first, jobs of the second lost their cluster.
TOGETHER = ("tests/chaos/test_quick.py", "tests/jobs/test_jobs.py")
# Files that take minutes come first, so that no process is left with one at the end.
LONGEST = (
    "tests/chaos/test_quick.py",
    "tests/jobs/test_jobs.py",
    "tests/search/test_driver.py",
    "tests/tracking/test_mlflow_faults.py",
    "tests/trainables/test_stopping.py",
    "tests/spaces/test_contract.py",
    "tests/trainables/test_stops.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file stay together, and the last process starts no cluster."""
    from xdist.scheduler import LoadFileScheduling

    class ByCluster(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER[0] if file in TOGETHER else file

        def _next(self, node: Any) -> str | None:
            """The file that a process runs next, of those that wait."""
            is_last = len(self.nodes) > 1 and node.gateway.id == f"gw{self.numnodes - 1}"
            clustered = [
                file for file in self.workqueue if _has_mark(config.rootpath / file, "ray")
            ]
            others = [file for file in self.workqueue if file not in clustered]
            return next(iter(others if is_last else [*clustered, *others]), None)

        def _assign_work_unit(self, node: Any) -> None:
            if file := self._next(node):
                self.workqueue.move_to_end(file, last=False)
                super()._assign_work_unit(node)

        def _reschedule(self, node: Any) -> None:
            if not node.shutting_down and self._next(node) is None:
                node.shutdown()
            else:
                super()._reschedule(node)

    return ByCluster(config, log)


@functools.cache
def _has_mark(file: Path, mark: str) -> bool:
    return f"mark.{mark}" in file.read_text(encoding="utf-8")


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
