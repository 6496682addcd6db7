"""Configuration of all tests: selection of the quick tests, order of the files, Ray clusters.

pytest loads it. A cluster has a head without CPUs and two nodes with one CPU each. In a run with
several processes (``-n 3``), each process except the last has a separate cluster, which the first
test that needs it starts; these processes run the files that use a cluster first. Three processes
keep two cores busy, because trials spend much of their time waiting for processes to start.
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
# Settings of the user's shell must not reach the tests.
for name in (
    *("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TINYNET_OWNER"),
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH"),
):
    os.environ.pop(name, None)
# For the local S3 server. The nodes of a cluster need them in their environment, so they are set
# before any node starts.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# Every test cluster requires this token; the processes of one run share it.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("TINYNET_TEST_TOKEN", secrets.token_hex(16))
os.environ["RAY_AUTH_TOKEN"] = os.environ["TINYNET_TEST_TOKEN"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="Run only the tests of make check.")


def pytest_configure(config: pytest.Config) -> None:
    """With ``--quick``, collect only files with quick tests: the others import Ray and MLflow."""
    if config.getoption("--quick"):
        config.option.markexpr = "quick and not slow and not ray"
        config.args = [str(file) for file in _test_files(config) if _is_quick(file)]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """List the files that ``--quick`` leaves out, by folder."""
    if not config.getoption("--quick"):
        return
    skipped: dict[Path, list[str]] = {}
    for file in _test_files(config):
        if not _is_quick(file):
            skipped.setdefault(file.parent.relative_to(config.rootpath), []).append(file.stem)
    terminalreporter.section("not run: slow tests, tests on a Ray cluster, and these files")
    for folder, stems in sorted(skipped.items()):
        terminalreporter.write_line(f"{folder}: {' '.join(stems)}")


def _test_files(config: pytest.Config) -> list[Path]:
    return sorted((config.rootpath / "tests").rglob("test_*.py"))


def _is_quick(file: Path) -> bool:
    return _has_mark(file, "quick")


# Two files that run one after the other. When they ran at the same time, the kills of the first
# disconnected the jobs of the second from their cluster.
SEQUENTIAL_FILES = ("tests/chaos/test_quick.py", "tests/jobs/test_jobs.py")
# Files that take minutes run first, so that none of them is left to one process at the end.
LONGEST_FILES = (
    "tests/chaos/test_quick.py",
    "tests/jobs/test_jobs.py",
    "tests/search/test_driver.py",
    "tests/tracking/test_mlflow_faults.py",
    "tests/trainables/test_stopping.py",
    "tests/spaces/test_contract.py",
    "tests/trainables/test_stops.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def order(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return LONGEST_FILES.index(file) if file in LONGEST_FILES else len(LONGEST_FILES)

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one process, and start no cluster in the last process."""
    from xdist.scheduler import LoadFileScheduling

    class ByCluster(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return SEQUENTIAL_FILES[0] if file in SEQUENTIAL_FILES else file

        def _next(self, node: Any) -> str | None:
            """The pending file that the process runs next, or None."""
            is_last = len(self.nodes) > 1 and node.gateway.id == f"gw{self.numnodes - 1}"
            clustered = [
                file for file in self.workqueue if _has_mark(config.rootpath / file, "ray")
            ]
            others = [file for file in self.workqueue if file not in clustered]
            candidates = others if is_last else [*clustered, *others]
            return candidates[0] if candidates else None

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
    """Start a local S3 server with a bucket; yields a function from a key to its URL."""
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
    """Start a cluster and connect this process; other processes connect to its ``address``."""
    from tests.tracking.helpers import free_port
    from tinynet_search.cluster.connect import RAY_ENVIRONMENT

    os.environ.update(RAY_ENVIRONMENT)
    # Ray starts a job's first process through a shell. PATH selects this Python, as on an image.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    import ray
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 0,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": 0,
    }
    # Jobs go through the head's agent. Another cluster on this machine may use its default port.
    head["dashboard_agent_listen_port"] = free_port()
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
