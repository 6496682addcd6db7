"""Tests of suggestions: the network for a budget, compared with the paper's five TinyNets."""

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from search_spaces import RDW, RequestError, SearchSpace, get_space, list_spaces
from search_spaces.efficientnet import TABLES, EfficientNetSpace
from tests.required import require_module
from tinynet_search import Suggestion, TinyFormula, suggest_rdw
from tinynet_search.formula.digits import format_rdw
from tinynet_search.formula.tiny_formula import fit_formula

B0 = get_space("efficientnet_b0")
C0 = 385_814_752
# c, r, d and pixels of the released TinyNet-A to E.
TINYNETS = [
    (0.9, 0.86, 1.2, 192),
    (0.5, 0.84, 1.1, 188),
    (0.25, 0.825, 0.85, 184),
    (0.13, 0.68, 0.695, 152),
    (0.06, 0.475, 0.6, 106),
]
POINTS = [(c, r, d) for c, r, d, _ in TINYNETS]


@pytest.mark.parametrize(("c", "r", "d", "pixels"), TINYNETS)
def test_budgets_of_the_released_tinynets(c: float, r: float, d: float, pixels: int) -> None:
    s = suggest_rdw(c)
    assert abs(s.r - r) <= 0.01 and abs(s.d - d) <= 0.01
    assert abs(s.r_mean - r) <= 0.001 and abs(s.d_mean - d) <= 0.001
    assert s.resolution == pixels
    assert abs(s.macs / C0 / c - 1) <= 0.03 and s.c == s.macs / C0
    # Each stage is as deep as in the released network.
    assert s.network.details["repeats"] == B0.network(RDW(r, d, 1.0)).details["repeats"]
    assert s.note is None and not s.extrapolated


@settings(max_examples=60, deadline=None)
@given(st.floats(0.06, 0.9), st.sampled_from(list_spaces()), st.sampled_from(["default", "paper"]))
@example(0.34260004291403007, "ghostnet_a", "default")
def test_unpacks_to_the_built_network(c: float, name: str, form: str) -> None:
    s = suggest_rdw(c, space=name, form=form)
    r, d, w = s
    space = get_space(name)
    assert space.network(RDW(*s)) == s.network and space.network(RDW(r, d, w)).macs == s.macs
    assert (s.r, s.d, s.w) == (r, d, w) and len(s) == 3
    assert s.r * space.base_resolution == pytest.approx(s.resolution, abs=1e-9)
    assert abs(s.c - c) <= 0.03 * c
    # No width with fewer digits selects the same network.
    solved = space.solve_width(c, s.r_mean, s.d_mean).rdw.w
    digits = next(n for n in range(1, 18) if round(w, n) == w)
    assert all(space.network(RDW(r, d, round(solved, n))) != s.network for n in range(2, digits))


def test_suggestion_fields() -> None:
    s = suggest_rdw(0.25)
    assert (s.budget, s.space, s.formula, s.form) == (
        0.25,
        "efficientnet_b0",
        "published",
        "default",
    )
    assert s.params == s.network.params and s.activations == s.network.activations
    assert s.activation_bytes == s.network.activation_bytes and (s.limits, s.binding) == ({}, ())
    data = json.loads(json.dumps(s.to_dict(), allow_nan=False))
    fields = (
        "budget c resolution macs params activations activation_bytes r d w "
        "r_mean d_mean r_std d_std extrapolated space formula note form"
    )
    assert all(data[name] == getattr(s, name) for name in fields.split())
    assert data["num_classes"] == 1000 and data["details"]["repeats"] == [1, 2, 2, 3, 3, 3, 1]
    assert copy.deepcopy(s) == s
    assert tuple(pickle.loads(pickle.dumps(s))) == tuple(s)


def test_text_and_html_display() -> None:
    s = suggest_rdw(0.05, extrapolate=True, space="efficientnet_mini")
    assert repr(s).startswith("Suggestion(efficientnet_mini at c = 0.05: r=") and repr(s).endswith(
        ", extrapolated)"
    )
    for text in (str(s), s._repr_html_()):
        for part in (
            "r, d, w",
            "pixels",
            "per stage",
            "FLOPs (multiply-adds)",
            "peak activation memory",
            "±",
            "budget",
            "outside",
        ):
            assert part in text
    injected = TinyFormula.from_json(
        TinyFormula.load("published").to_json(), "<script>alert(1)</script>"
    )
    assert "<script>" not in injected.suggest(0.5)._repr_html_()


def test_suggestion_builds_a_module() -> None:
    torch = require_module("torch", "torch")
    s = suggest_rdw(0.06)
    model = s.build(drop_rate=0.2).eval()
    assert sum(p.numel() for p in model.parameters()) == s.params
    with torch.no_grad():
        assert model(torch.zeros(1, 3, s.resolution, s.resolution)).shape == (1, 1000)


@pytest.mark.parametrize("c", [0, -0.1, 1.01, math.nan, math.inf, "a lot", 10**400, [0.1, 0.2]])
def test_invalid_budget(c: Any) -> None:
    for extrapolate in (False, True):
        with pytest.raises(RequestError, match="is not a valid budget") as caught:
            suggest_rdw(c, extrapolate=extrapolate)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("c", "end"), [(0.05, 0.06), (0.95, 0.9), (1.0, 0.9)])
