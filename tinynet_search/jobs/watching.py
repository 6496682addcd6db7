"""Jobs that were submitted: found by id or name, followed, stopped, resumed."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from search_spaces.errors import RequestError
from tinynet_search.errors import JobError, one_line
from tinynet_search.jobs.connection import connect, reaching
from tinynet_search.jobs.entry import REQUEST
from tinynet_search.jobs.shipment import STOP_SECONDS
from tinynet_search.jobs.submission import KIND, NAME, POLL, SHIPPED, STORAGE, TRACKING, VERSION, Order, Submitted, ours, submit

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# Seconds between tries to follow a job again whose cluster went silent, and how long at most.
AGAIN, GIVE_UP = 3.0, 300.0
STATES = ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED")


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
        """Pass a job's words on until it ends, through any silence of the cluster; the job as it ended."""
        job, told, silent = self._found(name).submission_id, 0, None
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of every stream that ends
        while True:
            try:
                with reaching(self.address):
                    told = asyncio.run(_told(self._client, job, told, say))
                    found = self._client.get_job_info(job)
                    if found.status.is_terminal():
                        # The stream ends with the job, and may have missed its last words.
                        say(self._client.get_job_logs(job)[told:])
                        return described(found)
                silent = None
            except RequestError:
                silent = silent or time.monotonic()
                if time.monotonic() - silent > GIVE_UP:
                    raise
            time.sleep(AGAIN if silent else POLL)

    def stop(self, name: str) -> dict[str, Any]:
        """Have a job commit checkpoints and end; returns once it has."""
        job = self._found(name)
        if job.status.is_terminal():
            raise RequestError(f"job {job.submission_id} has ended already ({job.status.lower()})")
        with reaching(self.address):
            self._client.stop_job(job.submission_id)
            end = time.monotonic() + STOP_SECONDS + 30
            while not (found := self._client.get_job_info(job.submission_id)).status.is_terminal():
                if time.monotonic() > end:
                    raise JobError(f"job {job.submission_id} was asked to end and has not: tinynet jobs status {job.submission_id}")
                time.sleep(POLL)
        return described(found)

    def resume(self, name: str, *, working_dir: str | None = None, wheel: str | None = None) -> Submitted:
        """The same again under a new id: what has a result is skipped, what has a checkpoint goes on."""
        job = self._found(name)
        if not job.status.is_terminal():
            raise RequestError(f"job {job.submission_id} is {job.status.lower()}: there is nothing to resume")
        given = {"working_dir": working_dir, "wheel": wheel}
        lacking = [flag for flag in job.metadata[SHIPPED].split(",") if flag and not given[flag]]
        if lacking:
            flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in lacking)
            raise RequestError(f"job {job.submission_id} was sent with {flags}, which the cluster does not keep: give it again")
        return submit(_order(job.metadata), self.address, working_dir=working_dir, wheel=wheel, check=False)

    def _found(self, name: str) -> Any:
        with reaching(self.address):
            jobs = ours(self._client)
        matching = [job for job in jobs if job.submission_id == name] or [job for job in jobs if job.metadata[NAME] == name]
        if not matching:
            known = ", ".join(job.submission_id for job in jobs[-5:]) or "there is none"
            raise RequestError(f"no job {one_line(name, 80)!r} at {self.address}: {known}")
        return matching[-1]


def described(job: Any) -> dict[str, Any]:
    """A job as ``tinynet jobs --json`` prints it; times are seconds since 1970."""
    metadata = job.metadata
    times = {key: value / 1000 if value else None for key, value in (("started", job.start_time), ("ended", job.end_time))}
    about = {"storage": metadata[STORAGE], "tracking": metadata[TRACKING], "version": metadata[VERSION]}
    status = str(getattr(job.status, "value", job.status))
    ended = {"exit_code": job.driver_exit_code, "message": one_line(job.message or "")}
    return {"id": job.submission_id, "kind": metadata[KIND], "name": metadata[NAME], "status": status, **times, **about, **ended}


def _order(metadata: Mapping[str, str]) -> Order:
    request = json.loads(metadata[REQUEST])
    values, arguments = request["config"], tuple(request["arguments"])
    return Order(metadata[KIND], metadata[NAME], arguments, values, metadata[STORAGE], metadata[TRACKING])


async def _told(client: "JobSubmissionClient", job: str, told: int, say: Callable[[str], None]) -> int:
    """Pass on what a job says beyond its first ``told`` characters; how many there were in the end."""
    heard = 0
    async for text in client.tail_job_logs(job):
        new = text[max(0, told - heard) :]
        heard += len(text)
        if new:
            say(new)
    return max(heard, told)
