"""``tinynet search --preset demo`` compared with the same trainings in bare loops.

Run by ``python -m benchmarks.run demo``.

Both use the same cores. Bare: two plain processes with one thread each train the search's trials
and then its final networks, largest first. They use no Ray, no MLflow and no driver, and the first
final does not wait for the last trial.
"""

import os
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.measure import Row
from benchmarks.overhead import AT_ONCE, Run, bare, require_equal, searched
from tinynet_search.plan.candidates import candidates_of, final_candidates
from tinynet_search.store.directory import SearchStore
from trainables.spec import TrialSpec

# Number of (search, bare) pairs; TINYNET_PAIRS overrides it.
PAIRS = int(os.environ.get("TINYNET_PAIRS", "1"))


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        pairs = [_pair(Path(scratch) / str(turn)) for turn in range(PAIRS)]
    bare_wall = median(b.wall for _, b in pairs)
    return [
        Row(
            "tinynet search --preset demo, trials and finals", median(a.wall for a, _ in pairs), "s"
        ),
        Row(f"the same trainings in {AT_ONCE} bare processes", bare_wall, "s"),
        Row("search / bare", median(a.wall / b.wall for a, b in pairs), "times", 1.15),
        Row(
            "seconds of the same epochs, search / bare",
            median(a.trained / b.trained for a, b in pairs),
            "times",
        ),
        Row(
            "of the search: Ray's start and stop",
            median(a.report["seconds"]["ray"] for a, _ in pairs),
            "s",
        ),
        Row(
            "of the search: the command's start, imports and exit",
            median(a.wall - a.report["seconds"]["total"] for a, _ in pairs),
            "s",
        ),
        Row(
            "of the search: trials, less an even share of their epochs",
            median(a.report["seconds"]["trials"] - a.trained for a, _ in pairs),
            "s",
        ),
        Row(
            "of bare: all but an even share of the epochs",
            median(b.wall - b.trained for _, b in pairs),
            "s",
        ),
        Row(
            "trainings with results equal in both",
            min(len(b.results) for _, b in pairs),
            f"of {len(pairs[0][0].results)}",
        ),
    ]


def _pair(folder: Path) -> tuple[Run, Run]:
    """Run the search first: its result determines the final networks."""
    search_run = searched(folder / "searched", ())
    bare_run = bare(folder / "bare", _specs(folder / "searched"))
    require_equal(bare_run, search_run, len(search_run.results))
    return search_run, bare_run


def _specs(storage: Path) -> list[TrialSpec]:
    store = SearchStore(str(storage / "demo"))
    plan = store.plan()
    assert plan is not None
    trials = sorted(candidates_of(plan, store), key=lambda c: (-c.network.macs, c.run))
    trial_runs = {trial.run for trial in trials}
    finals = {c.run: c for c in final_candidates(store) if c.run not in trial_runs}
    return [candidate.spec for candidate in (*trials, *finals.values())]
