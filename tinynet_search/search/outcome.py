"""The outcome of a search, returned by ``run_search`` and printed by the command line."""

from dataclasses import dataclass, field

from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.schema import FinalRow, FrontierRow, Plan
from trainables.result import ResultSummary
from trainables.run_name import RunName


@dataclass
class SearchOutcome:
    """The outcome of a search.

    Attributes:
        results: Results of all runs that have ended, by run name.
        frontier: Rows of ``frontier.json``, sorted by c.
        final_rows: Rows of ``finals.json``.
        tracking: Address of the MLflow server.
        link: URL of the search in MLflow, None if MLflow was not reached.
        at_once: Number of concurrent trials.
        new: Number of trials and final networks trained by this call.
        lost: Trials that ended without a result because their processes were lost too often.
        lost_reasons: Reasons by run name, where they are known.
        stopped: Why the search stopped early, None if it did not.
        seconds: Wall time by part: ``ray`` (start and stop), ``trials``, ``mlflow`` (in its own
            thread) and ``total``.
        trained: Seconds of training in this call, summed over its trials, without overhead.
    """

    store: SearchStore
    plan: Plan
    candidates: list[Candidate]
    finals: list[Candidate]
    results: dict[RunName, ResultSummary]
    frontier: list[FrontierRow]
    final_rows: list[FinalRow]
    formula: TinyFormula
    tracking: str
    link: str | None = None
    at_once: int = 1
    new: int = 0
    lost: list[Candidate] = field(default_factory=list)
    lost_reasons: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    continued: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    trained: float = 0.0

    @property
    def failed(self) -> list[ResultSummary]:
        return [result for result in self.results.values() if not result.finished]
