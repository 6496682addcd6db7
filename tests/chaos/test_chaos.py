"""The chaos suite (``make test-chaos``, marker ``chaos``): every scenario, then the kill table."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import table
from tests.chaos.checks import check_mlflow, check_same_results
from tests.chaos.cluster import ChaosCluster
from tests.chaos.killed_search import (
    INJECTED,
    ROOT,
    TRIALS,
    Outcome,
    SearchRunner,
    database_template,
    prepare_storage,
)
from tests.chaos.scenarios import SCENARIOS, Kill, Scenario
from tests.tracking.helpers import SQLALCHEMY, tracking_environment
from tests.tracking.test_server import server

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings(SQLALCHEMY)]

STEPS, EPOCHS = 6, 3
MIN_KILLS = 60
__all__ = ["server"]


class Suite:
    """The cluster, one undisturbed search per executor, and the rows of the kill table so far."""

    def __init__(self, home: Path) -> None:
        self.home, self.rows, self.started = home, list[table.Row](), time.monotonic()
        self.cluster = ChaosCluster()
        self.runner = SearchRunner(home, self.cluster)
        self.template = database_template(home)
        self._undisturbed: dict[str, Outcome] = {}

    def write(self) -> list[str]:
        """Write the scenarios that passed; returns the others, failed or not yet run."""
        passed = {row.scenario.name for row in self.rows}
        missing = [name for name in SCENARIOS if name not in passed]
        table.write(self.rows, missing, time.monotonic() - self.started)
        return missing

    def undisturbed(self, executor: str) -> Outcome:
        if executor not in self._undisturbed:
            outcome = self.runner.run(
                prepare_storage(self.home / f"undisturbed-{executor}", self.template),
                [],
                executor=executor,
            )
            trials = TRIALS[executor] + 2 * (executor == "inline")
            assert (outcome.steps, outcome.codes) == (trials * EPOCHS * STEPS, [0])
            self._undisturbed[executor] = outcome
        return self._undisturbed[executor]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    home = tmp_path_factory.mktemp("chaos")
    with tracking_environment(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYNET_CHAOS", str(home))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(INJECTED), str(ROOT)]))
        suite = Suite(home)
        yield suite
        suite.cluster.stop()


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_no_result_is_lost_or_duplicated(
    suite: Suite, scenario: Scenario, request: pytest.FixtureRequest
) -> None:
    reference = suite.undisturbed(scenario.executor)
    tracking = request.getfixturevalue("server") if scenario.server else None
    kills, outcomes, results, epochs = list(scenario.kills), list[Outcome](), 0, 0
    while kills:
        storage = suite.home / f"{scenario.name}-{len(outcomes)}"
        # A kill at a random moment may hit a driver that creates its database.
        (storage.mkdir() if "random" in scenario.name else prepare_storage(storage, suite.template))
        outcome = suite.runner.run(
            storage,
            kills,
            executor=scenario.executor,
            tracking=tracking,
            undisturbed_seconds=reference.seconds,
        )
        if not outcome.kills:  # the process had already ended at that moment
            kills[0] = earlier(kills[0])
        results += check_same_results(storage, reference.storage)
        epochs += check_mlflow(storage, tracking or f"sqlite:///{storage}/mlflow.db")
        outcomes.append(outcome)
    redone = sum(outcome.steps - reference.steps for outcome in outcomes) / STEPS
    seconds = sum(outcome.seconds - reference.seconds for outcome in outcomes)
    launches = sum(len(outcome.codes) for outcome in outcomes)
    suite.rows.append(
        table.Row(
            scenario,
            sum(len(outcome.kills) for outcome in outcomes),
            launches,
            results,
            epochs,
            redone,
            seconds,
        )
    )
    suite.write()


def earlier(kill: Kill) -> Kill:
    """The same kill at half the share of the search; fails for a named point."""
    assert not kill.point, f"{kill.name}: never reached"
    assert kill.share > 0.05, f"{kill.name}: no such process exists"
    return replace(kill, share=kill.share / 2)


def test_kill_table_contains_every_scenario(
    suite: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is also printed and written."""
    failed = suite.write()
    with capsys.disabled():
        print(f"\n{table.kill_table(suite.rows)}\n")
        print(f"failed or not run: {', '.join(failed) or 'none'}")
    assert not failed
    assert sum(row.kills for row in suite.rows) >= MIN_KILLS
