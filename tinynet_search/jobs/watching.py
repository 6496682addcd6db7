"""Jobs that were submitted: found by id or name, followed, stopped, resumed."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_spaces.errors import RequestError
from tinynet_search.errors import JobError, one_line
from tinynet_search.jobs.connection import connect, reaching
from tinynet_search.jobs.runtime_env import STOP_SECONDS
from tinynet_search.jobs.submission import (
    KIND,
    NAME,
    POLL,
    REQUEST,
    SHIPPED,
    STORAGE,
    TRACKING,
    VERSION,
    Order,
    OwnJob,
    Submitted,
    ours,
    submit,
)

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

# Seconds between two looks at a job that is followed, and of silence after which its cluster is given up.
EVERY, GIVE_UP = 2.0, 300.0


class Jobs:
    """The jobs of one cluster.

    Raises:
        RequestError: as ``connect``; from every method, where the cluster is gone or no such job is there.
        JobError: from every method, where the cluster refuses.
    """

    def __init__(self, address: str | None = None) -> None:
        self._client: JobSubmissionClient = connect(address)
        self.address: str = self._client.get_address()

    def all(self) -> "list[JobRow]":
        """Every job of ours, the oldest first."""
        with reaching(self.address):
            return [described(job.details) for job in ours(self._client)]

    def find(self, name: str) -> "JobRow":
        """A job by its id, or the newest of a search or training by its name."""
        return described(self._found(name).details)

    def logs(self, name: str) -> str:
        """Everything that a job has said."""
        job = self._found(name)
        with reaching(self.address):
            return self._client.get_job_logs(job.id)

    def follow(self, name: str, say: Callable[[str], None]) -> "JobRow":
        """Pass a job's words on until it ends, through any silence of the cluster; the job as it ended.

        What it has said is asked for again and again: a stream would not tell of a lid that was closed and opened.
        """
        job, told, heard = self._found(name).id, 0, time.monotonic()
        while True:
            try:
                with reaching(self.address):
                    found = self._client.get_job_info(job)
                    logs = self._client.get_job_logs(job)
            except (RequestError, JobError):
                if time.monotonic() - heard > GIVE_UP:
                    raise
            else:
                heard = time.monotonic()
                if len(logs) > told:
                    say(logs[told:])
                    told = len(logs)
                if found.status.is_terminal():
                    return described(found)
            time.sleep(EVERY)

    def stop(self, name: str) -> "JobRow":
        """Have a job commit checkpoints and end; returns once it has."""
        job = self._found(name, alone=True)
        if job.status.is_terminal():
            raise RequestError(f"job {job.id} has ended already ({job.status.lower()})")
        with reaching(self.address):
            self._client.stop_job(job.id)
            end = time.monotonic() + STOP_SECONDS + 30
            while not (found := self._client.get_job_info(job.id)).status.is_terminal():
                if time.monotonic() > end:
                    raise JobError(
                        f"job {job.id} was asked to end and has not: tinynet jobs status {job.id}"
                    )
                time.sleep(POLL)
        return described(found)

    def resume(
        self, name: str, *, working_dir: str | None = None, wheel: str | None = None
    ) -> Submitted:
        """The same again under a new id: what has a result is skipped, what has a checkpoint goes on."""
        job = self._found(name)
        if not job.status.is_terminal():
            raise RequestError(f"job {job.id} is {job.status.lower()}: there is nothing to resume")
        given = {"working_dir": working_dir, "wheel": wheel}
        lacking = [
            flag for flag in job.metadata.get(SHIPPED, "").split(",") if flag and not given[flag]
        ]
        if lacking:
            flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in lacking)
            raise RequestError(
                f"job {job.id} was sent with {flags}, which the cluster does not keep: give it again"
            )
        return submit(
            _order(job.metadata), self.address, working_dir=working_dir, wheel=wheel, check=False
        )

    def _found(self, name: str, *, alone: bool = False) -> OwnJob:
        """A job by its id, or the newest of a name; ``alone``: not where others of that name run too."""
        with reaching(self.address):
            jobs = ours(self._client)
        matching = [job for job in jobs if job.id == name] or [
            job for job in jobs if job.metadata.get(NAME) == name
        ]
        if not matching:
            known = (
                ", ".join(job.id for job in jobs[-5:])
                or "there is none; a head that started anew forgets its jobs, and the same search may be submitted again"
            )
            raise RequestError(f"no job {one_line(name, 80)!r} at {self.address}: {known}")
        running = [job.id for job in matching if not job.status.is_terminal()]
        if alone and len(running) > 1:
            raise RequestError(
                f"several jobs of the name {one_line(name, 80)!r} run: {', '.join(running)}: give one of these"
            )
        return next(
            (job for job in reversed(matching) if alone and job.id in running),
            matching[-1],
        )


@dataclass(frozen=True)
class JobRow:
    """A job as ``tinynet jobs`` shows it.

    Attributes:
        id: that Ray knows it by; kind: ``search`` or ``train``; name: of the search or the training job.
        status: in Ray's words; started, ended: in seconds since 1970, None before.
        storage, tracking, version: what it was submitted with.
        exit_code, message: how it ended.
    """

    id: str
    kind: str
    name: str
    status: str
    started: float | None
    ended: float | None
    storage: str
    tracking: str
    version: str
    exit_code: int | None
    message: str


def described(job: "JobDetails") -> JobRow:
    metadata = job.metadata or {}
    return JobRow(
        id=str(job.submission_id),
        kind=metadata.get(KIND, ""),
        name=metadata.get(NAME, ""),
        status=str(getattr(job.status, "value", job.status)),
        started=job.start_time / 1000 if job.start_time else None,
        ended=job.end_time / 1000 if job.end_time else None,
        storage=metadata.get(STORAGE, ""),
        tracking=metadata.get(TRACKING, ""),
        version=metadata.get(VERSION, ""),
        exit_code=job.driver_exit_code,
        message=one_line(job.message or ""),
    )


def _order(metadata: Mapping[str, str]) -> Order:
    request = json.loads(metadata[REQUEST])
    values, arguments = request["config"], _without(request["arguments"], "--retry")
    return Order(
        metadata[KIND], metadata[NAME], arguments, values, metadata[STORAGE], metadata[TRACKING]
    )


def _without(arguments: list[str], option: str) -> tuple[str, ...]:
    """The arguments without an option and its values: failed trials were set aside when the job was first sent."""
    taken = {
        index + step
        for index, argument in enumerate(arguments)
        if argument == option
        for step in (0, 1)
    }
    return tuple(argument for index, argument in enumerate(arguments) if index not in taken)
