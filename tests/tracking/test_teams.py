"""Tests several users of one MLflow server with accounts: experiments, owners and names."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from search_spaces import RequestError
from tests.tracking.helpers import (
    SQLALCHEMY,
    MlflowSearch,
    Search,
    formula_text,
    tracking_environment,
)
from tests.tracking.servers import ROOT, AccountsServer, accounts_server
from tinynet_search import TrackingError, frontier_models
from tinynet_search.cli.main import run
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.mlflow_client.connection import RejectedRequestError
from tinynet_search.store.directory import FORMULA, FRONTIER
from tinynet_search.tracking.projection import search_key
from tinynet_search.tracking.registered_formula import Registration
from tinynet_search.tracking.sync import SyncReport, sync_search

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with tracking_environment():
        yield


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccountsServer]:
    with accounts_server(tmp_path_factory.mktemp("accounts"), "ann", "bob") as server:
        yield server


def ended_search(
    folder: Path,
    name: str,
    owner: str,
    frontier: int = 1,
    *,
    space: str = "efficientnet_mini",
    experiment: str | None = None,
) -> Search:
    """Create a search whose trials have ended, with this number of models on its frontier."""
    search = Search(folder, name, owner=owner, space=space, experiment=experiment)
    for candidate in search.candidates:
        search.end(candidate)
    search.store.write_rows(FRONTIER, search.rows(search.candidates[:frontier]))
    return search


def synced(accounts: AccountsServer, user: str, search: Search) -> SyncReport:
    with accounts.account(user):
        return sync_search(search.store, accounts.url)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        (
            {},
            "requires an account: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
        (
            {"USERNAME": "ann"},
            "requires an account: set MLFLOW_TRACKING_PASSWORD",
        ),
        (
            {"USERNAME": "ann", "PASSWORD": "wrong"},
            "rejects account 'ann' or its password: "
            "correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
    ],
)
def test_rejected_account_is_explained(
    accounts: AccountsServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    problem: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # without ~/.mlflow/credentials
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    search = ended_search(tmp_path, "rejected", "ann")
    for action in (
        lambda: frontier_models(tracking_uri=accounts.url),
        lambda: sync_search(search.store, accounts.url),
    ):
        with pytest.raises(TrackingError) as caught:
            action()
        assert str(caught.value) == f"MLflow at {accounts.url} {problem}"


def test_wrong_password_in_the_uri_is_not_printed(accounts: AccountsServer) -> None:
    uri = accounts.url.replace("://", "://ann:secret@")
    with pytest.raises(TrackingError) as caught:
        frontier_models(tracking_uri=uri)
    assert str(caught.value) == (
        f"MLflow at {accounts.url} rejects account 'ann' or its password: correct the tracking URI"
    )


def test_second_user_of_an_experiment(
    accounts: AccountsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second user publishes to another experiment, or gets the documented permissions."""
    hers = ended_search(tmp_path / "ann", "shared", "ann")
    his = ended_search(tmp_path / "bob", "shared", "bob")
    assert synced(accounts, "ann", hers).runs == 3
    with pytest.raises(RejectedRequestError) as caught:
        synced(accounts, "bob", his)
    assert str(caught.value) == (
        f"MLflow at {accounts.url}: account 'bob' has no permission to change experiment "
        "tinynet-efficientnet_mini: ask its owner or an administrator for EDIT, or set "
        "tracking.experiment or MLFLOW_EXPERIMENT_NAME to another experiment"
    )
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "{owner}/{space}")
    assert synced(accounts, "bob", his).runs == 3
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert synced(accounts, "bob", his).epochs == 0  # it is found in its experiment
    with accounts.account("bob"):
        from mlflow import MlflowClient

        client = MlflowClient(accounts.url, accounts.url)
        experiment = client.get_experiment_by_name("bob/efficientnet_mini")
        assert experiment is not None
        (parent,) = client.search_runs([experiment.experiment_id], "tags.`tinynet.kind` = 'search'")
        assert parent.data.tags["tinynet.key"] == search_key(his.plan)
        assert parent.data.tags["tinynet.storage"] == str(tmp_path / "bob" / "shared")
        assert {parent.data.tags[tag] for tag in ("tinynet.owner", "mlflow.user")} == {"bob"}


