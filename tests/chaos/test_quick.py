"""The kill table in short: one kill of each kind, in a search of the inline executor and in one of Ray Train."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.checks import check_like, check_mlflow
from tests.chaos.cluster import ChaosCluster
from tests.chaos.scenarios import QUICK, Scenario
from tests.chaos.siege import INJECTED, ROOT, SETTINGS, TRIALS, Siege, prepared, template
from tests.search.helpers import tiny_config, tiny_search
from tests.tracking.helpers import SQLALCHEMY, calm
from tests.trainables.test_distributed import on_ranks
from trainables.execution import Execution
from trainables.spec import Alone
from trainables.trial import run_trial

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(SQLALCHEMY)]


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    home = tmp_path_factory.mktemp("quick")
    with calm(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYNET_CHAOS", str(home))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(INJECTED), str(ROOT)]))
        made = Siege(home, ChaosCluster())
        yield made
        made.cluster.stop()


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.executor)
def test_one_kill_of_each_kind(siege: Siege, scenario: Scenario) -> None:
    empty = template(siege.home)
    whole = undisturbed(
        prepared(siege.home / f"{scenario.name}-undisturbed", empty), scenario.executor
    )
    assert siege.endure(whole, [], executor=scenario.executor).codes == [0]
    storage, kills = prepared(siege.home / scenario.name, empty), list(scenario.kills)
    told = siege.endure(storage, kills, executor=scenario.executor)
    assert (told.kills, kills) == (list(scenario.kills), [])
    check_like(storage, whole)
    check_mlflow(storage, f"sqlite:///{storage}/mlflow.db")


def undisturbed(storage: Path, executor: str) -> Path:
    """The same trials trained without Ray; the command has only to conclude."""
    config = tiny_config(storage, *SETTINGS[executor], trials=TRIALS[executor])
    store, _, candidates = tiny_search(config)
    for candidate in candidates:
        if config.scaling.workers > 1:
            assert set(on_ranks(candidate.spec, config.scaling.workers, Path(store.url))) == {0}
        else:
            run_trial(candidate.spec, store.url, Alone(), Execution(checkpoint_every_steps=2))
    return storage
