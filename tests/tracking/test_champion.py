"""Tests which registered formula is the champion, and which one a name without a space selects.

Searches are published to a real MLflow server, and the commands use their formulas.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from search_spaces import RequestError
from tests.tracking.helpers import (
    MODEL,
    SQLALCHEMY,
    MlflowSearch,
    PrivateMini,
    Search,
    formula_text,
    tracking_environment,
)
from tests.tracking.servers import mlflow_server
from tinynet_search import TinyFormula, suggest_rdw
from tinynet_search.cli.main import run
from tinynet_search.mlflow_client.names import formula_model, search_alias
from tinynet_search.store.directory import FORMULA
from tinynet_search.tracking.registered_formula import Registration
from tinynet_search.tracking.sync import sync_search
from tinynet_search.train.request import RequestedNetwork, TrainRequest

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)

MINI, B0 = "efficientnet_mini", "efficientnet_b0"
PRIVATE = "tests.tracking.helpers:PrivateMini"
NAME = "models:/tiny-formula@champion"


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with tracking_environment():
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as url:
        yield url


def stored(folder: Path, name: str, text: str, **options: str) -> Search:
    """Create a search directory with a formula; options are those of ``Search``."""
    search = Search(folder, name, **options)  # type: ignore[arg-type]
    search.end(search.candidates[0])
    search.store.folder.write(FORMULA, text.encode())
    return search


def sync(search: Search, server: str, base: str, *, promote: bool = False) -> None:
    space = search.plan.space.name
    registration = Registration(base, promote)
    sync_search(search.store, server, space if ":" in space else None, registration)


def champion(server: str, model: str) -> str:
    """Return the search of the champion."""
    client = MlflowClient(tracking_uri=server, registry_uri=server)
    version = client.get_model_version_by_alias(model, "champion")
    return version.tags["tinynet.search"]


def test_champion_moves_only_to_a_better_formula_of_the_same_data_or_by_promotion(
    tmp_path: Path, server: str
) -> None:
    base = "rule"
    model = f"{base}-{MINI}"
    first = stored(tmp_path, "first", formula_text(8, 0.02))
    sync(first, server, base)
    assert champion(server, model) == "first"
    worse = {
        "fewer-points": ({}, formula_text(7, 0.0)),
        "larger-error": ({}, formula_text(9, 0.04)),
        "other-data": ({"data": "elsewhere"}, formula_text(20, 0.0)),
    }
    others = {
        name: stored(tmp_path, name, text, **options) for name, (options, text) in worse.items()
    }
    for search in others.values():
        sync(search, server, base)
        assert champion(server, model) == "first"
    equal = stored(tmp_path, "equal", formula_text(8, 0.02, label="equal"))
    sync(equal, server, base)
    assert champion(server, model) == "equal"
    for search in (first, *others.values(), equal, first):
        sync(search, server, base)
        assert champion(server, model) == "equal"
    sync(others["other-data"], server, base, promote=True)
    assert champion(server, model) == "other-data"
    for search in (first, equal):
        sync(search, server, base)
    assert champion(server, model) == "other-data"
    client = MlflowClient(tracking_uri=server, registry_uri=server)
    versions = client.search_model_versions(f"name = '{model}'")
    assert len(versions) == 5
    (tags,) = [v.tags for v in versions if v.tags["tinynet.search"] == "other-data"]
    formula = TinyFormula.from_json(worse["other-data"][1])
    assert (tags["data"], tags["points"], tags["tinynet.owner"]) == ("elsewhere", "20", "me")
    assert float(tags["leave_one_out_error"]) == pytest.approx(formula.leave_one_out_error, 1e-5)
    assert tags["run_id"] == MlflowSearch(server, "other-data").parent.info.run_id


def test_lost_marks_do_not_move_the_champion_back(tmp_path: Path, server: str) -> None:
    """A search whose mark is lost is registered again; its version is older than the champion."""
    searches = [stored(tmp_path, name, formula_text(8, label=name)) for name in ("one", "two")]
    for search in searches:
        sync(search, server, "marks")
    in_mlflow = MlflowSearch(server, "one")
    in_mlflow.client.set_tag(in_mlflow.parent.info.run_id, "tinynet.registered", "")
    sync(searches[0], server, "marks")
    assert champion(server, f"marks-{MINI}") == "two"
    assert len(in_mlflow.client.search_model_versions(f"name = 'marks-{MINI}'")) == 2


def test_name_without_a_space_selects_the_formula_of_the_space(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A toy search of a private space does not change what others get."""
    stored(tmp_path, "real", formula_text(6))
    assert run(["sync", "--search", "real", "--storage", str(tmp_path), "--tracking", server]) == 0
    note = f"{NAME} is models:/{MODEL}@champion"
    only = suggest_rdw(0.3, formula=NAME, tracking_uri=server)
    assert (only.space, only.formula, only.note) == (MINI, f"models:/{MODEL}@champion", note)

    private = stored(tmp_path, "toy", formula_text(9, space="private_mini"), space=PRIVATE)
    sync_search(private.store, server, PRIVATE)
    assert suggest_rdw(0.3, formula=NAME, tracking_uri=server) == only
    b0 = stored(tmp_path, "b0", formula_text(7, space=B0), space=B0)
    sync_search(b0.store, server)
    private_model = formula_model("tiny-formula", PRIVATE, "private_mini")
    models = (f"tiny-formula-{B0}", MODEL, private_model)
    assert [champion(server, model) for model in models] == ["b0", "real", "toy"]

    for space, model in ((MINI, MODEL), (B0, models[0]), (PRIVATE, private_model)):
        loaded = TinyFormula.load(NAME, tracking_uri=server, space=space)
        assert loaded.source == f"models:/{model}@champion"
    loaded = TinyFormula.load(NAME, tracking_uri=server, space=PrivateMini())
    assert loaded.source == f"models:/{private_model}@champion"
    with pytest.raises(RequestError) as refused:
        suggest_rdw(0.3, formula=NAME, tracking_uri=server)
    assert str(refused.value) == (
        f"more than one formula {NAME} at {server}: pass a space (--space), or one of "
        + ", ".join(f"models:/{model}@champion" for model in models[:2])
    )
    with pytest.raises(RequestError, match=r"no formula .* for the space resnet50 at .* pass one"):
        suggest_rdw(0.3, formula=NAME, space="resnet50", tracking_uri=server)

    capsys.readouterr()
    options = ["--formula", NAME, "--tracking", server, "--space", MINI]
    for command in ("suggest", "baselines"):
        assert run([command, "0.3", *options]) == 0
        out, err = capsys.readouterr()
        assert "0.3" in out and err.splitlines()[-1].endswith(note)
    request = TrainRequest(c=0.3, formula=NAME, tracking=server, space=MINI)
    assert RequestedNetwork(request).space == MINI
    assert capsys.readouterr().err == f"{note}\n"