def grant(accounts: AccountsServer, owner: str, kind: str, number: str, permission: str) -> None:
    """Give bob a permission with the calls that the documentation lists."""
    with warnings.catch_warnings():  # it imports MLflow's server
        warnings.simplefilter("ignore")
        from mlflow.server.auth.client import AuthServiceClient

    with accounts.account(owner):
        client = AuthServiceClient(accounts.url)
        if permission == "MANAGE":
            client.revoke_user_permission("bob", kind, number)
        client.grant_user_permission("bob", kind, number, permission)


def test_permission_on_the_registered_formula(accounts: AccountsServer, tmp_path: Path) -> None:
    """Everything else is published without it."""
    from mlflow import MlflowClient

    searches = {
        owner: ended_search(tmp_path / owner, f"formula-{owner}", owner, experiment=f"{owner}-own")
        for owner in ("ann", "bob")
    }
    formula = TinyFormula.load("published").to_json().encode()
    for search in searches.values():
        search.store.folder.write(FORMULA, formula)
    synced(accounts, "ann", searches["ann"])
    with pytest.raises(RejectedRequestError) as caught:
        synced(accounts, "bob", searches["bob"])
    with accounts.account("bob"):
        client = MlflowClient(accounts.url, accounts.url)
        (model,) = client.search_registered_models("name LIKE 'tiny-formula%'")
        experiment = client.get_experiment_by_name("bob-own")
        assert experiment is not None
        (parent,) = client.search_runs([experiment.experiment_id], "tags.`tinynet.kind` = 'search'")
    assert str(caught.value) == (
        f"MLflow at {accounts.url}: account 'bob' has no permission to change registered model "
        f"{model.name}: ask its owner or an administrator for EDIT"
    )
    assert parent.info.status == "FINISHED"
    grant(accounts, "ann", "registered_model", model.name, "EDIT")
    assert synced(accounts, "bob", searches["bob"]).epochs == 0
    with accounts.account("bob"):
        versions = client.search_model_versions(f"name = '{model.name}'")
        with pytest.raises(TrackingError, match="to read registered model other, or it does not"):
            TinyFormula.load("models:/other@champion")
    assert {version.tags["tinynet.search"] for version in versions} == {
        "formula-ann",
        "formula-bob",
    }


