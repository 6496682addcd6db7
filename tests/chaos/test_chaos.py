"""The chaos suite (``make test-chaos``, marker ``chaos``): every scenario, checked, and the kill table at the end."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import table
from tests.chaos.checks import check_like, check_mlflow
from tests.chaos.cluster import ChaosCluster
from tests.chaos.scenarios import SCENARIOS, Kill, Scenario
from tests.chaos.siege import INJECTED, ROOT, TRIALS, Siege, Told, prepared, template
from tests.tracking.helpers import SQLALCHEMY, calm
from tests.tracking.test_server import server

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings(SQLALCHEMY)]

STEPS, EPOCHS = 6, 3
WANTED = 60
__all__ = ["server"]


class Suite:
    """The cluster, one undisturbed search of each executor, and what was found so far."""

    def __init__(self, home: Path) -> None:
        self.home, self.rows, self.started = home, list[table.Row](), time.monotonic()
        self.cluster = ChaosCluster()
        self.siege = Siege(home, self.cluster)
        self.template = template(home)
        self._undisturbed: dict[str, Told] = {}

    def keep(self) -> list[str]:
        """Write down what held so far; the scenarios that did not, or have not been tried."""
        held = {row.scenario.name for row in self.rows}
        missing = [name for name in SCENARIOS if name not in held]
        table.keep(self.rows, missing, time.monotonic() - self.started)
        return missing

    def undisturbed(self, executor: str) -> Told:
        if executor not in self._undisturbed:
            told = self.siege.endure(
                prepared(self.home / f"undisturbed-{executor}", self.template),
                [],
                executor=executor,
            )
            trials = TRIALS[executor] + 2 * (executor == "inline")
            assert (told.steps, told.codes) == (trials * EPOCHS * STEPS, [0])
            self._undisturbed[executor] = told
        return self._undisturbed[executor]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    home = tmp_path_factory.mktemp("chaos")
    with calm(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYNET_CHAOS", str(home))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(INJECTED), str(ROOT)]))
        made = Suite(home)
        yield made
        made.cluster.stop()


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_nothing_is_lost_and_nothing_doubled(
    suite: Suite, scenario: Scenario, request: pytest.FixtureRequest
) -> None:
    whole = suite.undisturbed(scenario.executor)
    tracking = request.getfixturevalue("server") if scenario.server else None
    kills, rounds, results, epochs = list(scenario.kills), list[Told](), 0, 0
    while kills:
        storage = suite.home / f"{scenario.name}-{len(rounds)}"
        # A random moment may find a driver that makes its database.
        (storage.mkdir() if "random" in scenario.name else prepared(storage, suite.template))
        told = suite.siege.endure(
            storage, kills, executor=scenario.executor, tracking=tracking, length=whole.seconds
        )
        if not told.kills:  # no such process was there any more at that moment
            kills[0] = earlier(kills[0])
        results += check_like(storage, whole.storage)
        epochs += check_mlflow(storage, tracking or f"sqlite:///{storage}/mlflow.db")
        rounds.append(told)
    redone = sum(told.steps - whole.steps for told in rounds) / STEPS
    seconds = sum(told.seconds - whole.seconds for told in rounds)
    launches = sum(len(told.codes) for told in rounds)
    suite.rows.append(
        table.Row(
            scenario,
            sum(len(told.kills) for told in rounds),
            launches,
            results,
            epochs,
            redone,
            seconds,
        )
    )
    suite.keep()


def earlier(kill: Kill) -> Kill:
    """The same at half the share of the search; a named point that was not reached is none."""
    assert not kill.point, f"{kill.name}: never reached"
    assert kill.share > 0.05, f"{kill.name}: there is no such process"
    return replace(kill, share=kill.share / 2)


def test_the_kill_table(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed and written down; every scenario is in it."""
    failed = suite.keep()
    with capsys.disabled():
        print(f"\n{table.shown(suite.rows)}\n")
        print(f"did not hold, or were not tried: {', '.join(failed) or 'none'}")
    assert not failed
    assert sum(row.kills for row in suite.rows) >= WANTED
