"""Tests of plans, of the candidates drawn from them, and of previews."""

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
from tinynet_search.plan.plan import load_or_create_plan, make_plan
from tinynet_search.plan.preview import Preview, preview
from tinynet_search.store.directory import SearchStore
from tinynet_search.tracking.projection import search_key
from trainables.data.packed.packing import Packing
from trainables.data.sources.imagefolder import ImageFolderData

pytestmark = pytest.mark.quick

# The epochs of ``tiny_config``.
EPOCHS = 2


def test_grow_keeps_existing_candidates(tmp_path: Path) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    plan = load_or_create_plan(store, tiny_config(tmp_path).resolve())
    first = grow(plan, store, 5, EPOCHS)
    more = grow(plan, store, 12, EPOCHS)
    assert [c.run for c in more[:5]] == [c.run for c in first]
    assert len({c.run for c in more}) == 12
    assert [c.run for c in grow(plan, store, 3, EPOCHS)] == [c.run for c in more]
    assert store.folder.names("candidates") == ["000000.json", "000005.json"]
    other_store = SearchStore(str(tmp_path / "other"))
    other = tiny_config(tmp_path, "search.name=other").resolve()
    single_draw = grow(load_or_create_plan(other_store, other), other_store, 12, EPOCHS)
    assert [c.run for c in single_draw] == [c.run for c in more]


def test_stored_figures_match_networks(tmp_path: Path) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    plan = load_or_create_plan(store, tiny_config(tmp_path).resolve())
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
def test_changed_setting_is_refused(tmp_path: Path, setting: str, shown: str) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    load_or_create_plan(store, tiny_config(tmp_path).resolve())
    before = store.folder.read("plan.json")
    with pytest.raises(RequestError, match="does not match its plan") as refused:
        load_or_create_plan(store, tiny_config(tmp_path, setting).resolve())
    assert shown in str(refused.value)
    assert store.folder.read("plan.json") == before


def test_settings_outside_the_plan_may_change(tmp_path: Path) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    plan = load_or_create_plan(store, tiny_config(tmp_path).resolve())
    for setting in (
        "recipe.epochs=9",
        "search.trials=99",
        "search.finals=[0.3]",
        "run.concurrency=1",
        "tracking.uri=http://x",
    ):
        assert load_or_create_plan(store, tiny_config(tmp_path, setting).resolve()) == plan


def test_plans_of_the_same_second_have_different_keys(tmp_path: Path) -> None:
    """Two users may start the same search at the same time, also under one login name."""
    inputs = tiny_config(tmp_path).resolve()
    first, second = (
        make_plan(inputs).model_copy(update={"created": 1_760_000_000}) for _ in range(2)
    )
    assert first.model_copy(update={"id": second.id}) == second
    assert search_key(first) != search_key(second)


def test_experiment_is_stored_and_may_change(tmp_path: Path) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    first = load_or_create_plan(
        store, tiny_config(tmp_path, "search.owner=ada", "tracking.experiment=of-{owner}").resolve()
    )
    assert (first.experiment, store.written_plan()) == ("of-ada", first)
    assert load_or_create_plan(store, tiny_config(tmp_path).resolve()) == first
    changed = tiny_config(tmp_path, "tracking.experiment=other").resolve()
    assert load_or_create_plan(store, changed).experiment == "other"
    assert store.written_plan() == first


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"search": "demo"}', b'{"search": 3}', b"\xff\xfe"]
)
def test_damaged_plan_is_refused_and_kept(tmp_path: Path, damage: bytes) -> None:
    store = SearchStore(str(tmp_path / "demo"))
    load_or_create_plan(store, tiny_config(tmp_path).resolve())
    (tmp_path / "demo" / "plan.json").write_bytes(damage)
    with pytest.raises(RequestError, match=r"plan\.json"):
        load_or_create_plan(store, tiny_config(tmp_path).resolve())
    assert store.folder.read("plan.json") == damage


def test_data_may_move(tmp_path: Path) -> None:
    """The same images in a different folder belong to the same search.

    Trials get the absolute path of the current folder.
    """
    first, moved = make_tree(tmp_path / "first"), tmp_path / "moved"
    settings = ["data.name=imagefolder", "recipe.batch=8", "recipe.micro_batch=8"]
    store = SearchStore(str(tmp_path / "demo"))
    load_or_create_plan(store, tiny_config(tmp_path, *settings, f'data.path="{first}"').resolve())
    first.rename(moved)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        plan = load_or_create_plan(
            store, tiny_config(tmp_path, *settings, 'data.path="moved"').resolve()
        )
    assert {c.spec.data["path"] for c in grow(plan, store, 6, EPOCHS)} == {str(moved)}


def test_preview_writes_nothing(tmp_path: Path) -> None:
    shown = preview(tiny_config(tmp_path).resolve())
    assert len(shown.candidates) == 6
    assert shown.training_macs_left == sum(row.training_macs for row in shown.candidates)
    row = shown.candidates[0]
    assert row.training_macs == row.macs * (3 * 96 + 2 * 48) * 2
    assert row.id in preview_text(shown)
    assert list(tmp_path.iterdir()) == []


def test_preview_json_round_trip(tmp_path: Path) -> None:
    """Integers stay integers, so that a different machine prints the same document."""
    text = json.dumps(preview(tiny_config(tmp_path).resolve()).to_json())
    assert json.dumps(Preview.from_json(json.loads(text)).to_json()) == text
    assert isinstance(json.loads(text)["training_macs_left"], int)


def test_data_smaller_than_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="fewer than one batch of 256"):
        load_or_create_plan(
            SearchStore(str(tmp_path / "demo")),
            tiny_config(tmp_path, "recipe.batch=256").resolve(),
        )


def test_preview_warns_about_packed_resolution(tmp_path: Path) -> None:
    """There is no warning if the packed resolution is sufficient, or the data are not packed."""
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
    largest = max(row.resolution for row in shown["packed16"].candidates)
    count = sum(row.resolution > 14 for row in shown["packed16"].candidates)
    warning = (
        f"packed for up to 14 pixels: {count} networks of more than 14 pixels (up to {largest}) "
        "will train on enlarged images"
    )
    assert warning in preview_text(shown["packed16"])
    assert shown["packed128"].warning is None
    assert shown["tree"].warning is None


@pytest.mark.parametrize(
    ("change", "field"),
    [({"version": "2"}, "version"), ({"version": 10**9}, "version"), ({"name": "x" * 300}, "name")],
)
def test_space_with_invalid_fields_is_refused(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    """A user-defined space may have any values; the message is one line."""
    inputs = tiny_config(tmp_path).resolve()
    space = copy.copy(inputs.space)
    vars(space).update(change)
    changed = replace(inputs, space=space, space_name=str(change.get("name", inputs.space_name)))
    with pytest.raises(RequestError, match=rf"is not valid: {field}: ") as refused:
        make_plan(changed)
    assert "\n" not in str(refused.value)
