"""Submits searches and trainings as jobs, after a check job on the cluster.

Called by ``tinynet submit``, by ``tinynet jobs resume`` and by users of the Python API.
"""

import contextlib
import json
import platform
import re
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from search_spaces.errors import RequestError
from tinynet_search.cluster.preflight import Findings
from tinynet_search.commands import jobs_command
from tinynet_search.config import Config
from tinynet_search.errors import JobError, one_line
from tinynet_search.jobs.command import (
    CONFIG,
    KIND,
    NAME,
    OWNER,
    REQUEST,
    STORAGE,
    JobCommand,
    search_command,
    tracking_option,
    train_command,
)
from tinynet_search.jobs.connection import connect, jobs_api_errors
from tinynet_search.jobs.runtime_env import RuntimeEnv, runtime_env
from tinynet_search.version import __version__

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

    from tinynet_search.train.request import TrainRequest

ENTRYPOINT = "python -m tinynet_search.cli.job_entrypoint"
PROBE_SCRIPT = (
    "import json, platform, importlib.metadata as m; "
    "d = [x.version for x in m.distributions(name='tinynet-search')]; "
    "print('tinynet-probe', json.dumps({'python': platform.python_version(), "
    "'tinynet-search': d[0] if d else None}))"
)
# Seconds for the check job: a runtime environment, imports, a task on every node; and seconds
# between two queries of a job's status.
CHECK_TIMEOUT, POLL_INTERVAL = 600.0, 0.5
# Seconds that an interrupted check job has to end before it is deleted.
STOP_TIMEOUT = 15.0
MAX_ATTEMPTS = 100


class Probe(NamedTuple):
    """The version of Python on the cluster, and of this package, None if it is not installed."""

    python: str
    version: str | None


@dataclass(frozen=True)
class Submitted:
    """A submitted job.

    Attributes:
        id: Ray's submission id.
        address: the address of the cluster.
        name: the name of the search or the training job.
        findings: the result of the check job, as ``tinynet check --json`` prints it; None without
            a check.
    """

    id: str
    address: str
    name: str
    findings: Findings | None = None

    def to_json(self) -> dict[str, Any]:
        findings = self.findings.to_json() if self.findings else None
        return {**vars(self), "findings": findings}


def submit_search(
    config: Config,
    address: str | None = None,
    *,
    tracking: str | None = None,
    retry: Collection[str] = (),
    working_dir: str | None = None,
    wheel: str | None = None,
    gpu: str | None = None,
    check: bool = True,
    confirm: Callable[[Findings], bool] | None = None,
) -> Submitted:
    """Submit a search to a cluster. An existing search continues from its last checkpoints.

    Args:
        config: from ``load_config``; storage and data are paths or URLs on the cluster's nodes.
        address: ``http://HEAD:8265``; None uses RAY_API_SERVER_ADDRESS.
        tracking: MLflow's URI on the cluster; overrides MLFLOW_TRACKING_URI and the configuration.
        retry: train failed trials with these reasons again; ``failed`` means any reason.
        working_dir: a folder with your own modules, such as a search space, uploaded with the job.
        wheel: a wheel of this package, uploaded with the job.
        gpu: the name of a GPU to estimate the time for; None measures the rate by a training of
            some seconds on the cluster.
        check: whether a check job tests data, storage, MLflow and the nodes first.
        confirm: called with the result of the check; the job is submitted if it returns True.

    Raises:
        RequestError: the cluster is not reachable, or cannot run this search; the message contains
            the fix.
        JobError: the cluster rejected the job, or ``confirm`` returned False.
    """
    command = search_command(config, tracking, retry)
    return submit(
        command,
        address,
        working_dir=working_dir,
        wheel=wheel,
        gpu=gpu,
        check=check,
        confirm=confirm,
    )


def submit_train(request: "TrainRequest", address: str | None = None, **options: Any) -> Submitted:
    """Submit one training to a cluster: ``tinynet train`` as a job.

    Values that only this machine has are resolved here.

    Args:
        request: as ``tinynet train`` creates it.
        address: as for ``submit_search``.
        options: ``working_dir``, ``wheel``, ``check`` as for ``submit_search``.

    Raises:
        RequestError, JobError: as ``submit_search``.
    """
    return submit(train_command(request), address, **options)