def test_formula_of_a_space_on_a_server_with_accounts(
    accounts: AccountsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There, a model that does not exist is rejected like one without READ."""
    space = "ghostnet"
    search = ended_search(tmp_path, "read", "ann", space=space, experiment="read-own")
    search.store.folder.write(FORMULA, formula_text(6, space=space).encode())
    with accounts.account("ann"):
        sync_search(search.store, accounts.url, registration=Registration("read"))
    name, model = "models:/read@champion", f"models:/read-{space}@champion"
    with accounts.account("bob"):
        for options in ([], ["--space", space]):
            assert run(["suggest", "0.3", "--formula", name, *options]) == 0
            assert capsys.readouterr().err.splitlines()[-1] == f"{name} is {model}"
        assert run(["suggest", "0.3", "--formula", name, "--space", "resnet50"]) == 2
        assert "for the space resnet50" in capsys.readouterr().err


def test_documented_permissions(accounts: AccountsServer, tmp_path: Path) -> None:
    space = "efficientnet_b0"
    hers = ended_search(tmp_path / "ann", "granted", "ann", space=space)
    synced(accounts, "ann", hers)
    with accounts.account("ann"):
        experiment = MlflowSearch(accounts.url, "granted").parent.info.experiment_id
    his = Search(tmp_path / "bob", "granting", owner="bob", space=space)
    his.end(his.candidates[0], 2, failed=True)
    grant(accounts, "ann", "experiment", experiment, "EDIT")
    assert synced(accounts, "bob", his).runs == 1

    # EDIT does not include the deletion of the run of a trial that is trained again.
    his.store.folder.remove(f"results/{his.candidates[0].run}.json")
    his.store.folder.remove(f"trials/{his.candidates[0].run}")
    his.end(his.candidates[0])
    with pytest.raises(RejectedRequestError) as caught:
        synced(accounts, "bob", his)
    assert "account 'bob' has no permission to delete from experiment " in str(caught.value)
    assert "ask its owner or an administrator for MANAGE" in str(caught.value)
    grant(accounts, "ann", "experiment", experiment, "MANAGE")
    assert synced(accounts, "bob", his).runs == 1
    with accounts.account("bob"):
        assert MlflowSearch(accounts.url, "granting").statuses() == ["FINISHED"]


def test_script_of_the_documentation(accounts: AccountsServer, tmp_path: Path) -> None:
    space, formula = "ghostnet_a", TinyFormula.load("published").to_json().encode()
    searches = {
        owner: Search(tmp_path / owner, f"page-{owner}", owner=owner, space=space)
        for owner in ("ann", "bob")
    }
    for search in searches.values():
        search.end(search.candidates[0])
        search.store.folder.write(FORMULA, formula)
    synced(accounts, "ann", searches["ann"])
    with pytest.raises(RejectedRequestError):
        synced(accounts, "bob", searches["bob"])
    page = (ROOT / "docs/cluster/teams.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert script is not None
    text = script[1].replace("http://mlflow:5000", accounts.url)
    subprocess.run(
        [sys.executable, "-c", text.replace("efficientnet_b0", space)],
        env=os.environ | accounts.environment("ann"),
        check=True,
        timeout=120,
    )
    assert synced(accounts, "bob", searches["bob"]).runs == 1


def test_sync_of_a_folder_continues_after_a_rejected_search(
    accounts: AccountsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "resnet50"
    first = Search(tmp_path, "a-first", owner="ann", space=space)
    first.end(first.candidates[0])
    synced(accounts, "ann", first)
    first.end(first.candidates[1])
    ended_search(tmp_path, "b-other", "bob", space=space, experiment="of-bob")
    with accounts.account("bob"):
        assert run(["sync", "--storage", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == f"b-other: 3 runs, 12 epochs at {accounts.url}\n"
    assert err.startswith("tinynet: a-first: MLflow at ")
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def same_name(
    accounts: AccountsServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Search]:
    """Searches with one name of two users, published to the default and to another experiment."""
    folder = tmp_path_factory.mktemp("storages")
    hers = ended_search(folder / "ann", "demo", "ann", 1, space="ghostnet_a")
    his = ended_search(folder / "bob", "demo", "bob", 2, space="ghostnet_a", experiment="bob")
    synced(accounts, "ann", hers)
    synced(accounts, "bob", his)
    return {"ann": hers, "bob": his}


def described_search(search: Search) -> str:
    key, plan = search_key(search.plan), search.plan
    return f"{key} of {plan.owner} in {search.store.url}, 2025-10-09 08:53 UTC"


def test_ambiguous_name_is_an_error(accounts: AccountsServer, same_name: dict[str, Search]) -> None:
    with accounts.account("ann"):
        with pytest.raises(RequestError) as caught:
            frontier_models("demo")
        line = str(caught.value)
        assert line.startswith(f"several searches 'demo' at {accounts.url}: ")
        for owner, search in same_name.items():
            assert described_search(search) in line
            assert len(frontier_models(search_key(search.plan))) == {"ann": 1, "bob": 2}[owner]
        assert line.endswith(": select one with --owner or --storage, or pass its key as --search")
        with pytest.raises(RequestError, match=r"^searches of several owners at http://"):
            frontier_models()


def test_owner_or_storage_selects_the_search(
    accounts: AccountsServer, same_name: dict[str, Search], tmp_path: Path
) -> None:
    with accounts.account("ann"):
        for owner, models in (("ann", 1), ("bob", 2)):
            storage = str(Path(same_name[owner].store.url).parent)
            assert len(frontier_models("demo", owner=owner)) == models
            assert len(frontier_models("demo", storage=storage)) == models
            assert len(frontier_models(storage=storage)) == models
            # Messages and MLflow show the directory.
            for name in (None, "demo", search_key(same_name[owner].plan)):
                assert len(frontier_models(name, storage=f"{storage}/demo/")) == models
        with pytest.raises(RequestError, match=r"no search 'other' at .*: expected one of demo$"):
            frontier_models("other", storage=storage)
        with pytest.raises(RequestError, match="of owner eve: run tinynet search first"):
            frontier_models("demo", owner="eve")
        with pytest.raises(RequestError) as caught:
            frontier_models("demo", owner="ann", storage=storage)
        assert str(caught.value).endswith(f"--storage has {described_search(same_name['bob'])}")
        with pytest.raises(RequestError, match="for a folder of another machine --owner"):
            frontier_models("demo", storage=str(tmp_path / "elsewhere"))
        unpublished = Search(tmp_path, "demo")
        with pytest.raises(RequestError) as caught:
            frontier_models("demo", storage=str(tmp_path))
        start, _, arguments = str(caught.value).partition("tinynet sync ")
        assert start.startswith(
            f"search demo of {tmp_path} is not in MLflow at {accounts.url}: run"
        )
        assert arguments == f"--search demo --storage {tmp_path} --tracking {accounts.url}"
        assert search_key(unpublished.plan) != search_key(same_name["ann"].plan)


def test_restarted_search_is_the_newest(accounts: AccountsServer, tmp_path: Path) -> None:
    """The directory was removed and the search was started again by the same user."""
    first = ended_search(tmp_path, "restarted", "bob", 1, space="ghostnet_a", experiment="bob")
    synced(accounts, "bob", first)
    shutil.rmtree(tmp_path / "restarted")
    second = Search(tmp_path, "restarted", owner="bob", space="ghostnet_a", experiment="bob")
    later = {**json.loads((tmp_path / "restarted/plan.json").read_text())}
    later["created"] += 100
    second.plan = second.plan.from_json(later)
    (tmp_path / "restarted/plan.json").write_text(json.dumps(later))
    second.end(second.candidates[0])
    second.store.write_rows(FRONTIER, second.rows(second.candidates[:1]))
    synced(accounts, "bob", second)
    with accounts.account("ann"):
        assert len(frontier_models("restarted", all_trials=True)) == 1
        assert len(frontier_models(search_key(first.plan), all_trials=True)) == 3


def test_running_search_without_a_frontier(
    accounts: AccountsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = Search(tmp_path, "running", owner="bob", experiment="bob")
    search.commit(search.candidates[0], 1)
    arguments = ["frontier", "--search", "running", "--storage", str(tmp_path)]
    line = (
        "search running of bob has no frontier yet: it is running; "
        "--all lists the trials that have started\n"
    )
    with accounts.account("bob"):
        search.publisher(accounts.url).sync_once()
        assert (run(arguments), capsys.readouterr()) == (0, ("", line))
        assert (run([*arguments, "--json"]), capsys.readouterr()) == (0, ("[]\n", line))
        code = run([*arguments, "--csv"])
        out, err = capsys.readouterr()
        assert (code, out[:18], out.count("\n"), err) == (0, "search,id,run_id,r", 1, line)
        assert run([*arguments, "--all"]) == 0
        assert str(search.candidates[0].id) in capsys.readouterr().out


def test_renamed_directory_keeps_the_name_of_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "searches"
    search = ended_search(storage, "before", "me")
    (storage / "before").rename(storage / "after")
    assert run(["sync", "--search", "after", "--storage", str(storage)]) == 0
    assert capsys.readouterr().out.startswith("before (directory after): 3 runs, 12 epochs at ")
    for name in ("after", "before", search_key(search.plan), None):
        assert list(frontier_models(name, storage=str(storage))["search"]) == ["before"]
    assert run(["sync", "--storage", str(storage)]) == 0
    assert capsys.readouterr().out.startswith("before (directory after): 3 runs, 0 epochs at ")
    assert run(["sync", "--search", "before", "--storage", str(storage)]) == 2
    assert "expected one of after" in capsys.readouterr().err


def test_sync_accepts_the_directory_of_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The local database is that of the storage folder, not a new one in the directory."""
    ended_search(tmp_path, "one", "ann")
    ended_search(tmp_path, "two", "ann")
    (tmp_path / "one/inner").mkdir()
    for folder, storage in (
        (tmp_path, "one/"),
        (tmp_path / "one", "."),
        (tmp_path / "one/inner", ".."),
    ):
        monkeypatch.chdir(folder)
        assert run(["sync", "--storage", storage]) == 0
        assert capsys.readouterr().out.startswith("one: 3 runs, ")
        assert run(["frontier", "--storage", storage]) == 0
        assert capsys.readouterr().out
    assert [path.parent for path in tmp_path.rglob("mlflow.db")] == [tmp_path]
    assert run(["sync", "--storage", str(tmp_path), "--search", "../one"]) == 2
    assert "no search or job '../one' at " in capsys.readouterr().err


def test_experiment_of_the_plan_is_used_on_a_new_server(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    name = "Team 1/größe '{}' of ann".replace("{}", "x")
    search = ended_search(tmp_path, "stored", "ann", experiment=name)
    search.store.folder.write(FORMULA, b'{"schema": 1, "usable": false, "points": []}')
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    publisher = search.publisher(uri)
    publisher.conclude(search.rows(search.candidates[:1]), None, [])
    publisher.sync_once()
    experiment = MlflowClient(uri).get_experiment_by_name(name)
    assert experiment is not None
    assert experiment.artifact_location == (
        (tmp_path / "new/mlartifacts/Team-1-gr--e--x--of-ann").as_uri()
    )
    assert len(frontier_models("stored", tracking_uri=uri)) == 1
