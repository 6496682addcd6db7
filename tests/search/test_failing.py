"""Trials that fail by themselves: recorded with the reason, never tried for ever, tried again when that is asked for."""

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
FINE = summary(RUN)
FAILED = summary(RUN, status="failed", reason="diverged", top1=None)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("planned", "fine", "failed", "most", "stops"),
    [
        (100, 8, 12, 0.5, True),
        (100, 10, 10, 0.5, False),  # a half is not more than a half
        (100, 0, 19, 0.5, False),  # the largest come first: a fifth has to be seen
        (100, 0, 100, 1.0, False),
        (100, 98, 1, 0.0, True),
        (10, 3, 4, 0.5, False),  # eight at least
        (10, 3, 5, 0.5, True),
        (3, 0, 2, 0.5, False),
        (3, 0, 3, 0.5, False),  # nothing is left to stop
    ],
)
def test_when_so_many_fail(planned: int, fine: int, failed: int, most: float, stops: bool) -> None:
    tally = FailureTally(planned, most)
    for i in range(fine + failed):
        tally.add(str(i), FINE if i < fine else FAILED)
        tally.add(str(i), None)
    assert (tally.verdict is not None) == stops
    if stops:
        assert tally.verdict == f"{failed} of {fine + failed} trials failed ({failed} diverged)"


@pytest.mark.ray
def test_trials_that_hang_and_raise(ray_cluster: Any, tmp_path: Path) -> None:
    """Each is a result with its reason; the search completes, and the formula says how many it follows from."""
    own = (
        "space.name=tests.search.unruly:Unruly",
        "search.seed=8",
        "run.trial_timeout=45",
        "run.stop_at_failed=1",
        "search.minimum=1",
    )
    config = tiny_config(tmp_path, *own, trials=4, at_once=2)
    outcome = run_search(config)
    found = results(tmp_path)
    reasons = {r["network"]["resolution"] % 3: r["reason"] for r in found.values()}
    assert reasons == {0: "error", 1: "hung", 2: None}
    by_reason = {r["reason"]: r["detail"] for r in found.values()}
    assert re.fullmatch(r"ValueError: \d+ pixels are not to my taste", by_reason["error"])
    assert by_reason["hung"] == "no epoch was reported for 45 s (run.trial_timeout)"
    assert (outcome.lost, outcome.stopped) == ([], None)
    counts = TinyFormula.load(tmp_path / "demo" / "formula.json").provenance["trials"]
    finished = sum(r["status"] == "finished" for r in found.values())
    assert counts == {"planned": 4, "finished": finished, "failed": 4 - finished}
    assert run_search(config).new == 0


