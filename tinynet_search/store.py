"""The search directory, the truth of a search: ``<storage>/<search>/`` on any storage that ``trainables.folder`` opens.

| file | written | holds |
|-|-|-|
| ``plan.json`` | once | space, band, sampler, recipe, data, seed, what ranks |
| ``candidates/<batch>.json`` | once a batch | id, (r, d, w) and exact cost of each candidate |
| ``trials/<id>-e<epochs>/`` | by the trial | checkpoints; at the end the weights and their ``config.json`` |
| ``results/<id>-e<epochs>.json`` | once, by the trial | status, reason, metrics, every epoch |
| ``frontier.json``, ``formula.json``, ``finals.json`` | by the driver | what follows from the results; made anew at will |
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces import RequestError
from search_spaces.space import SANE
from tinynet_search.schema import fault_of_plan
from trainables.folder import Folder, open_folder
from trainables.trial import TrialSpec, newest_progress, read_result

PLAN, FRONTIER, FORMULA, FINALS = "plan.json", "frontier.json", "formula.json", "finals.json"
# In the place of a plan: the directory is a training job's.
JOB = "job.json"
SCHEMA = 1


@dataclass(frozen=True)
class Candidate:
    """A planned trial: its description and the figures of its network."""

    spec: TrialSpec
    network: Mapping[str, Any]

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


class SearchStore:
    """Reads and writes one search directory."""

    def __init__(self, url: str) -> None:
        self.folder: Folder = open_folder(url)
        self.url = self.folder.url

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]

    def read_json(self, name: str) -> Any:
        """A file's content, or None where there is no file.

        Raises:
            RequestError: the file is damaged.
        """
        try:
            data = self.folder.read(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(self.url, error) from error
        try:
            return json.loads(data)
        except ValueError as error:
            raise RequestError(f"{self.url}/{name} is damaged ({error}): restore it, or search under another name") from error

    def write_json(self, name: str, value: Any, *, once: bool = False) -> None:
        data = json.dumps(value, indent=1).encode()
        try:
            if once:
                self.folder.write_once(name, data)
            else:
                self.folder.write(name, data)
        except OSError as error:
            raise _unusable(self.url, error) from error

    def plan(self) -> dict[str, Any] | None:
        """The plan, or None before there is one.

        Raises:
            RequestError: the plan is damaged.
        """
        plan = self.read_json(PLAN)
        if plan is None and not self.folder.exists(PLAN):
            return None
        fault = fault_of_plan(plan)
        if fault:
            raise RequestError(f"plan {self.url}/{PLAN} is damaged ({fault}): restore it, or search under another name")
        return plan

    def candidates(self) -> list[tuple[float, float, float]]:
        """(r, d, w) of every candidate in the order they were drawn, all batches.

        Raises:
            RequestError: a batch is damaged.
        """
        drawn: list[tuple[float, float, float]] = []
        for name in self.folder.names("candidates"):
            batch = self.read_json(f"candidates/{name}")
            try:
                drawn += [_multipliers(candidate["rdw"]) for candidate in batch["candidates"]]
            except (KeyError, TypeError, ValueError) as error:
                raise RequestError(f"candidates {self.url}/candidates/{name} are damaged ({error!r}): restore the file") from error
        return drawn

    def add_batch(self, start: int, candidates: Iterable[Candidate]) -> None:
        """Write the candidates that follow the first ``start`` ones."""
        rows = [{"id": c.id, "rdw": list(c.spec.rdw), "network": dict(c.network)} for c in candidates]
        self.write_json(f"candidates/{start:06d}.json", {"schema": SCHEMA, "start": start, "candidates": rows}, once=True)

    def result(self, run: str) -> dict[str, Any] | None:
        return read_result(self.folder, run)

    def finished(self) -> set[str]:
        """Runs that have a result."""
        return {name.removesuffix(".json") for name in self.folder.names("results")}

    def results(self, runs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Results by run name, of those that have one."""
        there = self.finished()
        found = ((run, self.result(run)) for run in runs if run in there)
        return {run: result for run, result in found if result is not None}

    def progress(self, run: str) -> list[dict[str, Any]]:
        """Every epoch of a trial that is committed to a checkpoint, oldest first; after the end, see its result."""
        return newest_progress(self.folder.sub(f"trials/{run}"))


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
    return RequestError(f"storage {url} cannot be used ({error.strerror or error}): give another by --storage, or mend it")
