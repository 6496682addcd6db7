"""Tests of failed trials: the reason is recorded, and they are only retried on request."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.data.test_imagefolder import make_tree
from tests.search.helpers import results, summary, tiny_arguments, tiny_config, tiny_search
from tests.trainables.helpers import tiny_spec
from tinynet_search.cli.main import run
from tinynet_search.config import load_config
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.search.driver import opened_state, retryable, run_search
from tinynet_search.search.failures import FailureTally
from tinynet_search.search.retry import set_aside
from tinynet_search.store.directory import SearchStore
from trainables.run_name import RunName
from trainables.trial import write_failure
from trainables.trial_folder import result_name

RUN = RunName("0123456789", 2)
FINISHED_TRIAL = summary(RUN)
FAILED_TRIAL = summary(RUN, status="failed", reason="diverged", top1=None)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("planned", "fine", "failed", "max_share", "stops"),
    [
        (100, 8, 12, 0.5, True),
        (100, 10, 10, 0.5, False),  # exactly half is allowed
        (100, 0, 19, 0.5, False),  # a fifth must have ended, because the largest come first
        (100, 0, 100, 1.0, False),
        (100, 98, 1, 0.0, True),
        (10, 3, 4, 0.5, False),  # at least eight trials must have ended
        (10, 3, 5, 0.5, True),
        (3, 0, 2, 0.5, False),
        (3, 0, 3, 0.5, False),  # no trial is left to stop
    ],
)
def test_too_many_failures_stop_a_search(
    planned: int, fine: int, failed: int, max_share: float, stops: bool
) -> None:
    tally = FailureTally(planned, max_share)
    for i in range(fine + failed):
        tally.add(str(i), FINISHED_TRIAL if i < fine else FAILED_TRIAL)
        tally.add(str(i), None)
    assert (tally.stop_reason is not None) == stops
    if stops:
        assert tally.stop_reason == f"{failed} of {fine + failed} trials failed ({failed} diverged)"


@pytest.mark.ray
def test_trials_that_hang_and_raise(ray_cluster: Any, tmp_path: Path) -> None:
    """Each failure is a result with its reason, and the formula records the number of trials."""
    settings = (
        "space.name=tests.search.unruly:Unruly",
        "search.seed=8",
        "run.trial_timeout=45",
        "run.stop_at_failed=1",
        "search.minimum=1",
    )
    config = tiny_config(tmp_path, *settings, trials=4, at_once=2)
    outcome = run_search(config)
    written = results(tmp_path)
    reasons = {r["network"]["resolution"] % 3: r["reason"] for r in written.values()}
    assert reasons == {0: "error", 1: "hung", 2: None}
    by_reason = {r["reason"]: r["detail"] for r in written.values()}
    assert re.fullmatch(r"ValueError: \d+ pixels are not supported", by_reason["error"])
    assert by_reason["hung"] == "no epoch was reported for 45 s (run.trial_timeout)"
    assert (outcome.lost, outcome.stopped) == ([], None)
    counts = TinyFormula.load(tmp_path / "demo" / "formula.json").provenance["trials"]
    finished = sum(r["status"] == "finished" for r in written.values())
    assert counts == {"planned": 4, "finished": finished, "failed": 4 - finished}
    assert run_search(config).new == 0


@pytest.mark.ray
def test_failures_stop_a_search_and_can_be_retried(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image is unreadable; after it is repaired, only the failed trials are trained again."""
    tree = make_tree(tmp_path / "tree")
    image = tree / "train" / "cat" / "01.jpg"
    intact = image.read_bytes()
    image.write_bytes(bytes(len(intact)))
    data = (
        "data.name=imagefolder",
        f"data.path={tree}",
        "recipe.batch=8",
        "recipe.micro_batch=8",
        "recipe.epochs=1",
    )
    arguments = ["search", *tiny_arguments(tmp_path, *data, trials=14)]
    assert run(arguments) == 1
    shown = capsys.readouterr()
    ended = results(tmp_path)
    assert 8 <= len(ended) < 14, shown.err
    assert {r["reason"] for r in ended.values()} == {"unreadable data"}
    last = shown.err.strip().splitlines()[-1]
    assert re.fullmatch(
        r"tinynet: the search stopped early: 8 of 8 trials failed \(8 unreadable data\), "
        r"more than .*--retry failed.*",
        last,
    )
    assert "Stopped early: 8 of 8" in shown.out
    # The same command again stops for the same reason and trains nothing.
    assert run(arguments) == 1
    assert results(tmp_path) == ended
    capsys.readouterr()

    image.write_bytes(intact)
    assert run([*arguments, "--retry", "diverged"]) == 2
    assert "failed with 'diverged': the reasons are unreadable data" in capsys.readouterr().err
    assert results(tmp_path) == ended
    assert run([*arguments, "--retry", "failed", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    after = results(tmp_path)
    assert (summary["failed"], summary["stopped"], summary["lost"]) == ({}, None, {})
    assert {r["status"] for r in after.values()} == {"finished"}
    assert {p.name for p in (tmp_path / "demo" / "retried").iterdir()} == {
        f"{run}-1.json" for run in ended
    }
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`tinynet.kind` = 'trial'")
    assert sorted(r.data.tags["tinynet.id"] for r in runs) == sorted(
        RunName.parse(run).id for run in after
    )
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert not any("reason" in r.data.tags for r in runs)
    for child in runs:
        assert [m.step for m in client.get_metric_history(child.info.run_id, "top1")] == [1]


@pytest.mark.quick
def test_set_aside_can_be_repeated(tmp_path: Path) -> None:
    """A driver killed between the copy and the removal leaves both files; all attempts are kept."""
    store = SearchStore(str(tmp_path / "demo"))
    spec = tiny_spec(epochs=2)
    assert write_failure(spec, store.folder, "hung", "")
    run, other = spec.run, RunName("9876543210", 2)
    store.write_json(f"retried/{run}-1.json", store.read_json(result_name(run)))

    def set_aside_results(*reasons: str, runs: tuple[RunName, ...] = (run,)) -> list[RunName]:
        return set_aside(store, reasons, store.summaries(runs))

    message = r"no trial of .* failed with 'error': the reasons are hung"
    with pytest.raises(RequestError, match=message):
        set_aside_results("error")
    assert set_aside_results() == []
    assert set_aside_results("failed", runs=(other,)) == []
    assert set_aside_results("hung") == [run]
    assert store.folder.names("retried") == [f"{run}-1.json", f"{run}-2.json"]
    assert store.finished() == set()
    # The same command after a kill: no result is left to set aside, and the reason is accepted.
    assert set_aside_results("hung") == []
    assert set_aside_results("failed") == []


@pytest.mark.quick
def test_results_outside_the_search_are_not_set_aside(tmp_path: Path) -> None:
    """The search trains two of its six candidates, and one result belongs to no candidate."""
    store, plan, candidates = tiny_search(tiny_config(tmp_path, trials=6))
    for spec in (*(c.spec for c in candidates), tiny_spec((0.5, 0.5, 0.5))):
        assert write_failure(spec, store.folder, "hung", "")
    fewer = tiny_config(tmp_path, trials=2).resolve()
    state = opened_state(store, plan, fewer, 1.0)
    trainable = retryable(store, fewer, state)
    trials = {c.run for c in candidates[:2]}
    assert set(trainable) == trials
    assert set(state.results) == {c.run for c in candidates}
    retried = set_aside(store, ("failed",), trainable)
    state.forget(retried)
    assert set(retried) == {c.run for c in state.pending_trials} == trials
    assert len(store.finished()) == 5


@pytest.mark.ray
def test_frontier_models_continue_with_more_epochs(ray_cluster: Any, tmp_path: Path) -> None:
    """In a finished and moved search, no epoch is trained twice, and the short results are kept."""
    step = ("recipe.schedule=step", "search.minimum=2", "search.fraction=0.2")
    first = run_search(tiny_config(tmp_path / "here", *step, trials=5))
    short = results(tmp_path / "here")
    moved = tmp_path / "moved"
    (tmp_path / "here").rename(moved)
    config = tiny_config(moved, *step, "search.frontier_epochs=3", trials=5)
    outcome = run_search(config)
    after = results(moved)
    ids = {row.id for row in first.frontier}
    assert len(ids) < 5
    assert {run: after[run] for run in short} == short
    assert set(after) - set(short) == {RunName(i, 3) for i in ids}
    assert outcome.new == len(ids)
    for i in ids:
        assert after[RunName(i, 3)]["epochs"][:2] == short[RunName(i, 2)]["epochs"]
    rows = json.loads((moved / "demo" / "frontier.json").read_text())
    assert [{k: v for k, v in row.items() if k != "longer"} for row in rows] == [
        row.to_json() for row in first.frontier
    ]
    assert all(
        row["longer"]["top1"] == after[row["longer"]["run"]]["metrics"]["top1"] for row in rows
    )
    assert outcome.formula.points == first.formula.points
    last = run_search(config)
    assert (last.new, last.lost) == (0, [])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("search.frontier_epochs=5",),
            "ends at epoch 2, so its models cannot continue to 5: "
            "train them from scratch with --from-scratch",
        ),
        (
            ("search.frontier_epochs=2", "recipe.schedule=step"),
            "more than the 2 epochs of the search, got 2",
        ),
    ],
)
def test_invalid_frontier_epochs(tmp_path: Path, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        tiny_config(tmp_path, *settings)
    assert load_config(
        preset="demo", settings=["search.frontier_epochs=50", "search.from_scratch=true"]
    ).search.from_scratch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from-scratch",), "--from-scratch needs --continue frontier"),
        (("--continue", "all"), "--continue 'all' is not valid"),
        (("--continue", "frontier"), "needs --epochs"),
        (("--trial-timeout", "soon"), "'soon' is not a valid time"),
        (("--trial-timeout", "0"), "'0' is not a valid time"),
    ],
)
def test_invalid_options(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run(["search", "--preset", "demo", *arguments, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_options_set_the_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [
        "search",
        "--preset",
        "demo",
        "--storage",
        str(tmp_path),
        "--trial-timeout",
        "30m",
        "--dry-run",
        "--json",
    ]
    assert run([*arguments, "--epochs", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["epochs"] == 3
    assert run([*arguments, "--continue", "frontier", "--epochs", "30", "--from-scratch"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["epochs"] == 10
