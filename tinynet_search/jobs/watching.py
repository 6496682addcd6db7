"""Jobs that were submitted: found by id or name, followed, stopped, resumed."""

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

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
    Submitted,
    ours,
    submit,
)

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

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

    def all(self) -> list[dict[str, Any]]:
        """What ``described`` tells of every job of ours, the oldest first."""
        with reaching(self.address):
            return [described(job) for job in ours(self._client)]

    def find(self, name: str) -> dict[str, Any]:
        """A job by its id, or the newest of a search or training by its name."""
        return described(self._found(name))

    def logs(self, name: str) -> str:
        """Everything that a job has said."""
        job = self._found(name)
        with reaching(self.address):
            return self._client.get_job_logs(job.submission_id)

    def follow(self, name: str, say: Callable[[str], None]) -> dict[str, Any]:
        """Pass a job's words on until it ends, through any silence of the cluster; the job as it ended.

        What it has said is asked for again and again: a stream would not tell of a lid that was closed and opened.
        """
        job, told, heard = self._found(name).submission_id, 0, time.monotonic()
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

    def stop(self, name: str) -> dict[str, Any]:
        """Have a job commit checkpoints and end; returns once it has."""
        job = self._found(name, alone=True)
        if job.status.is_terminal():
            raise RequestError(f"job {job.submission_id} has ended already ({job.status.lower()})")
        with reaching(self.address):
            self._client.stop_job(job.submission_id)
            end = time.monotonic() + STOP_SECONDS + 30
            while not (found := self._client.get_job_info(job.submission_id)).status.is_terminal():
                if time.monotonic() > end:
                    raise JobError(
                        f"job {job.submission_id} was asked to end and has not: tinynet jobs status {job.submission_id}"
                    )
                time.sleep(POLL)
        return described(found)

    def resume(
        self, name: str, *, working_dir: str | None = None, wheel: str | None = None
    ) -> Submitted:
        """The same again under a new id: what has a result is skipped, what has a checkpoint goes on."""
        job = self._found(name)
        if not job.status.is_terminal():
            raise RequestError(
                f"job {job.submission_id} is {job.status.lower()}: there is nothing to resume"
            )
        given = {"working_dir": working_dir, "wheel": wheel}
        lacking = [
            flag for flag in job.metadata.get(SHIPPED, "").split(",") if flag and not given[flag]
        ]
        if lacking:
            flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in lacking)
            raise RequestError(
                f"job {job.submission_id} was sent with {flags}, which the cluster does not keep: give it again"
            )
        return submit(
            _order(job.metadata), self.address, working_dir=working_dir, wheel=wheel, check=False
        )

    def _found(self, name: str, *, alone: bool = False) -> Any:
        """A job by its id, or the newest of a name; ``alone``: not where others of that name run too."""
        with reaching(self.address):
            jobs = ours(self._client)
        matching = [job for job in jobs if job.submission_id == name] or [
            job for job in jobs if job.metadata.get(NAME) == name
        ]
        if not matching:
            known = (
                ", ".join(job.submission_id for job in jobs[-5:])
                or "there is none; a head that started anew forgets its jobs, and the same search may be submitted again"
            )
            raise RequestError(f"no job {one_line(name, 80)!r} at {self.address}: {known}")
        running = [job.submission_id for job in matching if not job.status.is_terminal()]
        if alone and len(running) > 1:
            raise RequestError(
                f"several jobs of the name {one_line(name, 80)!r} run: {', '.join(running)}: give one of these"
            )
        return next(
            (job for job in reversed(matching) if alone and job.submission_id in running),
            matching[-1],
        )


def described(job: Any) -> dict[str, Any]:
    """A job as ``tinynet jobs --json`` prints it; times are seconds since 1970."""
    metadata = job.metadata
    times = {
        key: value / 1000 if value else None
        for key, value in (("started", job.start_time), ("ended", job.end_time))
    }
    about = {
        key: metadata.get(name, "")
        for key, name in (("storage", STORAGE), ("tracking", TRACKING), ("version", VERSION))
    }
    status = str(getattr(job.status, "value", job.status))
    ended = {"exit_code": job.driver_exit_code, "message": one_line(job.message or "")}
    return {
        "id": job.submission_id,
        "kind": metadata.get(KIND, ""),
        "name": metadata.get(NAME, ""),
        "status": status,
        **times,
        **about,
        **ended,
    }


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