def test_registered_model_with_the_plain_name_is_used_for_its_own_space(
    tmp_path: Path, server: str
) -> None:
    """Another program may have registered a model with exactly the name that is asked for."""
    sync(stored(tmp_path, "plain", formula_text(6)), server, "shared")
    search = MlflowSearch(server, "plain")
    parent = search.parent.info
    search.client.create_registered_model("shared")
    search.client.create_model_version("shared", str(parent.artifact_uri), parent.run_id)
    search.client.set_registered_model_alias("shared", "champion", "1")
    sync(stored(tmp_path, "b0", formula_text(7, space=B0), space=B0), server, "shared")
    name = "models:/shared@champion"
    for space, expected in ((None, "shared"), (MINI, "shared"), (B0, f"shared-{B0}")):
        loaded = TinyFormula.load(name, tracking_uri=server, space=space)
        assert loaded.source == f"models:/{expected}@champion"
    loaded = TinyFormula.load(name, tracking_uri=server, space="resnet50")
    assert (loaded.source, loaded.note) == (name, None)
    numbered = TinyFormula.load("models:/shared/1", tracking_uri=server, space=B0)
    assert numbered.source == f"models:/shared-{B0}/1"


def test_two_users_with_one_search_name_have_separate_aliases(tmp_path: Path, server: str) -> None:
    texts = {owner: formula_text(6, label=owner) for owner in ("ann", "bob")}
    searches = [
        stored(tmp_path / owner, "demo", text, owner=owner) for owner, text in texts.items()
    ]
    for search in (*searches, *searches):
        sync(search, server, "aliases")
    for owner, text in texts.items():
        uri = f"models:/aliases-{MINI}@{owner}-demo"
        assert TinyFormula.load(uri, tracking_uri=server).to_json() == text


