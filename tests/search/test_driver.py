"""End-to-end tests of the driver on the shared cluster: trials, frontier, formula and MLflow."""

import json
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.data.test_imagefolder import make_tree
from tests.search.helpers import results, tiny_config
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.search.driver import run_search
from trainables.run_name import RunName

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def searched(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A small search with two final networks, run once for the module."""
    storage = tmp_path_factory.mktemp("searches")
    config = tiny_config(storage, "search.finals=[0.3]", trials=8, at_once=2)
    return storage, run_search(config)


def test_every_trial_has_a_result(searched: tuple[Path, Any]) -> None:
    storage, outcome = searched
    written = results(storage)
    assert len(outcome.candidates) == 8
    assert {c.run for c in (*outcome.candidates, *outcome.finals)} == set(written)
    assert all(r["status"] == "finished" and len(r["epochs"]) == 2 for r in written.values())
    assert outcome.new == len(written)
    assert outcome.lost == []
    assert outcome.at_once == 2


def test_frontier_and_formula_are_written(searched: tuple[Path, Any]) -> None:
    storage, outcome = searched
    frontier = json.loads((storage / "demo" / "frontier.json").read_text())
    assert frontier == [row.to_json() for row in outcome.frontier]
    assert len(frontier) == 6
    formula = TinyFormula.load(storage / "demo" / "formula.json")
    assert formula.usable
    assert {round(p[0], 9) for p in formula.points} == {round(row["c"], 9) for row in frontier}


def test_final_networks_follow_the_formula(searched: tuple[Path, Any]) -> None:
    storage, outcome = searched
    rows = json.loads((storage / "demo" / "finals.json").read_text())
    assert [row["label"] for row in rows] == ["tiny formula", "inverse giant"]
    network = outcome.finals[0].spec.network()
    suggestion = outcome.formula.suggest(0.3, num_classes=24, extrapolate=True)
    assert network.key == suggestion.network.key
    assert abs(network.c - 0.3) <= 0.03 * 0.3


def test_repeated_search_trains_nothing(searched: tuple[Path, Any]) -> None:
    storage, outcome = searched
    before = results(storage)
    repeated = run_search(tiny_config(storage, "search.finals=[0.3]", trials=8))
    assert repeated.new == 0
    assert results(storage) == before
    assert repeated.frontier == outcome.frontier
    assert repeated.formula.to_json() == outcome.formula.to_json()


def test_larger_search_trains_only_new_trials(searched: tuple[Path, Any]) -> None:
    storage, _ = searched
    before = results(storage)
    outcome = run_search(tiny_config(storage, trials=10))
    after = results(storage)
    assert len(outcome.candidates) == 10
    assert outcome.new == 2
    assert {run: after[run] for run in before} == before


def test_more_epochs_produce_separate_results(searched: tuple[Path, Any]) -> None:
    storage, _ = searched
    before = results(storage)
    outcome = run_search(tiny_config(storage, "recipe.epochs=3", trials=2))
    assert outcome.new == 2
    assert outcome.lost == []
    assert {run for run in results(storage) if RunName.parse(run).epochs == 3} == {
        c.run for c in outcome.candidates[:2]
    }
    assert all(results(storage)[run] == before[run] for run in before)


def test_request_that_contradicts_the_plan_keeps_results(searched: tuple[Path, Any]) -> None:
    storage, _ = searched
    before = results(storage)
    with pytest.raises(RequestError, match="does not match its plan"):
        run_search(tiny_config(storage, "search.seed=5"))
    assert results(storage) == before


def test_failed_trials_do_not_stop_a_search(ray_cluster: Any, tmp_path: Path) -> None:
    outcome = run_search(
        tiny_config(
            tmp_path, "recipe.lr=1e30", "recipe.optimizer=sgd", "recipe.warmup_epochs=0", trials=3
        )
    )
    assert {r["reason"] for r in results(tmp_path).values()} == {"diverged"}
    assert outcome.frontier == []
    assert not outcome.formula.usable
    assert (
        run_search(
            tiny_config(
                tmp_path,
                "recipe.lr=1e30",
                "recipe.optimizer=sgd",
                "recipe.warmup_epochs=0",
                trials=3,
            )
        ).new
        == 0
    )


def test_trial_too_large_for_every_node_is_rejected(ray_cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no room for a trial of 1 x 2 CPU"):
        run_search(tiny_config(tmp_path, "scaling.cpus=2", trials=1))


def test_relative_path_to_a_folder_of_images(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials run in separate working directories; relative paths refer to that of the driver."""
    make_tree(tmp_path / "tree")
    monkeypatch.chdir(tmp_path)
    data = (
        "data.name=imagefolder",
        "data.path=tree",
        "recipe.batch=8",
        "recipe.micro_batch=8",
        "recipe.epochs=1",
    )
    run_search(tiny_config(Path("searches"), *data, trials=2))
    assert {r["status"] for r in results(tmp_path / "searches").values()} == {"finished"}


def test_optuna_through_tune(ray_cluster: Any, tmp_path: Path) -> None:
    """Candidates are written before they are trained, and a second run continues from them."""
    first = run_search(tiny_config(tmp_path, "search.sampler=optuna", trials=3))
    assert len(first.candidates) == 3
    assert len({c.id for c in first.candidates}) == 3
    assert all(0.08 <= c.c <= 0.5 and 0.35 <= c.spec.rdw[2] <= 1.2 for c in first.candidates)
    resumed = run_search(tiny_config(tmp_path, "search.sampler=optuna", trials=6))
    assert [c.run for c in resumed.candidates[:3]] == [c.run for c in first.candidates]
    assert (len(resumed.candidates), resumed.new) == (6, 3)
    assert len(list((tmp_path / "demo" / "candidates").iterdir())) == 6


def test_search_with_ray_train_on_two_nodes(ray_cluster: Any, tmp_path: Path) -> None:
    """Two gloo workers per trial, one on each node, give the numbers of the inline executor."""
    extra = ("run.executor=ray_train", "scaling.workers=2", "scaling.placement=STRICT_SPREAD")
    outcome = run_search(tiny_config(tmp_path / "two", *extra, trials=2))
    inline = run_search(tiny_config(tmp_path / "one", trials=2))
    assert outcome.at_once == 1
    two, one = results(tmp_path / "two"), results(tmp_path / "one")
    assert set(two) == set(one) == {c.run for c in inline.candidates}
    for run, result in two.items():
        assert (result["status"], result["workers"]) == ("finished", 2)
        assert result.keys() == one[run].keys()
        losses = [[e["train_loss"] for e in r["epochs"]] for r in (result, one[run])]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        assert result["metrics"]["top1"] == pytest.approx(
            one[run]["metrics"]["top1"], abs=100 * 2 / 48
        )


def test_search_is_recorded_in_mlflow(searched: tuple[Path, Any]) -> None:
    """The MLflow client finds the search, its frontier by tag, and each trial with all epochs."""
    storage, _ = searched
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("tinynet-efficientnet_mini")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`tinynet.kind` = 'search'")
    children = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {run.data.tags["tinynet.kind"] for run in children} == {"trial", "final"}
    for run in children:
        history = client.get_metric_history(run.info.run_id, "top1")
        assert [m.step for m in sorted(history, key=lambda m: m.step)] in ([1, 2], [1, 2, 3])
    frontier = client.search_runs(
        [experiment.experiment_id], "tags.frontier = 'true'", order_by=["metrics.macs ASC"]
    )
    current = json.loads((storage / "demo" / "frontier.json").read_text())
    assert [(r.data.metrics["macs"], r.data.metrics["r"]) for r in frontier] == [
        (row["macs"], row["rdw"][0]) for row in current
    ]
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} >= {
        "class_names.json",
        "formula.json",
        "frontier.json",
    }
    figures = parent.data.metrics
    trials = [run for run in children if run.data.tags["tinynet.kind"] == "trial"]
    ids = {run.data.tags["tinynet.id"] for run in trials}
    assert (figures["trials_finished"], figures["trials_failed"]) == (len(ids), 0)
    assert figures["best_top1"] == max(run.data.metrics["final_top1"] for run in trials)
    assert 0 <= figures["hypervolume"] <= figures["best_top1"] / 100
    assert figures["training_hours"] > 0 and figures["training_macs"] > 0