def submit(
    command: JobCommand,
    address: str | None,
    *,
    working_dir: str | None = None,
    wheel: str | None = None,
    gpu: str | None = None,
    check: bool = True,
    confirm: Callable[[Findings], bool] | None = None,
) -> Submitted:
    """Check the cluster, call ``confirm``, and submit the job. Arguments as for ``submit_search``.

    Raises:
        RequestError, JobError: as ``submit_search``.
    """
    shipped = [name for name, path in (("working_dir", working_dir), ("wheel", wheel)) if path]
    with runtime_env(working_dir, wheel) as env:
        client = connect(address)
        url = client.get_address()
        with jobs_api_errors(url):
            return _submitted(client, command, env, shipped, gpu=gpu, check=check, confirm=confirm)


def _submitted(
    client: "JobSubmissionClient",
    command: JobCommand,
    env: RuntimeEnv,
    shipped: Collection[str],
    *,
    gpu: str | None,
    check: bool,
    confirm: Callable[[Findings], bool] | None,
) -> Submitted:
    url = client.get_address()
    _require_not_running(client, command)
    findings = run_check_job(client, command, env, gpu) if check else None
    if findings is not None and findings.problems:
        problems = "; ".join(findings.problems)
        raise RequestError(
            f"the cluster at {url} cannot run {command.kind} {command.name}: {problems}"
        )
    if confirm is not None and findings is not None and not confirm(findings):
        raise JobError("nothing was submitted")
    return Submitted(_queue(client, command, env, shipped), url, command.name, findings)


class OwnJob(NamedTuple):
    """A job that tinynet submitted, with Ray's details."""

    id: str
    metadata: Mapping[str, str]
    status: "JobStatus"
    details: "JobDetails"

    @property
    def owner(self) -> str:
        return self.metadata.get(OWNER, "")

    @property
    def storage(self) -> str:
        return self.metadata.get(STORAGE, "")


def own_jobs(client: "JobSubmissionClient") -> list[OwnJob]:
    """The jobs that tinynet submitted, oldest first, without check jobs."""
    jobs = [
        OwnJob(job.submission_id, job.metadata or {}, job.status, job)
        for job in client.list_jobs()
        if job.submission_id
    ]
    own = [job for job in jobs if REQUEST in job.metadata and job.metadata.get(KIND) != "check"]
    return sorted(own, key=lambda job: job.details.start_time or 0)


def _require_not_running(client: "JobSubmissionClient", command: JobCommand) -> None:
    identity = {KIND: command.kind, NAME: command.name, STORAGE: command.storage}
    if command.kind == "train":  # several trainings of one network may run, on different data
        identity[REQUEST] = command.metadata(())[REQUEST]
    for job in own_jobs(client):
        same = identity.items() <= job.metadata.items()
        if same and not job.status.is_terminal():
            raise RequestError(
                f"{command.kind} {command.name} is already {job.status.lower()} as job {job.id} "
                f"of {job.owner}: "
                f"follow it with {jobs_command('logs', job.id, client.get_address(), '--follow')}, "
                f"stop it with {jobs_command('stop', job.id, client.get_address())}"
            )