def test_name_of_the_model_is_that_of_the_last_registration(tmp_path: Path, server: str) -> None:
    """``tinynet sync`` does not know the configuration of the search."""
    search = stored(tmp_path, "named", formula_text(6))
    sync(search, server, "team")
    search.store.folder.write(FORMULA, formula_text(7).encode())
    sync_search(search.store, server)
    assert MlflowSearch(server, "named").parent.data.tags["tinynet.model"] == f"team-{MINI}"
    client = MlflowClient(tracking_uri=server, registry_uri=server)
    assert len(client.search_model_versions(f"name = 'team-{MINI}'")) == 2


def test_nothing_to_promote_is_an_error(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    search = Search(tmp_path, "early")
    search.end(search.candidates[0])
    options = ["--storage", str(tmp_path), "--tracking", server, "--promote"]
    assert run(["sync", "--search", "early", *options]) == 2
    assert capsys.readouterr().err == (
        "tinynet: search early has no usable formula to promote: run more trials\n"
    )
    assert run(["sync", *options]) == 2
    assert "--promote needs --search" in capsys.readouterr().err
    assert run(["sync", "--search", "early", *options, "--model", "a/b"]) == 2
    assert "model 'a/b' is not valid" in capsys.readouterr().err


def test_search_promotes_its_formula_if_configured(tmp_path: Path, server: str) -> None:
    """``tracking.promote`` reaches the publisher as this registration."""
    sync(stored(tmp_path, "good", formula_text(9)), server, "promoted")
    search = stored(tmp_path, "chosen", formula_text(6, 0.1))
    for promote, expected in ((False, "good"), (True, "chosen")):
        publisher = search.publisher(server, registration=Registration("promoted", promote))
        publisher.conclude([], formula_text(6, 0.1), [])
        publisher.sync_once()
        assert champion(server, f"promoted-{MINI}") == expected


@pytest.mark.parametrize(
    ("owner", "search", "alias"),
    [
        ("ann", "demo", "ann-demo"),
        ("ann", "demo-2", "ann-demo-2"),
        ("a-b", "c", "a-b-c-"),
        ("a", "b.c", "a-b-c-"),
    ],
)
def test_alias_of_a_search(owner: str, search: str, alias: str) -> None:
    given = search_alias(owner, search)
    assert given == alias or (alias.endswith("-") and given.startswith(alias))


def test_names_of_different_spaces_and_searches_differ() -> None:
    pairs = [("a-b", "c"), ("a", "b-c"), ("a.b", "c"), ("a@b", "c"), ("a", "b.c")]
    assert len({search_alias(*pair) for pair in pairs}) == len(pairs)
    spaces = [
        (MINI, MINI),
        ("mini:Space", MINI),
        ("mini:space", MINI),
        ("mini.Space:a", "other"),
        ("mini.Space:a", MINI),
        ("efficientnet:mini", MINI),
    ]
    models = {formula_model("tiny-formula", *space) for space in spaces}
    assert len({model.lower() for model in models}) == len(spaces)
    assert not any(set("/:") & set(model) for model in models)
