"""Finds submitted jobs by id or name, and follows, stops and resumes them.

Called by ``tinynet jobs`` and by ``tinynet submit``, which follows the job that it submitted.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search_spaces.errors import RequestError
from tinynet_search.commands import jobs_command
from tinynet_search.errors import JobError, one_line
from tinynet_search.jobs.command import (
    KIND,
    NAME,
    OWNER,
    REQUEST,
    SHIPPED,
    STORAGE,
    TRACKING,
    VERSION,
    JobCommand,
)
from tinynet_search.jobs.connection import connect, jobs_api_errors
from tinynet_search.jobs.runtime_env import STOP_SECONDS
from tinynet_search.jobs.submission import (
    POLL_INTERVAL,
    OwnJob,
    Submitted,
    own_jobs,
    submit,
)

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

# Seconds between two queries of a followed job, and seconds without a response after which
# following fails.
FOLLOW_INTERVAL, FOLLOW_TIMEOUT = 2.0, 300.0


class Jobs:
    """The jobs of one cluster.

    The methods take the id of a job, or the name of a search or training, which selects its newest
    job. Different searches may have one name: ``owner`` and ``storage`` (the folder of all
    searches, or the search directory) select one of them.

    Args:
        address: as for ``connect``.

    Raises:
        RequestError: as ``connect``; from every method, if the cluster is not reachable, the job
            does not exist, or jobs of several searches match; the message lists them.
        JobError: from every method, if the cluster responds with an error.
    """

    def __init__(self, address: str | None = None) -> None:
        self._client: JobSubmissionClient = connect(address)
        self.address: str = self._client.get_address()

    def all(self) -> "list[JobRow]":
        """All jobs that tinynet submitted, oldest first."""
        with jobs_api_errors(self.address):
            return [job_row(job.details) for job in own_jobs(self._client)]

    def find(self, name: str, *, owner: str | None = None, storage: str | None = None) -> "JobRow":
        """The job with this id, or the newest job of the search or training with this name."""
        return job_row(self._find(name, owner, storage).details)

    def logs(self, name: str, *, owner: str | None = None, storage: str | None = None) -> str:
        """The complete log of a job."""
        job = self._find(name, owner, storage)
        with jobs_api_errors(self.address):
            return self._client.get_job_logs(job.id)

    def follow(
        self,
        name: str,
        output: Callable[[str], None],
        *,
        owner: str | None = None,
        storage: str | None = None,
    ) -> "JobRow":
        """Pass new log text of a job to ``output`` until the job ends.

        The log is polled, since a stream would not report a connection that was interrupted, for
        example while a laptop sleeps. Errors are ignored for ``FOLLOW_TIMEOUT`` seconds.

        Returns:
            The job at its end.
        """
        job, printed = self._find(name, owner, storage).id, 0
        last_response = time.monotonic()
        while True:
            try:
                with jobs_api_errors(self.address):
                    details = self._client.get_job_info(job)
                    logs = self._client.get_job_logs(job)
            except (RequestError, JobError):
                if self._has_lost(job):
                    raise JobError(
                        f"the cluster at {self.address} has lost job {job}, because its head was "
                        "restarted: submit the same request again, it continues"
                    ) from None
                if time.monotonic() - last_response > FOLLOW_TIMEOUT:
                    raise
            else:
                last_response = time.monotonic()
                if len(logs) > printed:
                    output(logs[printed:])
                    printed = len(logs)
                if details.status.is_terminal():
                    return job_row(details)
            time.sleep(FOLLOW_INTERVAL)

    def _has_lost(self, job: str) -> bool:
        """Whether the head responds and does not know this job: a new head has no old jobs."""
        try:
            with jobs_api_errors(self.address):
                return job not in {own.id for own in own_jobs(self._client)}
        except (RequestError, JobError):
            return False

    def stop(self, name: str, *, owner: str | None = None, storage: str | None = None) -> "JobRow":
        """Stop a job, and wait until it has committed its checkpoints and ended."""
        job = self._find(name, owner, storage, unique=True)
        if job.status.is_terminal():
            raise RequestError(f"job {job.id} has already ended ({job.status.lower()})")
        with jobs_api_errors(self.address):
            self._client.stop_job(job.id)
            end = time.monotonic() + STOP_SECONDS + 30
            while True:
                details = self._client.get_job_info(job.id)
                if details.status.is_terminal():
                    return job_row(details)
                if time.monotonic() > end:
                    raise JobError(
                        f"job {job.id} did not end after the request to stop: "
                        f"see {jobs_command('status', job.id, self.address)}"
                    )
                time.sleep(POLL_INTERVAL)

    def resume(
        self,
        name: str,
        *,
        working_dir: str | None = None,
        wheel: str | None = None,
        owner: str | None = None,
        storage: str | None = None,
    ) -> Submitted:
        """Submit a job again under a new id.

        Trials with a result are skipped; trials with a checkpoint continue from it.

        Args:
            name: the id of the job, or the name of the search or training.
            working_dir: as for ``submit_search``; required if the job was submitted with one.
            wheel: as for ``submit_search``; required if the job was submitted with one.
            owner, storage: select one of several searches with this name.
        """
        job = self._find(name, owner, storage)
        if not job.status.is_terminal():
            raise RequestError(f"job {job.id} is {job.status.lower()}: there is nothing to resume")
        uploads = {"working_dir": working_dir, "wheel": wheel}
        shipped = job.metadata.get(SHIPPED, "").split(",")
        missing = [upload for upload in shipped if upload and not uploads[upload]]
        if missing:
            options = " and ".join(f"--{upload.replace('_', '-')}" for upload in missing)
            raise RequestError(
                f"job {job.id} was submitted with {options}, which the cluster does not keep: "
                f"pass {options} again"
            )
        return submit(
            _command(job), self.address, working_dir=working_dir, wheel=wheel, check=False
        )

    def _find(
        self, name: str, owner: str | None, storage: str | None, *, unique: bool = False
    ) -> OwnJob:
        """The job with this id, or the newest job with this name.

        Args:
            name: the id of the job, or the name of the search or training.
            owner, storage: of the job, None for any.
            unique: prefer a running job, and fail if several jobs of the name are running.
        """
        with jobs_api_errors(self.address):
            jobs = own_jobs(self._client)
        named = [job for job in jobs if name in (job.id, job.metadata.get(NAME))]
        matching = [job for job in named if _is_of(job, owner, storage)]
        if not matching:
            raise RequestError(self._no_job(name, owner, storage, named, jobs))
        if len({(job.owner, job.storage) for job in matching}) > 1:
            raise RequestError(
                f"{one_line(name, 80)!r} is ambiguous at {self.address}: {_candidates(matching)}; "
                "choose one with --owner, --storage or its id"
            )
        matching = [job for job in matching if job.id == name] or matching
        running = [job for job in matching if not job.status.is_terminal()]
        if unique and len(running) > 1:
            raise RequestError(
                f"several jobs with the name {one_line(name, 80)!r} are running: "
                f"pass one of {', '.join(job.id for job in running)}"
            )
        return running[-1] if unique and running else matching[-1]

    def _no_job(
        self,
        name: str,
        owner: str | None,
        storage: str | None,
        named: list[OwnJob],
        jobs: list[OwnJob],
    ) -> str:
        subject = f"job {one_line(name, 80)!r}"
        if named:
            subject += f" of owner {one_line(owner, 80)}" if owner is not None else ""
            subject += f" with storage {one_line(storage, 200)}" if storage is not None else ""
            hint = f"the jobs of that name are {_candidates(named)}"
        elif jobs:
            hint = f"the newest jobs are {', '.join(job.id for job in jobs[-5:])}"
        else:
            hint = (
                "the cluster has no jobs (a restart of the head deletes them); "
                "submit the search again"
            )
        return f"no {subject} at {self.address}: {hint}"


def _is_of(job: OwnJob, owner: str | None, storage: str | None) -> bool:
    """Whether a job has this owner and storage.

    ``storage`` is the search directory or its parent; the options of a URL may be omitted, and a
    relative path is one of this machine.
    """
    if owner is not None and job.owner != owner:
        return False
    if storage is None:
        return True
    recorded, chosen = _place(job.storage), _place(storage)
    return recorded in (chosen, f"{chosen}/{job.metadata.get(NAME)}")


def _place(storage: str) -> str:
    """A storage without options, with an absolute path in its shortest form."""
    if "://" in storage:
        return storage.partition("?")[0].rstrip("/")
    return os.path.normpath(Path(storage).expanduser().absolute())


def _candidates(jobs: list[OwnJob]) -> str:
    """The newest job of each owner and storage, as text."""
    newest = {(job.owner, job.storage): job for job in jobs}
    return ", ".join(
        one_line(
            f"{job.id} ({job.metadata.get(KIND)}, owner {job.owner}, storage {job.storage})", 400
        )
        for job in newest.values()
    )


@dataclass(frozen=True)
class JobRow:
    """A job as ``tinynet jobs`` shows it.

    Attributes:
        id: Ray's submission id.
        kind: ``search`` or ``train``.
        name: the name of the search or the training job.
        owner: of the search or the training job.
        status: Ray's job status.
        started, ended: in seconds since 1970, None before.
        storage, tracking, version: the values at submission.
        exit_code: of the job's process, None before the end.
        message: Ray's message about the status.
    """

    id: str
    kind: str
    name: str
    owner: str
    status: str
    started: float | None
    ended: float | None
    storage: str
    tracking: str
    version: str
    exit_code: int | None
    message: str


def job_row(job: "JobDetails") -> JobRow:
    """The row of a job, from Ray's details."""
    metadata = job.metadata or {}
    return JobRow(
        id=str(job.submission_id),
        kind=metadata.get(KIND, ""),
        name=metadata.get(NAME, ""),
        owner=metadata.get(OWNER, ""),
        status=str(getattr(job.status, "value", job.status)),
        started=job.start_time / 1000 if job.start_time else None,
        ended=job.end_time / 1000 if job.end_time else None,
        storage=metadata.get(STORAGE, ""),
        tracking=metadata.get(TRACKING, ""),
        version=metadata.get(VERSION, ""),
        exit_code=job.driver_exit_code,
        message=one_line(job.message or ""),
    )


def _command(job: OwnJob) -> JobCommand:
    """The command of a job, from its metadata, which any client of the cluster may have written.

    Raises:
        RequestError: the metadata are damaged.
    """
    metadata = job.metadata
    try:
        request = json.loads(metadata[REQUEST])
        values, arguments = request["config"], _without(request["arguments"], "--retry")
        return JobCommand(
            metadata[KIND],
            metadata[NAME],
            metadata[OWNER],
            arguments,
            values,
            metadata[STORAGE],
            metadata[TRACKING],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"job {job.id} has no request that this version can read "
            f"({type(error).__name__}: {one_line(error, 100)}): submit the search or training again"
        ) from error


def _without(arguments: list[str], option: str) -> tuple[str, ...]:
    """The arguments without an option and its values.

    A resumed job does not repeat ``--retry``: the first job has set the failed trials aside.
    """
    remaining = []
    skip_value = False
    for argument in arguments:
        if not skip_value and argument != option:
            remaining.append(argument)
        skip_value = argument == option
    return tuple(remaining)