def _queue(
    client: "JobSubmissionClient", command: JobCommand, env: RuntimeEnv, shipped: Collection[str]
) -> str:
    """Submit under the next free number of this name; other clients may take numbers meanwhile.

    All users count together. An id is not the name of another search, such as ``demo-1``.
    """
    jobs = client.list_jobs()
    matches = [
        re.fullmatch(rf"{re.escape(command.name)}-(\d+)", job.submission_id or "") for job in jobs
    ]
    names = {(job.metadata or {}).get(NAME) for job in jobs}
    number = max((int(match[1]) for match in matches if match), default=0)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        submission_id = f"{command.name}-{number + attempt}"
        if submission_id in names:
            continue
        try:
            return client.submit_job(
                entrypoint=ENTRYPOINT,
                submission_id=submission_id,
                runtime_env=dict(env),
                metadata=command.metadata(shipped),
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
    raise JobError(
        f"no free job id for {command.name} up to {command.name}-{number + MAX_ATTEMPTS}"
    )


def run_check_job(
    client: "JobSubmissionClient", command: JobCommand, env: RuntimeEnv, gpu: str | None = None
) -> Findings:
    """Run ``tinynet check`` for a search or a training as a job, and delete the job.

    Raises:
        RequestError: the cluster does not have this version of tinynet-search.
        JobError: the check itself failed.
    """
    options = [
        *tracking_option(command.tracking),
        *(("--gpu", gpu) if gpu else ()),
        *(("--no-plan",) if command.kind == "train" else ()),
    ]
    values = command.values if command.check_values is None else command.check_values
    check = replace(
        command, kind="check", arguments=("check", CONFIG, *options, "--json"), values=values
    )
    entrypoint = f'python -c "{PROBE_SCRIPT}" && {ENTRYPOINT}'
    name = f"{command.name}-check-{uuid.uuid4().hex[:8]}"
    job = client.submit_job(
        entrypoint=entrypoint,
        submission_id=name,
        runtime_env=dict(env),
        metadata=check.metadata(()),
    )
    try:
        _wait_until_ended(client, job, CHECK_TIMEOUT)
        logs = client.get_job_logs(job)
        probe = _read_probe(logs)
        _require_same_version(probe, client.get_address())
        findings = _read_findings(logs)
        if findings is not None:
            findings.notes += _python_difference(probe)
            return findings
        info = client.get_job_info(job)
        if info.driver_exit_code == 2:
            raise RequestError(
                f"the cluster at {client.get_address()}: "
                f"{_last_line(logs).removeprefix('tinynet: ')}"
            )
        reason = _last_line(logs) or one_line(info.message or info.status)
        raise JobError(f"the check of the cluster failed: {reason}")
    finally:
        _delete_check_job(client, job)


def _wait_until_ended(client: "JobSubmissionClient", job: str, timeout: float) -> None:
    end = time.monotonic() + timeout
    while not client.get_job_status(job).is_terminal():
        if time.monotonic() > end:
            raise JobError(
                f"the check job {job} did not end within {timeout:.0f} s: "
                f"see Ray's dashboard at {client.get_address()}"
            )
        time.sleep(POLL_INTERVAL)


def _delete_check_job(client: "JobSubmissionClient", job: str) -> None:
    """Stop and delete the check job; ignore errors of a cluster that is gone."""
    with contextlib.suppress(RuntimeError, OSError):
        if not client.get_job_status(job).is_terminal():
            client.stop_job(job)
            _wait_until_ended(client, job, STOP_TIMEOUT)
        client.delete_job(job)


def _python_difference(probe: Probe | None) -> list[str]:
    cluster_python, local_python = probe.python if probe else "", platform.python_version()
    if not cluster_python or cluster_python.split(".")[:2] == local_python.split(".")[:2]:
        return []
    return [
        f"the cluster runs Python {cluster_python}, this machine {local_python}: "
        "uploaded modules must support both"
    ]


def _read_probe(logs: str) -> Probe | None:
    values = _document(logs, "tinynet-probe ")
    if not isinstance(values, dict):
        return None
    version = values.get("tinynet-search")
    return Probe(str(values.get("python", "")), None if version is None else str(version))


def _read_findings(logs: str) -> Findings | None:
    """The findings in the logs of the check job, None if this version cannot read any."""
    with contextlib.suppress(ValueError):
        return Findings.from_json(_document(logs, ""))
    return None


def _document(logs: str, prefix: str) -> Any:
    """The JSON object in the last line that has one after this prefix, None without one."""
    for line in reversed(logs.splitlines()):
        if line.startswith(f"{prefix}{{"):
            with contextlib.suppress(ValueError):
                return json.loads(line.removeprefix(prefix))
    return None


def _require_same_version(probe: Probe | None, url: str) -> None:
    if probe is None:
        return
    if probe.version is None:
        raise RequestError(
            f"tinynet-search is not installed on the cluster at {url}: "
            f"install {__version__} in its image, or pass --wheel FILE"
        )
    if probe.version != __version__:
        raise RequestError(
            f"the cluster at {url} has tinynet-search {probe.version}, this machine {__version__}: "
            "install the same version on both, or pass --wheel FILE with this one"
        )


def _last_line(logs: str) -> str:
    lines: Sequence[str] = [
        line for line in logs.splitlines() if line.strip() and not line.startswith("tinynet-probe ")
    ]
    return one_line(lines[-1]) if lines else ""
