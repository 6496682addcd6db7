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
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from search_spaces import RequestError
from search_spaces.space import SANE
from tinynet_search.store.schema import (
    MOST_TRIALS,
    RUN,
    fault_of_finals,
    fault_of_frontier,
    fault_of_plan,
    foreign_space,
)
from trainables.spec import TrialSpec
from trainables.storage.documents import LARGE, SMALL, parsed
from trainables.storage.folder import Folder, below, open_folder
from trainables.trial_folder import newest_progress, read_result, result_name

PLAN, FRONTIER, FORMULA, FINALS = "plan.json", "frontier.json", "formula.json", "finals.json"
# In the place of a plan: the directory is a training job's.
JOB = "job.json"
SCHEMA = 1
_RESULT = re.compile(RUN.removesuffix("$") + r"\.json")


@dataclass(frozen=True)
class Candidate:
    """A planned trial: its description and the figures of its network."""

    spec: TrialSpec
    network: Mapping[str, Any]

    @classmethod
    def named(cls, run: str, spec: TrialSpec, network: Mapping[str, Any]) -> "Candidate":
        """With its run name, where that is known already."""
        candidate = cls(spec, network)
        object.__setattr__(candidate, "_run", run)
        return candidate

    @property
    def id(self) -> str:
        return self.run.rsplit("-e", 1)[0]

    @property
    def run(self) -> str:
        """``<id>-e<epochs>``: names the result and the trial folder."""
        if "_run" not in self.__dict__:
            object.__setattr__(self, "_run", self.spec.run)
        return self.__dict__["_run"]

    @property
    def c(self) -> float:
        return self.network["c"]


class Drawn(NamedTuple):
    """A candidate as it is written down: (r, d, w), and beside them, not to be relied on, its id and its network's figures."""

    rdw: tuple[float, float, float]
    id: Any
    network: Any