def test_budget_outside_the_range_needs_extrapolation(c: float, end: float) -> None:
    with pytest.raises(
        RequestError, match=r"outside the range 0.06 to 0.9 .*extrapolate=True \(--extrapolate\)"
    ):
        suggest_rdw(c)
    s, nearest, formula = (
        suggest_rdw(c, extrapolate=True),
        suggest_rdw(end),
        TinyFormula.load("published"),
    )
    assert s.extrapolated and "nearest end" in str(s.note)
    assert (s.r_mean, s.d_mean, s.d) == (nearest.r_mean, nearest.d_mean, nearest.d)
    assert (s.r_std, s.d_std) == (
        formula.predict(c).r_std,
        formula.predict(c).d_std,
    ) and s.r_std > nearest.r_std
    assert abs(s.c - c) <= 0.03 * c


def test_ends_of_the_range_have_a_tolerance() -> None:
    assert not suggest_rdw(0.06 - 1e-10).extrapolated and not suggest_rdw(0.9 + 1e-10).extrapolated
    assert not suggest_rdw(0.5, extrapolate=True).extrapolated


def test_suggestion_on_a_different_space_has_a_note() -> None:
    s = suggest_rdw(0.25, space="efficientnet_mini")
    assert s.space == "efficientnet_mini" and s.network.num_classes == 24
    assert s.r_mean == suggest_rdw(0.25).r_mean
    assert s.note == (
        "efficientnet_mini has no formula of its own: r(c) and d(c) were fitted on efficientnet_b0"
    )
    assert s.note in str(s)


def test_fitted_formula_keeps_its_space_and_classes(tmp_path: Path) -> None:
    formula = fit_formula(get_space("efficientnet_mini"), POINTS, provenance={}, num_classes=7)
    (tmp_path / "mine.json").write_text(formula.to_json(), "utf-8")
    s = suggest_rdw(0.5, formula=tmp_path / "mine.json")
    assert (s.space, s.network.num_classes, s.note) == ("efficientnet_mini", 7, None)
    assert s.formula.endswith("mine.json")
    assert formula.suggest(0.5, num_classes=100).network.num_classes == 100
    assert formula.suggest(0.5, space=B0).network.num_classes == 1000


class NarrowSpace(EfficientNetSpace):
    """A custom space with a later version, and with ranges that the formula exceeds."""

    version = 2
    ranges = {"r": (0.35, 0.7), "d": (0.35, 2.8), "w": (0.35, 2.8)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(TABLES["efficientnet_b0"])
        self.version = 2


def test_predictions_are_clipped_to_the_ranges_of_the_space() -> None:
    s = suggest_rdw(0.25, space=NarrowSpace())
    assert s.r == pytest.approx(0.7, abs=1 / 224) and s.r_mean > 0.8
    assert "clipped" in str(s.note) and "version 1" in str(s.note)


def test_formula_file_cannot_import_a_module() -> None:
    text = TinyFormula.load("published").to_json().replace('"efficientnet_b0"', '"antigravity:fly"')
    with pytest.raises(
        RequestError, match="'antigravity:fly', which is not a built-in space: pass the space"
    ):
        TinyFormula.from_json(text, "odd.json").suggest(0.25)
    assert "antigravity" not in sys.modules
    space: SearchSpace = B0
    assert (
        TinyFormula.from_json(text, "odd.json").suggest(0.25, space=space).macs
        == suggest_rdw(0.25).macs
    )


def test_unknown_names() -> None:
    with pytest.raises(RequestError, match="did you mean"):
        suggest_rdw(0.25, space="efficientnet_b")
    with pytest.raises(RequestError, match="unknown formula"):
        suggest_rdw(0.25, formula="mine")
    with pytest.raises(RequestError, match="unknown form"):
        suggest_rdw(0.25, form="papper")


def test_numpy_numbers_are_accepted() -> None:
    budget: Any = np.float32(0.25)
    assert tuple(suggest_rdw(budget)) == tuple(suggest_rdw(0.25))


def test_suggestion_imports_only_numpy() -> None:
    """A suggestion imports numpy but no heavier package, and takes well under a second."""
    program = """
import sys, time
start = time.perf_counter()
import tinynet_search
r, d, w = tinynet_search.suggest_rdw(0.25)
seconds = time.perf_counter() - start
heavy = "torch timm ray pydantic sklearn scipy pymoo mlflow pandas typer rich".split()
print([name for name in heavy if name in sys.modules], seconds)
"""
    best = math.inf
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        loaded, _, seconds = run.stdout.rpartition(" ")
        assert loaded == "[]"
        best = min(best, float(seconds))
    assert best < 0.8


def test_package_exports() -> None:
    import tinynet_search

    assert tinynet_search.__version__ == "0.1.0" and tinynet_search.Suggestion is Suggestion
    assert set(tinynet_search.__all__) <= set(dir(tinynet_search))
    assert set(tinynet_search._MODULES) | {"__version__"} == set(tinynet_search.__all__)
    with pytest.raises(AttributeError, match="no attribute 'suggest_rwd'"):
        tinynet_search.__getattr__("suggest_rwd")


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet50", "ghostnet_a"])
def test_formatted_rdw_selects_the_same_network(name: str) -> None:
    """With three digits, 184 of 224 pixels are r = .822; .821 would be 183 pixels."""
    space = get_space(name)
    for c in np.geomspace(0.06, 0.9, 60):
        network = suggest_rdw(float(c), space=space).network
        texts = format_rdw(network)
        r, d, w = map(float, texts)
        assert space.network((r, d, w)) == network
        assert all(len(text) <= 9 for text in texts)


def test_number_of_classes_changes_the_parameters() -> None:
    few = suggest_rdw(0.25, num_classes=10)
    assert few.network.num_classes == 10 and few.params < suggest_rdw(0.25).params - 1e6
    assert suggest_rdw(params=0.9e6, num_classes=10).binding == ("params",)