def test_frontier_command_and_registered_formula(
    searched: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from tinynet_search.cli.main import run

    storage, _ = searched
    assert run(["frontier", "--storage", str(storage), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    current = json.loads((storage / "demo" / "frontier.json").read_text())
    assert [row["id"] for row in shown] == [row["id"] for row in current]
    assert all(row["frontier"] for row in shown)
    uri = f"sqlite:///{storage}/mlflow.db"
    assert (
        run(
            [
                "suggest",
                "0.3",
                "--formula",
                "models:/tiny-formula@champion",
                "--tracking",
                uri,
                "--extrapolate",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)[0]["space"] == "efficientnet_mini"


def test_configured_model_and_promotion_reach_the_registry(searched: tuple[Path, Any]) -> None:
    from mlflow import MlflowClient

    storage, _ = searched
    uri = f"sqlite:///{storage}/mlflow.db"
    client = MlflowClient(uri, uri)
    model = "team-efficientnet_mini"
    settings = ["search.finals=[0.3]", 'tracking.model="team"']
    run_search(tiny_config(storage, *settings, trials=8, at_once=2))
    version = client.get_model_version_by_alias(model, "champion")
    assert version.tags["tinynet.search"] == "demo"
    client.create_model_version(model, str(version.source), tags={"data": "elsewhere"})
    client.set_registered_model_alias(model, "champion", "2")
    for promote, expected in (("false", 2), ("true", 1)):
        promoting = [*settings, f"tracking.promote={promote}"]
        run_search(tiny_config(storage, *promoting, trials=8, at_once=2))
        champion = client.get_model_version_by_alias(model, "champion")
        assert int(champion.version) == expected


def test_unreachable_tracking_server_does_not_stop_a_search(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One warning contains its address, the results are written, and sync updates MLflow."""
    from tinynet_search.cli.main import run

    warnings: list[str] = []
    outcome = run_search(
        tiny_config(tmp_path, trials=2), tracking="http://127.0.0.1:9", warn=warnings.append
    )
    assert len(results(tmp_path)) == 2
    assert len(warnings) == 1
    assert "127.0.0.1:9" in warnings[0]
    assert any("tinynet sync" in note for note in outcome.notes)
    assert run(["sync", "--storage", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["demo"]["epochs"] == 4
