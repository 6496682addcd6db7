"""Plans: written once, agreed with or refused; drawing more leaves what is there."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.data.test_imagefolder import make_tree
from tests.search.helpers import tiny_config
from tinynet_search.cli.summary import preview_text
from tinynet_search.plan.candidates import candidates_of, grow
from tinynet_search.plan.plan import agreed_plan, make_plan
from tinynet_search.plan.preview import Preview, preview
from tinynet_search.store.directory import SearchStore
from trainables.data.packed.packing import Packing
from trainables.data.sources.imagefolder import ImageFolderData

pytestmark = pytest.mark.quick

# Of ``tiny_config``.
EPOCHS = 2


def test_growing_keeps_the_first(tmp_path: Path) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    plan = agreed_plan(store, tiny_config(tmp_path).resolve())
    first = grow(plan, store, 5, EPOCHS)
    more = grow(plan, store, 12, EPOCHS)
    assert [c.run for c in more[:5]] == [c.run for c in first]
    assert len({c.run for c in more}) == 12
    assert [c.run for c in grow(plan, store, 3, EPOCHS)] == [c.run for c in more]
    assert store.folder.names("candidates") == ["000000.json", "000005.json"]
    whole = SearchStore(str(tmp_path / "other"))
    other = tiny_config(tmp_path, "search.name=other").resolve()
    at_once = grow(agreed_plan(whole, other), whole, 12, EPOCHS)
    assert [c.run for c in at_once] == [c.run for c in more]


def test_figures_in_candidates_are_the_networks(tmp_path: Path) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    plan = agreed_plan(store, tiny_config(tmp_path).resolve())
    grow(plan, store, 6, EPOCHS)
    written = json.loads((tmp_path / "demo" / "candidates" / "000000.json").read_text())[
        "candidates"
    ]
    for row, candidate in zip(written, candidates_of(plan, store), strict=True):
        network = candidate.spec.network()
        assert (row["id"], row["network"]["macs"], row["network"]["c"]) == (
            candidate.id,
            network.macs,
            network.c,
        )


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("search.seed=1", "seed was 0, now 1"),
        ("recipe.lr=0.5", "recipe.lr was"),
        ("data.seed=4", "data was 'petals-"),
        ("search.sampler=uniform", "sampler.name was 'stratified', now 'uniform'"),
        ("space.band=[0.1, 0.4]", "space.band was"),
        ("space.name=efficientnet_b0", "space.name was"),
        ("search.fraction=0.5", "frontier.fraction was"),
    ],
)
def test_contradictions_are_refused_and_shown(tmp_path: Path, setting: str, shown: str) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    agreed_plan(store, tiny_config(tmp_path).resolve())
    before = store.folder.read("plan.json")
    with pytest.raises(RequestError, match="was planned otherwise") as refused:
        agreed_plan(store, tiny_config(tmp_path, setting).resolve())
    assert shown in str(refused.value)
    assert store.folder.read("plan.json") == before


def test_what_may_change(tmp_path: Path) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    plan = agreed_plan(store, tiny_config(tmp_path).resolve())
    for setting in (
        "recipe.epochs=9",
        "search.trials=99",
        "search.finals=[0.3]",
        "run.concurrency=1",
        "tracking.uri=http://x",
    ):
        assert agreed_plan(store, tiny_config(tmp_path, setting).resolve()) == plan


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"search": "demo"}', b'{"search": 3}', b"\xff\xfe"]
)
def test_a_damaged_plan_is_named_and_kept(tmp_path: Path, damage: bytes) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    agreed_plan(store, tiny_config(tmp_path).resolve())
    (tmp_path / "demo" / "plan.json").write_bytes(damage)
    with pytest.raises(RequestError, match=r"plan\.json"):
        agreed_plan(store, tiny_config(tmp_path).resolve())
    assert store.folder.read("plan.json") == damage


def test_data_that_moved_is_found_where_it_is_now(tmp_path: Path) -> None:
    """The same images at another place are the same search; trials are told the place of today, and an absolute one."""
    first, then = make_tree(tmp_path / "first"), tmp_path / "then"
    settings = ["data.name=imagefolder", "recipe.batch=8", "recipe.micro_batch=8"]
    store = SearchStore(str(tmp_path / "demo"))
    agreed_plan(store, tiny_config(tmp_path, *settings, f'data.path="{first}"').resolve())
    first.rename(then)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        plan = agreed_plan(store, tiny_config(tmp_path, *settings, 'data.path="then"').resolve())
    assert {c.spec.data["path"] for c in grow(plan, store, 6, EPOCHS)} == {str(then)}


def test_preview_writes_nothing(tmp_path: Path) -> None:
    shown = preview(tiny_config(tmp_path).resolve())
    assert len(shown.candidates) == 6
    assert shown.training_macs_left == sum(row.training_macs for row in shown.candidates)
    row = shown.candidates[0]
    assert row.training_macs == row.macs * (3 * 96 + 2 * 48) * 2
    assert row.id in preview_text(shown)
    assert list(tmp_path.iterdir()) == []


def test_a_preview_comes_back_from_json(tmp_path: Path) -> None:
    """With whole numbers as they were: another machine prints the same document."""
    text = json.dumps(preview(tiny_config(tmp_path).resolve()).to_json())
    assert json.dumps(Preview.from_json(json.loads(text)).to_json()) == text
    assert isinstance(json.loads(text)["training_macs_left"], int)


def test_data_smaller_than_a_batch(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="fewer than one batch of 256"):
        agreed_plan(
            SearchStore(str(tmp_path / "demo")),
            tiny_config(tmp_path, "recipe.batch=256").resolve(),
        )


def test_networks_that_want_more_pixels_than_were_packed(tmp_path: Path) -> None:
    """One line in the dry run; none where the set serves them all, and none for sets that are not packed."""
    tree = ImageFolderData(str(make_tree(tmp_path / "tree")))
    for short in (16, 128):
        Packing(tree, tmp_path / f"packed{short}", short).pack(1, "fail")
    shown: dict[str, Preview] = {}
    for name, path in (("packed", "packed16"), ("packed", "packed128"), ("imagefolder", "tree")):
        settings = (
            f"data.name={name}",
            f'data.path="{tmp_path / path}"',
            "recipe.batch=8",
            "recipe.micro_batch=8",
        )
        shown[path] = preview(tiny_config(tmp_path, *settings).resolve())
    most = max(row.resolution for row in shown["packed16"].candidates)
    wanted = f"packed for up to 14 pixels: {{}} networks of more than 14 pixels (up to {most}) will see enlarged images"
    count = sum(row.resolution > 14 for row in shown["packed16"].candidates)
    assert wanted.format(count) in preview_text(shown["packed16"])
    assert shown["packed128"].warning is None
    assert shown["tree"].warning is None


@pytest.mark.parametrize(
    ("change", "named"),
    [({"version": "2"}, "version"), ({"version": 10**9}, "version"), ({"name": "x" * 300}, "name")],
)
def test_a_space_that_no_plan_takes_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    """Of a user's own module, which may say anything."""
    inputs = tiny_config(tmp_path).resolve()
    space = copy.copy(inputs.space)
    vars(space).update(change)
    own = replace(inputs, space=space, space_name=str(change.get("name", inputs.space_name)))
    with pytest.raises(RequestError, match=rf"cannot be written down: {named}: ") as refused:
        make_plan(own)
    assert "\n" not in str(refused.value)
