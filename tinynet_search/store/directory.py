"""The search directory, the truth of a search: ``<storage>/<search>/`` on any storage that ``trainables.storage.folder`` opens.

| file | written | holds |
|-|-|-|
| ``plan.json`` | once | space, band, sampler, recipe, data, seed, what ranks |
| ``candidates/<batch>.json`` | once a batch | id, (r, d, w) and exact cost of each candidate |
| ``trials/<id>-e<epochs>/`` | by the trial | checkpoints; at the end the weights and their ``config.json`` |
| ``results/<id>-e<epochs>.json`` | once, by the trial | status, reason, metrics, every epoch |
| ``frontier.json``, ``formula.json``, ``finals.json`` | by the driver | what follows from the results; made anew at will |
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
    MOST_TRIALS,
    SCHEMA,
    Batch,
    Drawn,
    FinalRow,
    FrontierRow,
    Plan,
    checked,
    foreign_space,
)
from trainables.result import EpochRecord, NetworkFigures, ResultSummary, TrialResult
from trainables.run_name import RunName
from trainables.spec import TrialSpec
from trainables.storage.documents import LARGE, SMALL, DocumentError, parsed
from trainables.storage.folder import Folder, below, open_folder
from trainables.trial_folder import newest_progress, read_result, result_name

PLAN, FRONTIER, FORMULA, FINALS = "plan.json", "frontier.json", "formula.json", "finals.json"
# In the place of a plan: the directory is a training job's.
JOB = "job.json"
Row = TypeVar("Row", FrontierRow, FinalRow)


@dataclass(frozen=True)
class Candidate:
    """A planned trial: its description and the figures of its network.

    Attributes:
        named: its run name where that is known already, since working it out takes the network's shape.
    """

    spec: TrialSpec
    network: NetworkFigures
    named: RunName | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, spec: TrialSpec) -> "Candidate":
        return cls(spec, NetworkFigures.of(spec.network()))

    @cached_property
    def run(self) -> RunName:
        """Names the result and the trial folder."""
        return self.named or self.spec.run

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def c(self) -> float:
        return self.network.c


class SearchStore:
    """Reads and writes one search directory."""

    def __init__(self, url: str) -> None:
        self.folder: Folder = open_folder(url)
        self.url = self.folder.url

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]

    def at(self, name: str) -> str:
        """Where a file lies, for people and for whoever opens it."""
        return below(self.url, name)

    def read_json(self, name: str) -> Any:
        """A file's content, or None where there is no file.

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
                f"{self.at(name)} is damaged ({error}): restore it, or search under another name"
            ) from error

    def write_json(self, name: str, value: Any, *, once: bool = False) -> bool:
        """Write a file; False where it is to be written ``once`` and was there."""
        data = json.dumps(value, indent=1).encode()
        try:
            if once:
                return self.folder.write_once(name, data)
            self.folder.write(name, data)
            return True
        except OSError as error:
            raise _unusable(self.url, error) from error

    def plan(self, space: str | None = None) -> Plan | None:
        """The plan, or None before there is one.

        Args:
            space: repeats a user's own ``module:attribute``, since importing what a file names would run code.

        Raises:
            RequestError: the plan is damaged, or of a user's own space that ``space`` does not repeat.
        """
        plan = self.written_plan()
        if plan is not None and (foreign := foreign_space(plan.space.name, space)):
            raise RequestError(f"plan {self.at(PLAN)}: {foreign}")
        return plan

    def written_plan(self) -> Plan | None:
        """The plan, of whatever space: to be compared, not to be followed. Raises RequestError where it is damaged."""
        values = self.read_json(PLAN)
        if values is None and not self.folder.exists(PLAN):
            return None
        try:
            return Plan.from_json(values)
        except DocumentError as error:
            raise RequestError(
                f"plan {self.at(PLAN)} is damaged ({error}): restore it, or search under another name"
            ) from error

    def frontier_rows(self) -> list[FrontierRow] | None:
        """Rows of ``frontier.json``, None before there are any. Raises RequestError where they are damaged."""
        return self._rows(FRONTIER, FRONTIER_ROWS)

    def final_rows(self) -> list[FinalRow]:
        """Rows of ``finals.json``. Raises RequestError where they are damaged."""
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
                f"{self.at(name)} is damaged ({error}): remove it, it is made anew"
            ) from error

    def candidates(self) -> list[Drawn]:
        """Every candidate in the order they were drawn, all batches.

        Raises:
            RequestError: a batch is damaged.
        """
        drawn: list[Drawn] = []
        for name in self.folder.names("candidates"):
            place = f"candidates/{name}"
            try:
                drawn += Batch.from_json(self.read_json(place)).candidates
            except DocumentError as error:
                raise RequestError(
                    f"candidates {self.at(place)} are damaged ({error}): restore the file"
                ) from error
            if len(drawn) > MOST_TRIALS:
                raise RequestError(
                    f"candidates {self.at('candidates')} are damaged (more than {MOST_TRIALS}): restore them"
                )
        return drawn

    def add_batch(self, start: int, candidates: Iterable[Candidate]) -> bool:
        """Write the candidates that follow the first ``start`` ones; False where another driver has written others there."""
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
        """A run's result, None before it has one. Raises RequestError where it is damaged or cannot be read."""
        try:
            return read_result(self.folder, run)
        except OSError as error:
            raise _unusable(self.url, error) from error

    def has_result(self, run: str) -> bool:
        """Raises RequestError where the storage cannot be read."""
        try:
            return self.folder.exists(result_name(run))
        except OSError as error:
            raise _unusable(self.url, error) from error

    def remove_result(self, run: str) -> None:
        """Have a trial trained again; for its driver alone."""
        self.folder.remove(result_name(run))

    def finished(self) -> set[RunName]:
        """Runs that have a result; files of other names in that folder are ignored."""
        try:
            return RunName.parsed(self.folder.names("results"), ".json")
        except OSError as error:
            raise _unusable(self.url, error) from error

    def begun(self) -> set[RunName]:
        """Runs that have a result or a folder of checkpoints."""
        return self.finished() | RunName.parsed(self.folder.names("trials"))

    def summary(self, run: str) -> ResultSummary | None:
        """A result without its epochs, of which a long search could not hold all in memory."""
        result = self.result(run)
        return result.summary() if result else None

    def summaries(self, runs: Iterable[RunName]) -> dict[RunName, ResultSummary]:
        """Summaries by run name, of those that have a result."""
        there = self.finished()
        read = ((run, self.summary(run)) for run in runs if run in there)
        return {run: summary for run, summary in read if summary is not None}

    def results(self, runs: Iterable[RunName]) -> dict[RunName, TrialResult]:
        """Results by run name, of those that have one."""
        there = self.finished()
        read = ((run, self.result(run)) for run in runs if run in there)
        return {run: result for run, result in read if result is not None}

    def progress(self, run: str) -> list[EpochRecord]:
        """Every epoch of a trial that is committed to a checkpoint, oldest first; after the end, see its result."""
        return newest_progress(self.folder.sub(f"trials/{run}"))


def _unusable(url: str, error: OSError) -> RequestError:
    return RequestError(
        f"storage {url} cannot be used ({' '.join(str(error).split())}): give another by --storage, or mend it"
    )
