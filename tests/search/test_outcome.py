"""The final jobs: the formula's networks and other rules' beside them, and what is said where a rule has none."""

from pathlib import Path

import pytest

from search_spaces import RDW
from tests.search.helpers import tiny_config
from tinynet_search.formula.baselines import RULES
from tinynet_search.formula.tiny_formula import fit_formula
from tinynet_search.plan.candidates import final_candidates
from tinynet_search.plan.plan import make_plan
from tinynet_search.search.conclusion import TINY, final_rows
from tinynet_search.store.directory import FINALS, SearchStore

pytestmark = pytest.mark.quick

POINTS = [(c, 0.4 + 0.5 * c, 0.5 + 0.4 * c) for c in (0.1, 0.25, 0.4, 0.6, 0.9)]


def test_finals_stand_beside_the_rules_that_were_asked_for(tmp_path: Path) -> None:
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
        f"no final network of the rule 'd alone' for c = 0.3: depth underflow: the shallowest has c = {shallowest.c:.3f}"
    ]
    assert [row["run"] for row in rows] == [candidate.run for candidate in final_candidates(store)]
    by_label = {
        row["label"]: space.network(RDW(*row["rdw"]), plan.space.num_classes) for row in rows
    }
    assert (by_label["r alone"].shape.repeats, by_label["w alone"].resolution) == (
        space.baseline().shape.repeats,
        space.base_resolution,
    )
    assert "above the budget" in next(
        row["note"] for row in rows if row["label"] == "inverse giant, not tuned"
    )
    assert abs(by_label[TINY].c - 0.3) <= 0.03 * 0.3