@pytest.mark.ray
def test_more_than_half_stop_a_search_and_are_tried_again(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image that cannot be read; once it is mended, only what failed is trained again, and nothing else."""
    tree = make_tree(tmp_path / "tree")
    image = tree / "train" / "cat" / "01.jpg"
    sound = image.read_bytes()
    image.write_bytes(bytes(len(sound)))
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
        r"tinynet: the search stopped early: 8 of 8 trials failed \(8 unreadable data\), more than .*--retry failed.*",
        last,
    )
    assert "Stopped early: 8 of 8" in shown.out
    # The same command again sees the same, and trains nothing.
    assert run(arguments) == 1
    assert results(tmp_path) == ended
    capsys.readouterr()

    image.write_bytes(sound)
    assert run([*arguments, "--retry", "diverged"]) == 2
    assert "failed for 'diverged': there are unreadable data" in capsys.readouterr().err
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
def test_setting_aside_twice(tmp_path: Path) -> None:
    """A driver that died between the copy and the removal leaves both; each try is kept."""
    store = SearchStore(str(tmp_path / "demo"))
    spec = tiny_spec(epochs=2)
    assert write_failure(spec, store.folder, "hung", "")
    run, other = spec.run, RunName("9876543210", 2)
    store.write_json(f"retried/{run}-1.json", store.read_json(result_name(run)))

    def aside(*reasons: str, runs: tuple[RunName, ...] = (run,)) -> list[RunName]:
        return set_aside(store, reasons, store.summaries(runs))

    with pytest.raises(RequestError, match=r"no trial of .* failed for 'error': there are hung"):
        aside("error")
    assert aside() == []
    assert aside("failed", runs=(other,)) == []
    assert aside("hung") == [run]
    assert store.folder.names("retried") == [f"{run}-1.json", f"{run}-2.json"]
    assert store.finished() == set()
    # The same command, after a kill: there is nothing left to set aside, and no reason to refuse it.
    assert aside("hung") == []
    assert aside("failed") == []


@pytest.mark.quick
def test_results_that_nobody_would_train_stay(tmp_path: Path) -> None:
    """Of a search that wants two of its six candidates by now, and where a result of no candidate lies beside theirs."""
    store, plan, candidates = tiny_search(tiny_config(tmp_path, trials=6))
    for spec in (*(c.spec for c in candidates), tiny_spec((0.5, 0.5, 0.5))):
        assert write_failure(spec, store.folder, "hung", "")
    fewer = tiny_config(tmp_path, trials=2).resolve()
    state = opened_state(store, plan, fewer, 1.0)
    trainable = retryable(store, fewer, state)
    wanted = {c.run for c in candidates[:2]}
    assert set(trainable) == wanted
    assert set(state.results) == {c.run for c in candidates}
    again = set_aside(store, ("failed",), trainable)
    state.forget(again)
    assert set(again) == {c.run for c in state.pending_trials} == wanted
    assert len(store.finished()) == 5


@pytest.mark.ray
def test_the_frontier_trains_on(ray_cluster: Any, tmp_path: Path) -> None:
    """A finished search, moved, with a longer budget for its frontier: nothing is trained twice, and the short results stay."""
    step = ("recipe.schedule=step", "search.minimum=2", "search.fraction=0.2")
    first = run_search(tiny_config(tmp_path / "here", *step, trials=5))
    short = results(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    again = tiny_config(tmp_path / "there", *step, "search.frontier_epochs=3", trials=5)
    outcome = run_search(again)
    found = results(tmp_path / "there")
    ids = {row.id for row in first.frontier}
    assert len(ids) < 5
    assert {run: found[run] for run in short} == short
    assert set(found) - set(short) == {RunName(i, 3) for i in ids}
    assert outcome.new == len(ids)
    for i in ids:
        assert found[RunName(i, 3)]["epochs"][:2] == short[RunName(i, 2)]["epochs"]
    rows = json.loads((tmp_path / "there" / "demo" / "frontier.json").read_text())
    assert [{k: v for k, v in row.items() if k != "longer"} for row in rows] == [
        row.to_json() for row in first.frontier
    ]
    assert all(
        row["longer"]["top1"] == found[row["longer"]["run"]]["metrics"]["top1"] for row in rows
    )
    assert outcome.formula.points == first.formula.points
    last = run_search(again)
    assert (last.new, last.lost) == (0, [])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ("search.frontier_epochs=5",),
            "ends at epoch 2, so its models cannot go on to 5: train them from the start by --anew",
        ),
        (
            ("search.frontier_epochs=2", "recipe.schedule=step"),
            "2 epochs for the frontier are no more than the search's 2",
        ),
    ],
)
def test_what_cannot_go_on(tmp_path: Path, settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        tiny_config(tmp_path, *settings)
    assert load_config(
        preset="demo", settings=["search.frontier_epochs=50", "search.anew=true"]
    ).search.anew


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--anew",), "--anew says how --continue frontier trains"),
        (("--continue", "all"), "--continue 'all': give frontier"),
        (("--continue", "frontier"), "needs --epochs"),
        (("--trial-timeout", "soon"), "'soon' is no time"),
        (("--trial-timeout", "0"), "'0' is no time"),
    ],
)
def test_requests_that_say_nothing(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert run(["search", "--preset", "demo", *arguments, "--dry-run"]) == 2
    assert said in capsys.readouterr().err


def test_what_the_options_stand_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
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
    assert run([*arguments, "--continue", "frontier", "--epochs", "30", "--anew"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["epochs"] == 10
