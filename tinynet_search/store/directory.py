"""Reads and writes a search directory ``<storage>/<search>/``, the source of truth of a search.

The storage can be any kind that ``trainables.storage.folder`` opens. Used by the driver of a
search, by training jobs, and by all readers of their results.

| file | written | contents |
|-|-|-|
| ``plan.json`` | once | space, band, sampler, recipe, data, seed, ranking metric |
| ``candidates/<batch>.json`` | once per batch | id, (r, d, w) and exact cost of each candidate |
| ``trials/<id>-e<epochs>/`` | by the trial | checkpoints; finally weights and ``config.json`` |
| ``results/<id>-e<epochs>.json`` | once, by the trial | status, reason, metrics, every epoch |
| ``frontier.json``, ``formula.json``, ``finals.json`` | by the driver | derived from the results |

Derived files can be rebuilt from the results at any time.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from pydantic import TypeAdapter

from search_spaces import RequestError
from tinynet_search.store.schema import (
    FINAL_ROWS,
    FRONTIER_ROWS,
    MAX_TRIALS,
    SCHEMA,
    Batch,
    DrawnCandidate,
    FinalRow,
    FrontierRow,
    Plan,
    checked,
    untrusted_space_error,
)
from trainables.result import EpochRecord, NetworkFigures, ResultSummary, TrialResult
from trainables.run_name import RunName
from trainables.spec import TrialSpec
from trainables.storage.documents import LARGE, SMALL, DocumentError, parsed
from trainables.storage.folder import Folder, child_url, open_folder
from trainables.trial_folder import newest_progress, read_result, result_name

PLAN, FRONTIER, FORMULA, FINALS = "plan.json", "frontier.json", "formula.json", "finals.json"
# The directory of a training job has this file instead of a plan.
JOB = "job.json"
Row = TypeVar("Row", FrontierRow, FinalRow)


@dataclass(frozen=True)
class Candidate:
    """A planned trial: its specification and the figures of its network.

    Attributes:
        spec: the specification.
        network: the figures of the network.
        known_run: the run name if it is already known; computing it requires the network's shape.
    """

    spec: TrialSpec
    network: NetworkFigures
    known_run: RunName | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, spec: TrialSpec) -> "Candidate":
        return cls(spec, NetworkFigures.of(spec.network()))

    @cached_property
    def run(self) -> RunName:
        """Run name, which is the name of the result and of the trial folder."""
        return self.known_run or self.spec.run

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def c(self) -> float:
        return self.network.c


class SearchStore:
    """Reads and writes one search directory.

    Args:
        url: path or URL of the directory.
    """

    def __init__(self, url: str) -> None:
        self.folder: Folder = open_folder(url)
        self.url = self.folder.url

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]

    def exists(self) -> bool:
        """Return whether the directory is that of a search or a training job."""
        return self.folder.exists(PLAN) or self.folder.exists(JOB)

    def url_of(self, name: str) -> str:
        """Return the path or URL of a file of the directory."""
        return child_url(self.url, name)

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file, None if the file does not exist.

        Raises:
            RequestError: the file is damaged, too large, or cannot be read.
        """
        try:
            return parsed(self.folder.read(name, SMALL if name in (PLAN, JOB) else LARGE))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(self.url, error) from error
        except ValueError as error:
            raise RequestError(
                f"{self.url_of(name)} is damaged ({error}): restore it, or use a different name"
            ) from error

    def write_json(self, name: str, value: Any, *, once: bool = False) -> bool:
        """Write a JSON file.

        Returns:
            False if ``once`` is true and the file already exists.

        Raises:
            RequestError: the storage cannot be written.
        """
        data = json.dumps(value, indent=1).encode()
        try:
            if once:
                return self.folder.write_once(name, data)
            self.folder.write(name, data)
            return True
        except OSError as error:
            raise _unusable(self.url, error) from error

    def plan(self, space: str | None = None) -> Plan | None:
        """Return the plan, None if it is not written yet.

        Args:
            space: the ``module:attribute`` of a user-defined space, given again by the user.
                Importing a name that was read from a file would run code.

        Raises:
            RequestError: the plan is damaged, or uses a user-defined space other than ``space``.
        """
        plan = self.written_plan()
        if plan is not None and (refusal := untrusted_space_error(plan.space.name, space)):
            raise RequestError(f"plan {self.url_of(PLAN)}: {refusal}")
        return plan

    def written_plan(self) -> Plan | None:
        """Return the plan without checking its space; for comparison only.

        Raises:
            RequestError: the plan is damaged.
        """
        values = self.read_json(PLAN)
        if values is None and not self.folder.exists(PLAN):
            return None
        try:
            return Plan.from_json(values)
        except DocumentError as error:
            raise RequestError(
                f"plan {self.url_of(PLAN)} is damaged ({error}): "
                "restore it, or use a different name"
            ) from error

    def frontier_rows(self) -> list[FrontierRow] | None:
        """Return the rows of ``frontier.json``, None if it does not exist.

        Raises:
            RequestError: the file is damaged.
        """
        return self._rows(FRONTIER, FRONTIER_ROWS)

    def final_rows(self) -> list[FinalRow]:
        """Return the rows of ``finals.json``.

        Raises:
            RequestError: the file is damaged.
        """
        return self._rows(FINALS, FINAL_ROWS) or []

    def write_rows(self, name: str, rows: Iterable[FrontierRow] | Iterable[FinalRow]) -> None:
        self.write_json(name, [row.to_json() for row in rows])

    def _rows(self, name: str, kind: TypeAdapter[list[Row]]) -> list[Row] | None:
        values = self.read_json(name)
        if values is None and not self.folder.exists(name):
            return None
        try:
            return checked(kind.validate_python, values)
        except DocumentError as error:
            raise RequestError(
                f"{self.url_of(name)} is damaged ({error}): remove it: the next run writes it again"
            ) from error

    def candidates(self) -> list[DrawnCandidate]:
        """Return the candidates of all batches, in the order in which they were drawn.

        Raises:
            RequestError: a batch is damaged.
        """
        drawn: list[DrawnCandidate] = []
        for name in self.folder.names("candidates"):
            path = f"candidates/{name}"
            try:
                drawn += Batch.from_json(self.read_json(path)).candidates
            except DocumentError as error:
                raise RequestError(
                    f"candidates {self.url_of(path)} are damaged ({error}): restore the file"
                ) from error
            if len(drawn) > MAX_TRIALS:
                raise RequestError(
                    f"candidates {self.url_of('candidates')} are damaged (more than {MAX_TRIALS}): "
                    "restore them"
                )
        return drawn

    def add_batch(self, start: int, candidates: Iterable[Candidate]) -> bool:
        """Write the batch of candidates that follows the first ``start`` candidates.

        Returns:
            False if another driver has already written a batch at ``start``.
        """
        rows = [
            {"id": c.id, "rdw": list(c.spec.rdw), "network": c.network.to_json()}
            for c in candidates
        ]
        return self.write_json(
            f"candidates/{start:06d}.json",
            {"schema": SCHEMA, "start": start, "candidates": rows},
            once=True,
        )

    def result(self, run: str) -> TrialResult | None:
        """Return the result of a run, None if it has none.

        Raises:
            RequestError: the result is damaged or cannot be read.
        """
        try:
            return read_result(self.folder, run)
        except OSError as error:
            raise _unusable(self.url, error) from error

    def has_result(self, run: str) -> bool:
        """Whether a run has a result.

        Raises:
            RequestError: the storage cannot be read.
        """
        try:
            return self.folder.exists(result_name(run))
        except OSError as error:
            raise _unusable(self.url, error) from error

    def remove_result(self, run: str) -> None:
        """Remove the result of a trial, so that it is trained again. Only its driver may do so."""
        self.folder.remove(result_name(run))

    def finished(self) -> set[RunName]:
        """Return the runs that have a result; files with other names in that folder are ignored.

        Raises:
            RequestError: the storage cannot be read.
        """
        try:
            return RunName.parsed(self.folder.names("results"), ".json")
        except OSError as error:
            raise _unusable(self.url, error) from error

    def started(self) -> set[RunName]:
        """Return the runs that have a result or a checkpoint folder."""
        return self.finished() | RunName.parsed(self.folder.names("trials"))

    def summary(self, run: str) -> ResultSummary | None:
        """Return a result without its epochs: those of a long search do not fit into memory."""
        result = self.result(run)
        return result.summary() if result else None

    def summaries(self, runs: Iterable[RunName]) -> dict[RunName, ResultSummary]:
        """Return summaries by run name, for the runs that have a result."""
        finished = self.finished()
        summaries = {run: self.summary(run) for run in runs if run in finished}
        return {run: summary for run, summary in summaries.items() if summary is not None}

    def results(self, runs: Iterable[RunName]) -> dict[RunName, TrialResult]:
        """Return results by run name, for the runs that have one."""
        finished = self.finished()
        results = {run: self.result(run) for run in runs if run in finished}
        return {run: result for run, result in results.items() if result is not None}

    def progress(self, run: str) -> list[EpochRecord]:
        """Return the epochs of a trial that a checkpoint contains, oldest first.

        For a trial that has ended, use the epochs of its result.
        """
        return newest_progress(self.folder.sub(f"trials/{run}"))


def _unusable(url: str, error: OSError) -> RequestError:
    return RequestError(
        f"storage {url} cannot be used ({' '.join(str(error).split())}): "
        "fix it, or pass a different --storage"
    )
