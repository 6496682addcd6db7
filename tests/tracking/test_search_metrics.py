"""Tests the metrics and the class names of a search's parent run, on a real MLflow server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from search_spaces import get_space
from tests.tracking.helpers import (
    CLASS_NAMES,
    CREATED,
    SQLALCHEMY,
    MlflowSearch,
    Search,
    epoch_records,
    formula_text,
    tracking_environment,
)
from tests.tracking.servers import mlflow_server
from tinynet_search.formula.frontier import hypervolume
from tinynet_search.plan.candidates import candidate_of
from tinynet_search.store.directory import FINALS, FORMULA, FRONTIER, Candidate
from tinynet_search.store.schema import FinalRow
from tinynet_search.tracking.search_metrics import search_metrics
from tinynet_search.tracking.sync import sync_search

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with tracking_environment():
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as url:
        yield url


def histories(in_mlflow: MlflowSearch) -> dict[str, list[tuple[float, int, int]]]:
    """Return (value, time stamp, step) of every point of the parent run's metrics."""
    run_id = in_mlflow.parent.info.run_id
    return {
        key: [
            (point.value, point.timestamp, point.step)
            for point in in_mlflow.client.get_metric_history(run_id, key)
        ]
        for key in in_mlflow.parent.data.metrics
    }


def test_parent_run_has_the_figures_of_the_search(tmp_path: Path, server: str) -> None:
    search = Search(tmp_path, "figures", trials=4)
    a, b, failed, _ = search.candidates
    search.end(a)
    search.end(b)
    search.end(failed, 2, failed=True)
    network = get_space("efficientnet_mini").network((0.9, 0.9, 0.9), 10)
    final = candidate_of(search.plan, network, kind="final")
    search.end(final)
    same = candidate_of(
        search.plan, get_space("efficientnet_mini").network(b.spec.rdw, 10), kind="final"
    )
    assert same.run == b.run
    rows = search.rows([a, b])
    search.store.write_rows(FRONTIER, rows)
    search.store.write_rows(
        FINALS,
        [FinalRow(run=c.run, label="tiny formula", c=0.5, spec=c.spec) for c in (final, same)],
    )
    search.store.folder.write(FORMULA, formula_text().encode())
    sync_search(search.store, server)
    first = MlflowSearch(server, "figures")
    epochs = 4 + 4 + 2 + 4
    macs = 4 * a.network.macs + 4 * b.network.macs + 2 * failed.network.macs + 4 * network.macs
    expected = {
        "best_top1": max(epoch_records(trial, 4)[-1].top1 for trial in (a, b)),
        "hypervolume": hypervolume([(row.c, row.top1) for row in rows]),
        "trials_finished": 2,
        "trials_failed": 1,
        "training_hours": round(epochs * 9.5 / 3600, 6),
        "training_macs": macs * 400,
    }
    assert first.parent.data.metrics == expected
    ended = round(1000 * (CREATED + 500.25))
    assert histories(first) == {key: [(value, ended, 4)] for key, value in expected.items()}
    file = first.client.download_artifacts(first.parent.info.run_id, "class_names.json")
    assert json.loads(Path(file).read_text(encoding="utf-8")) == CLASS_NAMES
    assert not [key for key in first.parent.data.params if "class_names" in key]

    sync_search(search.store, server)
    again = MlflowSearch(server, "figures")
    assert again.parent.to_dictionary() == first.parent.to_dictionary()
    assert histories(again) == histories(first)


def test_figures_follow_new_results(tmp_path: Path, server: str) -> None:
    """A trial that is trained again for more epochs counts once; its cost counts twice."""
    search = Search(tmp_path, "grows")
    a, b, _ = search.candidates
    search.end(a, failed=True)
    sync_search(search.store, server)
    early = MlflowSearch(server, "grows").parent.data.metrics
    assert (early["trials_finished"], early["trials_failed"]) == (0, 1)
    assert "best_top1" not in early and "hypervolume" not in early
    longer = Candidate(a.spec.with_epochs(6), a.network)
    search.end(longer, again=1)
    search.end(b)
    sync_search(search.store, server)
    late = MlflowSearch(server, "grows").parent.data.metrics
    assert (late["trials_finished"], late["trials_failed"]) == (2, 0)
    assert late["training_hours"] == pytest.approx((4 + 6 + 4) * 9.5 / 3600, abs=1e-6)


def test_no_result_has_no_figures(tmp_path: Path) -> None:
    search = Search(tmp_path, "empty")
    assert (
        search_metrics(search.plan, {candidate.id for candidate in search.candidates}, {}, None)
        is None
    )
