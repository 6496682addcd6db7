"""The quick form of the kill table: one kill of each kind, with both executors."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.checks import check_mlflow, check_same_results
from tests.chaos.cluster import ChaosCluster
from tests.chaos.killed_search import (
    INJECTED,
    ROOT,
    SETTINGS,
    TRIALS,
    SearchRunner,
    database_template,
    prepare_storage,
)
from tests.chaos.scenarios import QUICK, Scenario
from tests.search.helpers import tiny_config, tiny_search
from tests.tracking.helpers import SQLALCHEMY, tracking_environment
from tests.trainables.test_distributed import on_ranks
from trainables.execution import Execution
from trainables.spec import LocalReporter
from trainables.trial import run_trial

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(SQLALCHEMY)]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchRunner]:
    home = tmp_path_factory.mktemp("quick")
    with tracking_environment(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYNET_CHAOS", str(home))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(INJECTED), str(ROOT)]))
        runner = SearchRunner(home, ChaosCluster())
        yield runner
        runner.cluster.stop()


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.executor)
def test_one_kill_of_each_kind(runner: SearchRunner, scenario: Scenario) -> None:
    template = database_template(runner.home)
    reference = train_undisturbed(
        prepare_storage(runner.home / f"{scenario.name}-undisturbed", template), scenario.executor
    )
    assert runner.run(reference, [], executor=scenario.executor).codes == [0]
    storage, kills = prepare_storage(runner.home / scenario.name, template), list(scenario.kills)
    outcome = runner.run(storage, kills, executor=scenario.executor)
    assert (outcome.kills, kills) == (list(scenario.kills), [])
    check_same_results(storage, reference)
    check_mlflow(storage, f"sqlite:///{storage}/mlflow.db")


def train_undisturbed(storage: Path, executor: str) -> Path:
    """Train the same trials without Ray, but do not compute the frontier and the formula."""
    config = tiny_config(storage, *SETTINGS[executor], trials=TRIALS[executor])
    store, _, candidates = tiny_search(config)
    for candidate in candidates:
        if config.scaling.workers > 1:
            assert set(on_ranks(candidate.spec, config.scaling.workers, Path(store.url))) == {0}
        else:
            run_trial(
                candidate.spec, store.url, LocalReporter(), Execution(checkpoint_every_steps=2)
            )
    return storage
