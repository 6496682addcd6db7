"""What ``tinynet sync`` meets in a storage that other people use too."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import tiny_config
from tinynet_search.plan.plan import agreed_plan
from tinynet_search.store.directory import SearchStore
from tinynet_search.tracking import publisher
from tinynet_search.tracking import registered_models as weights
from tinynet_search.tracking.publisher import Publisher
from tinynet_search.tracking.sync import stored
from trainables.run_name import RunName
from trainables.storage.folder import open_folder

pytestmark = pytest.mark.quick


def test_folders_of_other_names_are_left_alone(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trials=2)
    agreed_plan(SearchStore(config.url), config.resolve())
    for name in ("old search (copy)", ".trash", "umlaut-ä"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text("{}")
    assert stored(str(tmp_path)) == ["demo"]


@pytest.mark.parametrize("config", [b"", b"[]", b"{}", b'{"data": 3}', b"{" * 100_000])
def test_weights_whose_description_is_damaged(tmp_path: Path, config: bytes) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_bytes(config)
    nobody: Any = SimpleNamespace(client=None, run_id="0")
    with pytest.raises(
        RequestError, match=r"its weights or their config\.json are damaged"
    ) as refused:
        weights.deliver(nobody, nobody, open_folder(str(tmp_path)), "tinynet", {})
    assert "\n" not in str(refused.value)


def test_a_result_too_large_to_be_one_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's file in a search that was published whole: it has no digest of ours."""
    config = tiny_config(tmp_path, trials=2)
    store = SearchStore(config.url)
    plan = agreed_plan(store, config.resolve())
    run = RunName("f" * 10, 1)
    store.folder.write(f"results/{run}.json", bytes(2000))
    monkeypatch.setattr(publisher, "LARGE", 1000)
    assert Publisher(store, plan, "sqlite://", warn=pytest.fail)._digest_of(run) == b""
