"""What a search came to: returned by ``run_search``, printed by the command line."""

from dataclasses import dataclass, field

from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.schema import FinalRow, FrontierRow, Plan
from trainables.result import ResultSummary
from trainables.run_name import RunName


@dataclass
class SearchOutcome:
    """What a search came to.

    Attributes:
        results: of everything that has ended, by run name.
        frontier: rows of ``frontier.json``, by rising c; final_rows: of ``finals.json``.
        tracking: MLflow's address; link: the search's page there, None where MLflow was not reached.
        at_once: trials side by side.
        new: trials and finals that were trained by this call.
        lost: trials that ended without a result, after their processes were lost too often; lost_why: of what, where it is known.
        stopped: why the search ended before its work was done, None where it did not.
        seconds: wall time by part: ``ray`` (start and stop), ``trials``, ``mlflow`` (in its own thread), ``total``.
        trained: seconds of bare training by this call, summed over its trials.
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
    lost_why: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    continued: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    trained: float = 0.0

    @property
    def failed(self) -> list[ResultSummary]:
        return [result for result in self.results.values() if not result.finished]
