"""Tests of the final networks: those of the formula and of other rules, and missing ones."""

from pathlib import Path

import pytest

from search_spaces import RDW, RequestError
from tests.search.helpers import tiny_config, tiny_search
from tinynet_search.formula.baselines import RULES
from tinynet_search.formula.tiny_formula import fit_formula
from tinynet_search.plan.candidates import final_candidates
from tinynet_search.plan.plan import make_plan
from tinynet_search.search.conclusion import TINY, final_rows
from tinynet_search.search.driver import opened_state, retryable
from tinynet_search.store.directory import FINALS, SearchStore
from trainables.trial_folder import result_name

pytestmark = pytest.mark.quick

POINTS = [(c, 0.4 + 0.5 * c, 0.5 + 0.4 * c) for c in (0.1, 0.25, 0.4, 0.6, 0.9)]


def test_final_networks_of_the_formula_and_of_all_rules(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, f"search.compare={list(RULES)}")
    inputs = config.resolve()
    plan, space = make_plan(inputs), inputs.space
    formula = fit_formula(space, POINTS, provenance={}, num_classes=plan.space.num_classes)
    store = SearchStore(str(tmp_path / "finals"))
    finals, refused = final_rows(plan, formula, (0.3,), 2, rules=config.search.compare)
    store.write_rows(FINALS, finals)
    assert store.final_rows() == finals
    rows = store.read_json(FINALS) or []
    shallowest = space.network((1, 0.01, 1), plan.space.num_classes)
    assert [row["label"] for row in rows] == [TINY, *(rule for rule in RULES if rule != "d alone")]
    assert refused == [
        "no final network of the rule 'd alone' for c = 0.3: "
        f"depth underflow: the shallowest network has c = {shallowest.c:.3f}"
    ]
    assert [row["run"] for row in rows] == [candidate.run for candidate in final_candidates(store)]
    by_label = {
        row["label"]: space.network(RDW(*row["rdw"]), plan.space.num_classes) for row in rows
    }
    assert (by_label["r alone"].shape.repeats, by_label["w alone"].resolution) == (
        space.baseline().shape.repeats,
        space.base_resolution,
    )
    notes = {row["label"]: row["note"] for row in rows}
    assert "above the budget" in notes["inverse giant, not tuned"]
    assert abs(by_label[TINY].c - 0.3) <= 0.03 * 0.3


def test_results_outside_the_search_are_not_read(tmp_path: Path) -> None:
    """A damaged result of an earlier final network stops a search only with ``--retry``."""
    config = tiny_config(tmp_path)
    store, plan, _ = tiny_search(config)
    inputs = config.resolve()
    formula = fit_formula(inputs.space, POINTS, provenance={}, num_classes=plan.space.num_classes)
    finals, _ = final_rows(plan, formula, (0.3,), 2, rules=())
    store.write_rows(FINALS, finals)
    store.folder.write(result_name(finals[0].run), b"{")
    state = opened_state(store, plan, inputs, 1.0)
    assert state.results == {}
    with pytest.raises(RequestError, match=finals[0].run):
        retryable(store, inputs, state)
