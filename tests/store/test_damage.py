"""Tests that a damaged file of a search directory is reported in one line and not changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import tiny_config
from tinynet_search.plan.candidates import candidates_of, final_candidates, grow
from tinynet_search.plan.plan import load_or_create_plan
from tinynet_search.store.directory import SearchStore
from trainables.spec import LocalReporter
from trainables.trial import run_trial

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with one trained trial and one final training."""
    storage = tmp_path_factory.mktemp("intact")
    store = SearchStore(str(storage / "demo"))
    plan = load_or_create_plan(store, tiny_config(storage).resolve())
    (first, *_) = grow(plan, store, 6, 2)
    run_trial(first.spec, store.url, LocalReporter())
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
    plan = load_or_create_plan(store, tiny_config(storage).resolve())
    store.results([c.run for c in candidates_of(plan, store, 2)])
    final_candidates(store)


def _changed(file: Path, path: list[Any], value: Any) -> bytes:
    """Return the content of a JSON file with one value replaced, or removed if it is KeyError."""
    document = json.loads(file.read_text())
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if value is KeyError:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return json.dumps(document).encode()


CASES: list[tuple[str, list[Any], Any]] = [
    ("plan.json", ["schema"], 7),
    ("plan.json", ["ranks"], KeyError),
    ("plan.json", ["owner"], "a b"),
    ("plan.json", ["id"], KeyError),
    ("plan.json", ["id"], "../../other"),
    ("plan.json", ["experiment"], ""),
    ("plan.json", ["data", "class_names"], ["one"]),
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
    ("finals.json", [0, "label"], "soft\u00adhyphen"),
]


@pytest.mark.parametrize(("name", "path", "value"), CASES, ids=lambda v: str(v)[:40])
def test_damaged_values(
    intact: Path, tmp_path: Path, name: str, path: list[Any], value: Any
) -> None:
    shutil.copytree(intact, tmp_path / "copy")
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
def test_damaged_files(intact: Path, tmp_path: Path, name: str, content: bytes) -> None:
    shutil.copytree(intact, tmp_path / "copy")
    file = tmp_path / "copy" / "demo" / name
    file = next(file.iterdir()) if file.is_dir() else file
    file.write_bytes(content)
    with pytest.raises(RequestError) as refused:
        _read_all(tmp_path / "copy")
    assert file.stem in str(refused.value)
    assert file.read_bytes() == content


def test_intact_search_is_read(intact: Path) -> None:
    _read_all(intact)


@pytest.mark.parametrize("storage", ["afile", "afile/below"])
def test_storage_that_is_a_file(tmp_path: Path, storage: str) -> None:
    (tmp_path / "afile").write_text("not a folder")
    with pytest.raises(RequestError, match="cannot be used"):
        load_or_create_plan(
            SearchStore(str(tmp_path / storage / "demo")), tiny_config(tmp_path).resolve()
        )
