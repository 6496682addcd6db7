"""Tests ``tinynet sync`` on a storage that contains damaged files and files from elsewhere."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import tiny_config
from tinynet_search.plan.plan import load_or_create_plan
from tinynet_search.store.directory import SearchStore
from tinynet_search.tracking import publisher
from tinynet_search.tracking import registered_models as weights
from tinynet_search.tracking.publisher import Publisher
from tinynet_search.tracking.sync import stored_names
from trainables.run_name import RunName
from trainables.storage.folder import open_folder

pytestmark = pytest.mark.quick


def test_folders_with_other_names_are_ignored(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trials=2)
    load_or_create_plan(SearchStore(config.url), config.resolve())
    for name in ("old search (copy)", ".trash", "umlaut-ä"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text("{}")
    assert stored_names(str(tmp_path)) == ["demo"]


@pytest.mark.parametrize("config", [b"", b"[]", b"{}", b'{"data": 3}', b"{" * 100_000])
def test_damaged_configuration_of_weights_is_reported(tmp_path: Path, config: bytes) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_bytes(config)
    unused: Any = SimpleNamespace(client=None, run_id="0")
    with pytest.raises(
        RequestError, match=r"its weights or their config\.json are damaged"
    ) as refused:
        weights.register_weights(unused, unused, open_folder(str(tmp_path)), "tinynet", {})
    assert "\n" not in str(refused.value)


def test_result_above_the_size_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file from elsewhere in a completely published search has an empty digest."""
    config = tiny_config(tmp_path, trials=2)
    store = SearchStore(config.url)
    plan = load_or_create_plan(store, config.resolve())
    run = RunName("f" * 10, 1)
    store.folder.write(f"results/{run}.json", bytes(2000))
    monkeypatch.setattr(publisher, "LARGE", 1000)
    assert Publisher(store, plan, "sqlite://", warn=pytest.fail)._digest_of(run) == b""
