"""Jobs as they are submitted: looked at by the cluster first, then queued under a number of their own."""

import contextlib
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from search_spaces.errors import RequestError
from tinynet_search.cluster.preflight import Findings
from tinynet_search.config import Config, Values
from tinynet_search.errors import JobError, one_line
from tinynet_search.jobs.connection import connect, reaching
from tinynet_search.jobs.runtime_env import RuntimeEnv, runtime_env
from tinynet_search.version import __version__
from trainables.storage.folder import refuse_credentials

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

    from tinynet_search.train.request import TrainRequest

REQUEST, CONFIG = "tinynet.request", "{config}"


ENTRY = "python -m tinynet_search.cli.job_entrypoint"
PROBE = (
    "import json, platform, importlib.metadata as m; d = [x.version for x in m.distributions(name='tinynet-search')]; "
    "print('tinynet-probe', json.dumps({'python': platform.python_version(), 'tinynet-search': d[0] if d else None}))"
)
# Seconds for the look at the cluster: a runtime environment, imports, a task on every node.
CHECK_TIMEOUT, POLL = 600.0, 0.5
# Seconds that a look which was broken off gets to end.
FORGET = 15.0
# Metadata of our jobs; shipped tells what a resumed job needs again.
KIND, NAME, STORAGE = "tinynet.kind", "tinynet.name", "tinynet.storage"
TRACKING, VERSION, SHIPPED = "tinynet.tracking", "tinynet.version", "tinynet.shipped"
TRIES = 100


@dataclass(frozen=True)
class Order:
    """One command for a cluster.

    Attributes:
        kind: ``search`` or ``train``; name: of the search or the job.
        arguments: of the ``tinynet`` command there, with ``CONFIG`` where its configuration goes.
        values: of the configuration.
        storage, tracking: where it will write, for those who look for it later; tracking is empty where it is the cluster's own.
        seen: the configuration that the cluster is looked at with, where it is not ``values``.
    """

    kind: str
    name: str
    arguments: tuple[str, ...]
    values: Values
    storage: str
    tracking: str
    seen: Values | None = None

    def metadata(self, shipped: Collection[str]) -> dict[str, str]:
        """As Ray keeps it with the job: every value a text."""
        request = {
            "name": self.name,
            "arguments": list(self.arguments),
            "config": dict(self.values),
        }
        about = {
            KIND: self.kind,
            NAME: self.name,
            STORAGE: self.storage,
            TRACKING: self.tracking,
            VERSION: __version__,
        }
        return {**about, SHIPPED: ",".join(shipped), REQUEST: json.dumps(request)}


class Probe(NamedTuple):
    """What a cluster has: its Python, and the version of this package, None without one."""

    python: str
    version: str | None


