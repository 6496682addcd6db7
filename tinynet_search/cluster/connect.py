"""The Ray cluster a search runs on: one that is there, or a local one of its own."""

import contextlib
import importlib.util
import logging
import os
import socket
import time
from collections.abc import Iterator

from search_spaces import RequestError
from tinynet_search.cluster.ray_internals import loopback_only, own_sigterm_handler
from tinynet_search.config import RunSection

# Tune's and Train's own files are scratch: no loggers, no snapshots, no preemption watcher a trial.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# A dashboard comes up some seconds after its cluster.
DASHBOARD_TIMEOUT = 30.0
PROBE_TIMEOUT = 5.0


@contextlib.contextmanager
def cluster(run: RunSection) -> Iterator[None]:
    """Join the cluster that ``run.address`` or RAY_ADDRESS names, or one that this process is in, or start a local one.

    Raises:
        RequestError: the cluster does not answer, or cannot do what the executor needs.
    """
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    import ray

    needs_dashboard = run.executor == "ray_train"
    if needs_dashboard and not all(
        importlib.util.find_spec(m) for m in ("aiohttp_cors", "opencensus")
    ):
        raise RequestError(
            "run.executor = \"ray_train\" needs Ray's dashboard: pip install 'ray[default]', or use the executor 'inline'"
        )
    ours = not ray.is_initialized()
    if ours:
        with own_sigterm_handler():
            _start(run.address or os.environ.get("RAY_ADDRESS"), needs_dashboard)
    try:
        if needs_dashboard:
            _require_dashboard()
        yield
    finally:
        if ours:
            ray.shutdown()


def _start(address: str | None, dashboard: bool) -> None:
    import ray

    if address:
        _probe(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RequestError(
                f"no Ray cluster answers at {address!r}: {str(error).splitlines()[0]}"
            ) from error
    else:
        # "local" and nothing else: a bare init would join whatever cluster this machine is in.
        with loopback_only():
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )


def _probe(address: str) -> None:
    """Ray waits ten minutes for a head that does not answer; a connection tells in seconds."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT).close()
    except OSError as error:
        raise RequestError(
            f"no Ray cluster answers at {address!r} ({error.strerror or error}): give its head's host:port"
        ) from error


def _require_dashboard() -> None:
    """Without it a stopped ray_train trial keeps its CPUs and GPUs for ever: their cleaner asks the dashboard."""
    import ray
    from ray.util.state import list_nodes

    deadline = time.monotonic() + DASHBOARD_TIMEOUT
    while True:
        try:
            list_nodes(address=ray.get_runtime_context().gcs_address, limit=1)
            return
        except Exception as error:
            if time.monotonic() > deadline:
                lacking = 'run.executor = "ray_train" needs a cluster with its dashboard on (ray[default])'
                raise RequestError(f"{lacking}; this one's does not answer") from error
            time.sleep(1.0)
