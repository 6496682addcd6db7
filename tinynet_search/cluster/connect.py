"""Connects a process to the Ray cluster of a search, or starts a local cluster.

Called by the driver of a search, by trainings on Ray, and by the preflight checks.
"""

import contextlib
import importlib.util
import logging
import os
import socket
import time
from collections.abc import Iterator

from search_spaces import RequestError
from tinynet_search.cluster.ray_internals import (
    loopback_only,
    own_sigterm_handler,
    version_mismatch,
)
from tinynet_search.config.sections import RunSection

# The files of Tune and Train are temporary: no loggers, no snapshots, no preemption watcher for
# each trial.
RAY_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# The key of a job's metadata that Ray's dashboard shows as the job's name.
DASHBOARD_NAME = "job_name"

# A dashboard starts some seconds after its cluster.
DASHBOARD_TIMEOUT = 30.0
PROBE_TIMEOUT = 5.0


@contextlib.contextmanager
def cluster(run: RunSection, name: str | None = None) -> Iterator[None]:
    """Connect to a Ray cluster, or start a local one.

    Args:
        run: the address of the cluster, and what the executor needs.
        name: the name of the search or training, which Ray's dashboard shows for this driver. A
            job keeps the name that it was submitted with.

    The cluster is, in this order: the one that this process is already connected to, the one at
    ``run.address``, the one at RAY_ADDRESS, or a new local cluster.

    Raises:
        RequestError: the cluster does not respond, or lacks what the executor needs.
    """
    for key, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    needs_dashboard = run.executor == "ray_train"
    if needs_dashboard and not all(
        importlib.util.find_spec(m) for m in ("aiohttp_cors", "opencensus")
    ):
        raise RequestError(
            "run.executor = \"ray_train\" needs Ray's dashboard: pip install 'ray[default]', "
            "or use the executor 'inline'"
        )
    connected_here = not ray.is_initialized()
    if connected_here:
        with own_sigterm_handler():
            _start(run.address or os.environ.get("RAY_ADDRESS"), needs_dashboard, name)
    try:
        if needs_dashboard:
            _require_dashboard()
        yield
    finally:
        if connected_here:
            ray.shutdown()


def _start(address: str | None, dashboard: bool, name: str | None) -> None:
    import ray
    from ray.job_config import JobConfig

    job_config = JobConfig(metadata={DASHBOARD_NAME: name} if name else {})
    if address:
        _probe(address)
        try:
            ray.init(
                address=address,
                job_config=job_config,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RequestError(_not_connected(address, error)) from error
    else:
        # "local" is explicit: without an address, ray.init would join a cluster that this machine
        # is already part of.
        with loopback_only():
            ray.init(
                address="local",
                job_config=job_config,
                num_cpus=os.cpu_count(),
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )


def _not_connected(address: str, error: Exception) -> str:
    versions = version_mismatch(error)
    if versions is None:
        return f"no Ray cluster responds at {address!r}: {str(error).splitlines()[0]}"
    cluster, local = versions
    return (
        f"the cluster at {address!r} runs Ray {cluster.ray} and Python {cluster.python}, this "
        f"machine Ray {local.ray} and Python {local.python}: Ray connects a driver of the same "
        "versions only; install them here, or run the search as a job with tinynet submit"
    )


def _probe(address: str) -> None:
    """Fail within seconds if the head is not reachable; ``ray.init`` waits ten minutes for it."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT).close()
    except OSError as error:
        raise RequestError(
            f"no Ray cluster responds at {address!r} ({error.strerror or error}): "
            "set host:port of the head node"
        ) from error


def _require_dashboard() -> None:
    """Raise RequestError if the cluster has no dashboard.

    Ray Train's cleanup of a stopped ray_train trial queries the dashboard. Without it, the CPUs
    and GPUs of such a trial stay reserved forever.
    """
    import ray
    from ray.util.state import list_nodes

    deadline = time.monotonic() + DASHBOARD_TIMEOUT
    while True:
        try:
            list_nodes(address=ray.get_runtime_context().gcs_address, limit=1)
            return
        except Exception as error:
            if time.monotonic() > deadline:
                raise RequestError(
                    'run.executor = "ray_train" needs a cluster with a dashboard (ray[default]); '
                    "the dashboard of this cluster does not respond"
                ) from error
            time.sleep(1.0)