class SearchStore:
    """Reads and writes one search directory."""

    def __init__(self, url: str) -> None:
        self.folder: Folder = open_folder(url)
        self.url = self.folder.url
        self._summaries: dict[str, dict[str, Any]] = {}

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

    def plan(self, space: str | None = None) -> dict[str, Any] | None:
        """The plan, or None before there is one.

        Args:
            space: repeats a user's own ``module:attribute``, since importing what a file names would run code.

        Raises:
            RequestError: the plan is damaged, or of a user's own space that ``space`` does not repeat.
        """
        plan = self.written_plan()
        if plan is not None and (foreign := foreign_space(plan["space"]["name"], space)):
            raise RequestError(f"plan {self.at(PLAN)}: {foreign}")
        return plan

    def written_plan(self) -> dict[str, Any] | None:
        """The plan, of whatever space: to be compared, not to be followed. Raises RequestError where it is damaged."""
        plan = self.read_json(PLAN)
        if plan is None and not self.folder.exists(PLAN):
            return None
        fault = fault_of_plan(plan)
        if fault or plan is None:
            raise RequestError(
                f"plan {self.at(PLAN)} is damaged ({fault}): restore it, or search under another name"
            )
        return plan

    def frontier_rows(self) -> list[dict[str, Any]] | None:
        """Rows of ``frontier.json``, None before there are any. Raises RequestError where they are damaged."""
        return self._rows(FRONTIER, fault_of_frontier)

    def final_rows(self) -> list[dict[str, Any]]:
        """Rows of ``finals.json``. Raises RequestError where they are damaged."""
        return self._rows(FINALS, fault_of_finals) or []

    def _rows(
        self, name: str, fault_of: Callable[[Any], str | None]
    ) -> list[dict[str, Any]] | None:
        rows = self.read_json(name)
        if rows is None and not self.folder.exists(name):
            return None
        if fault := fault_of(rows):
            raise RequestError(f"{self.at(name)} is damaged ({fault}): remove it, it is made anew")
        return rows

    def candidates(self) -> list[Drawn]:
        """Every candidate in the order they were drawn, all batches.

        Raises:
            RequestError: a batch is damaged.
        """
        drawn: list[Drawn] = []
        for name in self.folder.names("candidates"):
            batch: Any = self.read_json(f"candidates/{name}")
            try:
                drawn += [
                    Drawn(_multipliers(row["rdw"]), row.get("id"), row.get("network"))
                    for row in batch["candidates"]
                ]
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise RequestError(
                    f"candidates {self.at(f'candidates/{name}')} are damaged ({error!r:.200}): restore the file"
                ) from error
            if len(drawn) > MOST_TRIALS:
                raise RequestError(
                    f"candidates {self.at('candidates')} are damaged (more than {MOST_TRIALS}): restore them"
                )
        return drawn

    def add_batch(self, start: int, candidates: Iterable[Candidate]) -> bool:
        """Write the candidates that follow the first ``start`` ones; False where another driver has written others there."""
        rows = [
            {"id": c.id, "rdw": list(c.spec.rdw), "network": dict(c.network)} for c in candidates
        ]
        return self.write_json(
            f"candidates/{start:06d}.json",
            {"schema": SCHEMA, "start": start, "candidates": rows},
            once=True,
        )

    def result(self, run: str) -> dict[str, Any] | None:
        """A run's result, None before it has one. Raises RequestError where it is damaged or cannot be read."""
        try:
            return read_result(self.folder, run)
        except OSError as error:
            raise _unusable(self.url, error) from error

    def remove_result(self, run: str) -> None:
        """Have a trial trained again; for its driver alone."""
        self._summaries.pop(run, None)
        self.folder.remove(result_name(run))

    def finished(self) -> set[str]:
        """Runs that have a result; files of other names in there are somebody else's."""
        try:
            return {
                name.removesuffix(".json")
                for name in self.folder.names("results")
                if _RESULT.fullmatch(name)
            }
        except OSError as error:
            raise _unusable(self.url, error) from error

    def budgets(self) -> dict[str, int]:
        """Epochs of every run that has a result or has begun, by its name."""
        there = self.finished() | {
            name for name in self.folder.names("trials") if _RESULT.fullmatch(f"{name}.json")
        }
        return {run: int(run.rpartition("-e")[2]) for run in there}

    def summary(self, run: str) -> dict[str, Any] | None:
        """A result without its epochs: in their place ``epochs_done``, their ``seconds`` and when the first ended, ``first_ts``.

        Results are written once, so each is read once; a long search holds these in memory, which it could not of every epoch.
        """
        if run not in self._summaries:
            result = self.result(run)
            if result is None:
                return None
            self._summaries[run] = _summary(result)
        return self._summaries[run]

    def summaries(self, runs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Summaries by run name, of those that have a result."""
        there = self.finished()
        found = ((run, self.summary(run)) for run in runs if run in there)
        return {run: summary for run, summary in found if summary is not None}

    def results(self, runs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Results by run name, of those that have one."""
        there = self.finished()
        found = ((run, self.result(run)) for run in runs if run in there)
        return {run: result for run, result in found if result is not None}

    def progress(self, run: str) -> list[dict[str, Any]]:
        """Every epoch of a trial that is committed to a checkpoint, oldest first; after the end, see its result."""
        return newest_progress(self.folder.sub(f"trials/{run}"))


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    epochs = result["epochs"]
    return {
        **{
            key: result.get(key)
            for key in ("id", "run", "status", "reason", "detail", "started", "ended")
        },
        "metrics": {sys.intern(key): value for key, value in result["metrics"].items()},
        "network": {key: result["network"][key] for key in ("c", "macs", "params", "resolution")},
        "epochs_done": len(epochs),
        "seconds": sum(epoch["seconds"] for epoch in epochs),
        "first_ts": epochs[0]["ts"] if epochs else None,
    }


def _multipliers(values: Any) -> tuple[float, float, float]:
    """(r, d, w) as read from a file.

    Raises:
        ValueError: they are no three sane multipliers.
    """
    r, d, w = (float(value) for value in values)
    if not all(SANE[0] <= value <= SANE[1] for value in (r, d, w)):
        raise ValueError(f"{[r, d, w]} are no multipliers")
    return r, d, w


def _unusable(url: str, error: OSError) -> RequestError:
    return RequestError(
        f"storage {url} cannot be used ({' '.join(str(error).split())}): give another by --storage, or mend it"
    )