@dataclass(frozen=True)
class Submitted:
    """A job that was queued.

    Attributes:
        id: that Ray knows it by; address: of its cluster.
        findings: what the cluster saw beforehand, as ``tinynet check --json`` prints it; None where it was not asked.
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
    agree: Callable[[Findings], bool] | None = None,
) -> Submitted:
    """Queue a search on a cluster; one that is there is taken up where it was left.

    Args:
        config: from ``load_config``; its storage and data as the cluster's nodes see them.
        address: ``http://HEAD:8265``; else RAY_API_SERVER_ADDRESS.
        tracking: MLflow's URI, as the cluster reaches it; before MLFLOW_TRACKING_URI and the configuration's.
        retry: reasons of failed trials that are to be trained again; ``failed`` is any.
        working_dir: a folder with modules of your own (a space), shipped with the job; wheel: a wheel of this package.
        gpu: a GPU's name, to estimate the time from; without one the cluster trains for some seconds.
        check: have the cluster look at data, storage, MLflow and its nodes first.
        agree: is shown what the cluster saw, and says whether to go on.

    Raises:
        RequestError: the cluster cannot be reached, or cannot run this search; the line says what to mend.
        JobError: the cluster refused the job, or ``agree`` did not.
    """
    order = order_search(config, tracking, retry)
    return submit(
        order, address, working_dir=working_dir, wheel=wheel, gpu=gpu, check=check, agree=agree
    )


def submit_train(request: "TrainRequest", address: str | None = None, **options: Any) -> Submitted:
    """Queue one training on a cluster: ``tinynet train`` there, with everything resolved here that only this machine knows.

    Args:
        request: as ``tinynet train`` makes it.
        options: ``working_dir``, ``wheel``, ``check`` as of ``submit_search``.

    Raises:
        RequestError, JobError: as ``submit_search``.
    """
    return submit(order_train(request), address, **options)


def order_search(config: Config, tracking: str | None, retry: Collection[str] = ()) -> Order:
    """Raises RequestError where the configuration means this machine, or carries a secret."""
    # What is not set stays so: it is chosen on the cluster.
    values = config.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    values.get("run", {}).pop("address", None)
    _refuse_here(config.storage.path, str((config.data.model_extra or {}).get("path") or "/"))
    values.pop("tracking", None)
    uri = _tracking(tracking, config.tracking.uri)
    again = tuple(argument for reason in retry for argument in ("--retry", reason))
    return Order(
        "search",
        str(config.search.name),
        ("search", CONFIG, *_named(uri), *again),
        values,
        config.url,
        uri or "",
    )


def order_train(request: "TrainRequest") -> Order:
    """Raises RequestError where the request means this machine, carries a secret, or cannot be."""
    from tinynet_search.train.request import Chooser, read_request, settled

    # What lies on the cluster is looked at there; what a configuration says is read here.
    values = read_request(replace(request, data=None))
    data = request.data or str(values.get("data", {}).get("path") or "petals")
    storage = str(values.get("storage", {}).get("path", "searches"))
    _refuse_here(storage, "/" if data == "petals" else data)
    if request.formula is not None and (
        request.formula.endswith(".json") or Path(request.formula).exists()
    ):
        better = "give the twist by --rdw and --space, or a formula of the registry"
        raise RequestError(
            f"--formula {one_line(request.formula)!r} is a file of this machine: {better}"
        )
    section = values.pop("tracking", None) or {}
    uri = _tracking(request.tracking, section.get("uri"))
    # As a trial on one of its nodes, with its GPU if it has any, and not in the job's own process on the head.
    values["run"] = {**values.get("run", {}), "address": "auto"}
    if not values.setdefault("scaling", {}).keys() & {"auto", "gpus", "workers"}:
        values["scaling"] = {**values["scaling"], "auto": True}
    seen = {
        **values,
        "data": values.get("data")
        or ({"name": "petals"} if data == "petals" else {"name": "imagefolder", "path": data}),
    }
    config = settled(seen, Chooser(request).space, request)
    options = {
        key: getattr(request, key)
        for key in ("rdw", "c", "space", "formula", "extrapolate", "data", "name")
    }
    flags = [
        part
        for key, value in options.items()
        if value not in (None, False)
        for part in _flag(key, value)
    ]
    name = (
        request.name
        or request.network
        or (f"c{request.c:g}" if request.c is not None else f"rdw-{request.rdw}")
    )
    arguments = (
        "train",
        *([request.network] if request.network else []),
        CONFIG,
        *flags,
        *_named(uri),
    )
    looked = config.model_copy(update={"run": config.run.model_copy(update={"address": None})})
    as_seen = looked.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    return Order("train", _plain(name), arguments, values, storage, uri or "", as_seen)


def _flag(key: str, value: str | float | bool) -> tuple[str, ...]:
    option = f"--{key.replace('_', '-')}"
    return (option,) if value is True else (option, str(value))


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "job"


def _refuse_here(storage: str, data: str) -> None:
    refuse_credentials(storage)
    for what, path in (("storage.path", storage), ("data.path", data)):
        if "://" not in path and not Path(path).is_absolute():
            better = (
                "/shared/searches, s3://bucket/searches"
                if what == "storage.path"
                else "/data/imagenet100-packed"
            )
            raise RequestError(
                f"{what} {path!r} means a folder of this machine: give the place as the cluster's nodes see it ({better})"
            )


def _tracking(explicit: str | None, configured: str | None) -> str | None:
    """MLflow's URI where anybody here named one; else it is the cluster's own.

    Raises:
        RequestError: one of them carries a secret, or is none.
    """
    from tinynet_search.mlflow_client.connection import address, resolve_uri

    named = [uri for uri in (explicit, os.environ.get("MLFLOW_TRACKING_URI"), configured) if uri]
    for uri in named:
        try:
            refuse_credentials(uri)
            secret = "@" in urlsplit(uri).netloc
        except RequestError:
            secret = True
        if secret:
            where = (
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the cluster's environment"
            )
            raise RequestError(
                f"tracking {one_line(address(uri))} has credentials, which a job's record would show: put them into {where}"
            )
    return resolve_uri(named[0], None, "/") if named else None


def _named(uri: str | None) -> tuple[str, ...]:
    return ("--tracking", uri) if uri else ()


def submit(
    order: Order,
    address: str | None,
    *,
    working_dir: str | None = None,
    wheel: str | None = None,
    gpu: str | None = None,
    check: bool = True,
    agree: Callable[[Findings], bool] | None = None,
) -> Submitted:
    """Look, ask, queue. Raises as ``submit_search``."""
    shipped = [name for name, given in (("working_dir", working_dir), ("wheel", wheel)) if given]
    with runtime_env(working_dir, wheel) as env:
        client = connect(address)
        url = client.get_address()
        with reaching(url):
            return _submitted(client, order, env, shipped, gpu=gpu, check=check, agree=agree)


def _submitted(
    client: "JobSubmissionClient",
    order: Order,
    env: RuntimeEnv,
    shipped: Collection[str],
    *,
    gpu: str | None,
    check: bool,
    agree: Callable[[Findings], bool] | None,
) -> Submitted:
    url = client.get_address()
    _refuse_running(client, order)
    findings = look(client, order, env, gpu) if check else None
    if findings is not None and findings.problems:
        raise RequestError(
            f"the cluster at {url} cannot run {order.kind} {order.name}: {'; '.join(findings.problems)}"
        )
    if agree is not None and findings is not None and not agree(findings):
        raise JobError("nothing was submitted")
    return Submitted(_queue(client, order, env, shipped), url, order.name, findings)


class OwnJob(NamedTuple):
    """A job that tinynet submitted, and all that Ray knows of it."""

    id: str
    metadata: Mapping[str, str]
    status: "JobStatus"
    details: "JobDetails"


def ours(client: "JobSubmissionClient") -> list[OwnJob]:
    """Jobs that tinynet submitted, the oldest first; looks at the cluster are none."""
    jobs = [
        OwnJob(job.submission_id, job.metadata or {}, job.status, job)
        for job in client.list_jobs()
        if job.submission_id
    ]
    own = [job for job in jobs if REQUEST in job.metadata and job.metadata.get(KIND) != "check"]
    return sorted(own, key=lambda job: job.details.start_time or 0)


def _refuse_running(client: "JobSubmissionClient", order: Order) -> None:
    wanted = {KIND: order.kind, NAME: order.name, STORAGE: order.storage}
    if order.kind == "train":  # of one network there may be several, on other data
        wanted[REQUEST] = order.metadata(())[REQUEST]
    for job in ours(client):
        same = wanted.items() <= job.metadata.items()
        if same and not job.status.is_terminal():
            how = f"tinynet jobs logs {job.id} follows it, tinynet jobs stop {job.id} ends it"
            raise RequestError(
                f"{order.kind} {order.name} is {job.status.lower()} already as job {job.id}: {how}"
            )


def _queue(
    client: "JobSubmissionClient", order: Order, env: RuntimeEnv, shipped: Collection[str]
) -> str:
    """Under the next number of this name; somebody else may take it at the same moment."""
    taken = [
        re.fullmatch(rf"{re.escape(order.name)}-(\d+)", job.submission_id or "")
        for job in client.list_jobs()
    ]
    number = max((int(match[1]) for match in taken if match), default=0)
    for attempt in range(1, TRIES + 1):
        try:
            return client.submit_job(
                entrypoint=ENTRY,
                submission_id=f"{order.name}-{number + attempt}",
                runtime_env=dict(env),
                metadata=order.metadata(shipped),
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
    raise JobError(f"no number is free for {order.name} after {number + TRIES}")


def look(
    client: "JobSubmissionClient", order: Order, env: RuntimeEnv, gpu: str | None = None
) -> Findings:
    """What the cluster sees of a search or a training, by a short job there that is deleted again.

    Raises:
        RequestError: the cluster has no tinynet-search, or another version; JobError: the look itself failed.
    """
    options = [
        *_named(order.tracking),
        *(("--gpu", gpu) if gpu else ()),
        *(("--no-plan",) if order.kind == "train" else ()),
    ]
    values = order.values if order.seen is None else order.seen
    asking = replace(
        order, kind="check", arguments=("check", CONFIG, *options, "--json"), values=values
    )
    entrypoint = f'python -c "{PROBE}" && {ENTRY}'
    name = f"{order.name}-check-{uuid.uuid4().hex[:8]}"
    job = client.submit_job(
        entrypoint=entrypoint,
        submission_id=name,
        runtime_env=dict(env),
        metadata=asking.metadata(()),
    )
    try:
        _ended(client, job, CHECK_TIMEOUT)
        logs = client.get_job_logs(job)
        probe = _probed(logs)
        _refuse_version(probe, client.get_address())
        findings = _found(logs)
        if findings is not None:
            findings.notes += _other_python(probe)
            return findings
        info = client.get_job_info(job)
        if info.driver_exit_code == 2:
            raise RequestError(
                f"the cluster at {client.get_address()}: {_last(logs).removeprefix('tinynet: ')}"
            )
        raise JobError(
            f"the look at the cluster failed: {_last(logs) or one_line(info.message or info.status)}"
        )
    finally:
        _forget(client, job)


def _ended(client: "JobSubmissionClient", job: str, patience: float) -> None:
    end = time.monotonic() + patience
    while not client.get_job_status(job).is_terminal():
        if time.monotonic() > end:
            raise JobError(
                f"job {job}, which looks at the cluster, has not ended after {patience:.0f} s: tinynet jobs logs, or Ray's dashboard"
            )
        time.sleep(POLL)


def _forget(client: "JobSubmissionClient", job: str) -> None:
    """Whatever becomes of the look, it leaves no job behind, unless the cluster is gone."""
    with contextlib.suppress(RuntimeError, OSError):
        if not client.get_job_status(job).is_terminal():
            client.stop_job(job)
            _ended(client, job, FORGET)
        client.delete_job(job)


def _other_python(probe: Probe | None) -> list[str]:
    theirs, ours = probe.python if probe else "", platform.python_version()
    if not theirs or theirs.split(".")[:2] == ours.split(".")[:2]:
        return []
    return [
        f"the cluster runs Python {theirs}, this machine {ours}: modules that you send must run on both"
    ]


def _probed(logs: str) -> Probe | None:
    values = _document(logs, "tinynet-probe ")
    if not isinstance(values, dict):
        return None
    version = values.get("tinynet-search")
    return Probe(str(values.get("python", "")), None if version is None else str(version))


def _found(logs: str) -> Findings | None:
    """What the look printed, None where it printed none that this version understands."""
    with contextlib.suppress(ValueError):
        return Findings.from_json(_document(logs, ""))
    return None


def _document(logs: str, prefix: str) -> Any:
    """The last line that is a JSON object behind this prefix, None without one."""
    for line in reversed(logs.splitlines()):
        if line.startswith(f"{prefix}{{"):
            with contextlib.suppress(ValueError):
                return json.loads(line.removeprefix(prefix))
    return None


def _refuse_version(probe: Probe | None, url: str) -> None:
    if probe is None:
        return
    theirs = probe.version
    if theirs is None:
        raise RequestError(
            f"the cluster at {url} has no tinynet-search: put {__version__} on its image, or send it with --wheel FILE"
        )
    if theirs != __version__:
        mend = "bring one to the other's version, or send this one with --wheel FILE"
        raise RequestError(
            f"the cluster at {url} has tinynet-search {theirs}, this machine {__version__}: {mend}"
        )


def _last(logs: str) -> str:
    lines: Sequence[str] = [
        line for line in logs.splitlines() if line.strip() and not line.startswith("tinynet-probe ")
    ]
    return one_line(lines[-1]) if lines else ""
