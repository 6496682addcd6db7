"""Every file of a search directory may come back damaged: one line that names it, and nothing is changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import tiny_config
from tinynet_search.plan.candidates import candidates_of, final_candidates, grow
from tinynet_search.plan.plan import agreed_plan
from tinynet_search.store.directory import SearchStore
from trainables.spec import Alone
from trainables.trial import run_trial

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with one trial trained and one final written down."""
    storage = tmp_path_factory.mktemp("whole")
    store = SearchStore(str(storage / "demo"))
    plan = agreed_plan(store, tiny_config(storage).resolve())
    (first, *_) = grow(plan, store, 6, 2)
    run_trial(first.spec, store.url, Alone())
    store.write_json(
        "finals.json",
        [
            {
                "run": first.run,
                "label": "tiny formula",
                "c": 0.3,
                "rdw": [1, 1, 1],
                "spec": first.spec.to_json(),
            }
        ],
    )
    return storage


def _read_all(storage: Path) -> None:
    store = SearchStore(str(storage / "demo"))
    plan = agreed_plan(store, tiny_config(storage).resolve())
    store.results([c.run for c in candidates_of(plan, store, 2)])
    final_candidates(store)


def _changed(file: Path, path: list[Any], value: Any) -> bytes:
    document = json.loads(file.read_text())
    place = document
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(document).encode()


CASES: list[tuple[str, list[Any], Any]] = [
    ("plan.json", ["schema"], 7),
    ("plan.json", ["ranks"], KeyError),
    ("plan.json", ["data", "fingerprint"], KeyError),
    ("plan.json", ["data", "settings"], None),
    ("plan.json", ["recipe", "epochs"], "x"),
    ("plan.json", ["recipe", "batch"], 0),
    ("plan.json", ["sampler", "name"], "none"),
    ("plan.json", ["space", "band"], [0.1]),
    ("candidates/000000.json", ["candidates", 0, "rdw"], [1, 1]),
    ("candidates/000000.json", ["candidates", 0, "rdw"], [1, 1, 1e9]),
    ("candidates/000000.json", ["candidates", 0, "rdw"], [1, 1, None]),
    ("candidates/000000.json", ["candidates"], None),
    ("results", ["metrics"], None),
    ("results", ["metrics", "top1"], "x"),
    ("results", ["epochs", 0, "ts"], KeyError),
    ("results", ["network"], {}),
    ("results", ["run"], "another"),
    ("finals.json", [0, "spec", "rdw"], [1, 2]),
    ("finals.json", [0, "spec", "space"], "os:path"),
    ("finals.json", [0, "spec"], None),
]


@pytest.mark.parametrize(("name", "path", "value"), CASES, ids=lambda v: str(v)[:40])
def test_damaged_values(
    whole: Path, tmp_path: Path, name: str, path: list[Any], value: Any
) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    file = tmp_path / "copy" / "demo" / name
    file = next(file.iterdir()) if file.is_dir() else file
    damaged = _changed(file, path, value)
    file.write_bytes(damaged)
    with pytest.raises(RequestError) as refused:
        _read_all(tmp_path / "copy")
    assert file.stem in str(refused.value)
    assert "\n" not in str(refused.value)
    assert file.read_bytes() == damaged


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"3", b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", ["plan.json", "candidates/000000.json", "results"])
def test_damaged_files(whole: Path, tmp_path: Path, name: str, content: bytes) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    file = tmp_path / "copy" / "demo" / name
    file = next(file.iterdir()) if file.is_dir() else file
    file.write_bytes(content)
    with pytest.raises(RequestError) as refused:
        _read_all(tmp_path / "copy")
    assert file.stem in str(refused.value)
    assert file.read_bytes() == content


def test_undamaged(whole: Path) -> None:
    _read_all(whole)


@pytest.mark.parametrize("storage", ["afile", "afile/below"])
def test_storage_that_is_none(tmp_path: Path, storage: str) -> None:
    (tmp_path / "afile").write_text("not a folder")
    with pytest.raises(RequestError, match="cannot be used"):
        agreed_plan(SearchStore(str(tmp_path / storage / "demo")), tiny_config(tmp_path).resolve())
