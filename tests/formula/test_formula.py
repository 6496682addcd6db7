"""Tests of the tiny formula: equality with scikit-learn, reproducibility, and safe parsing."""

import copy
import importlib.util
import json
import math
import random
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import RequestError, get_space
from tinynet_search import TinyFormula, TrackingError
from tinynet_search.formula import gaussian_process
from tinynet_search.formula.contents import MAX_POINTS, FormulaContents
from tinynet_search.formula.files import MAX_BYTES, parse
from tinynet_search.formula.gaussian_process import MAX_FITTED, thin_points
from tinynet_search.formula.tiny_formula import fit_formula

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED_FILE = ROOT / "tinynet_search" / "formula" / "published.json"
B0 = get_space("efficientnet_b0")


def noisy_points(count: int = 20, seed: int = 0) -> list[tuple[float, float, float]]:
    rng = np.random.default_rng(seed)
    c = np.exp(rng.uniform(np.log(0.03), np.log(1.05), count))
    return [
        (
            float(x),
            float(1.1 * x**0.25 + rng.normal(0, 0.05)),
            float(x**0.3 + rng.normal(0, 0.1) + 0.5),
        )
        for x in c
    ]


@pytest.fixture(scope="module")
def fitted() -> TinyFormula:
    return fit_formula(B0, noisy_points(), provenance={"search": "test"}, num_classes=100)


@pytest.fixture(scope="module")
def script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(
        "published_formula", ROOT / "benchmarks" / "published_formula.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("form", ["paper", "default"])
@pytest.mark.parametrize("name", ["fitted", "published", "duplicates"])
def test_equals_scikit_learn(name: str, form: str, fitted: TinyFormula) -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    duplicated = [*noisy_points(), *((c, r + 0.01, d) for c, r, d in noisy_points())]
    formulas = {
        "fitted": fitted,
        "published": TinyFormula.load("published"),
        "duplicates": fit_formula(B0, duplicated, provenance={}),
    }
    formula, c = formulas[name], np.geomspace(0.01, 1.2, 101)
    predicted = formula.predict(c, form)
    for target, mean, std in (
        ("r", predicted.r_mean, predicted.r_std),
        ("d", predicted.d_mean, predicted.d_std),
    ):
        kernel = formula.forms[form][target]
        points = np.array(formula.points)
        x, y = points[:, :1], points[:, 1 if target == "r" else 2]
        assert kernel.log_c == (form == "default") and (
            kernel.mean == 0 if form == "paper" else kernel.mean == pytest.approx(y.mean())
        )
        regressor: Any = GaussianProcessRegressor(
            ConstantKernel(kernel.amplitude) * RBF(kernel.length_scale) + WhiteKernel(kernel.noise),
            alpha=0,
            normalize_y=False,
            optimizer=None,  # pyright: ignore[reportArgumentType]
        )
        wrap = np.log if kernel.log_c else np.asarray
        expected, expected_std = regressor.fit(wrap(x), y - kernel.mean).predict(
            wrap(c)[:, None], return_std=True
        )
        np.testing.assert_allclose(mean, expected + kernel.mean, rtol=0, atol=1e-9)
        np.testing.assert_allclose(std, expected_std, rtol=0, atol=1e-9)


def test_leave_one_out_error_predicts_each_point_from_the_others(fitted: TinyFormula) -> None:
    """The closed form equals a separate posterior without each point, for the fitted kernels."""
    squares = []
    for target in "rd":
        kernel = fitted.forms["default"][target]
        for left_out in fitted.points:
            rest = [point for point in fitted.points if point is not left_out]
            column = "crd".index(target)
            posterior = gaussian_process.Posterior(
                kernel, [point[0] for point in rest], [point[column] for point in rest]
            )
            mean, _ = posterior(left_out[0])
            squares.append((left_out[column] - mean[0]) ** 2)
    expected = math.sqrt(np.mean(squares))
    assert fitted.leave_one_out_error == pytest.approx(expected, rel=1e-9)
    # The points have a noise of 0.05 in r and of 0.1 in d.
    assert 0.5 < fitted.leave_one_out_error / math.sqrt((0.05**2 + 0.1**2) / 2) < 2
    assert TinyFormula.from_json(fitted.to_json()).leave_one_out_error == pytest.approx(expected)


def test_unusable_formula_has_no_leave_one_out_error() -> None:
    few = fit_formula(B0, noisy_points(3), provenance={})
    with pytest.raises(RequestError, match="at least 5 are needed"):
        _ = few.leave_one_out_error


def test_equation_4_by_hand(fitted: TinyFormula) -> None:
    """The paper's mean and variance by a matrix inverse; the variance includes sigma squared."""
    kernel, points = fitted.forms["paper"]["r"], np.array(fitted.points)

    def k(a: Any, b: Any) -> Any:
        return kernel.amplitude * np.exp(
            -((np.subtract.outer(a, b)) ** 2) / (2 * kernel.length_scale**2)
        )

    inverse = np.linalg.inv(k(points[:, 0], points[:, 0]) + kernel.noise * np.eye(len(points)))
    across = k(np.array([0.3]), points[:, 0])
    variance = kernel.amplitude + kernel.noise - across @ inverse @ across.T
    assert fitted.predict(0.3, "paper").r_mean == pytest.approx(
        float((across @ inverse @ points[:, 1])[0]), abs=1e-8
    )
    assert fitted.predict(0.3, "paper").r_std == pytest.approx(math.sqrt(variance[0, 0]), abs=1e-8)


def test_predict_shapes(fitted: TinyFormula) -> None:
    assert all(isinstance(v, float) for v in fitted.predict(0.25))
    grid = fitted.predict(np.array([[0.1, 0.2], [0.25, 0.5]]))
    assert grid.r_mean.shape == grid.d_std.shape == (2, 2)
    assert grid.r_mean[1, 0] == pytest.approx(fitted.predict(0.25).r_mean, abs=1e-12)


@pytest.mark.parametrize("c", [0.0, -1.0, math.nan, math.inf, np.array([0.1, 0.0])])
def test_predict_rejects_invalid_c_and_form(c: Any, fitted: TinyFormula) -> None:
    with pytest.raises(RequestError, match="not a valid fraction"):
        fitted.predict(c)
    with pytest.raises(RequestError, match="form 'papr': did you mean 'paper'"):
        fitted.predict(0.5, "papr")


def test_fit_is_close_to_the_points_and_within_bounds(fitted: TinyFormula) -> None:
    predicted = fitted.predict(np.array([p[0] for p in fitted.points]))
    assert np.sqrt(np.mean((predicted.r_mean - [p[1] for p in fitted.points]) ** 2)) < 0.06
    assert (
        0.5 <= fitted.forms["default"]["r"].length_scale <= 5
        and 0.1 <= fitted.forms["paper"]["d"].length_scale <= 3
    )


def test_json_does_not_depend_on_the_order_of_points(fitted: TinyFormula) -> None:
    points = noisy_points()
    random.Random(3).shuffle(points)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = fit_formula(B0, points, provenance={"search": "test"}, num_classes=100)
    assert again.to_json() == fitted.to_json()
    read = TinyFormula.from_json(fitted.to_json(), "a file")
    assert read.to_json() == fitted.to_json() and read.source == "a file"
    assert read.predict(0.2) == fitted.predict(0.2)
    assert read.num_classes == 100 and read.provenance == {"search": "test"}


def test_json_schema(fitted: TinyFormula) -> None:
    data = json.loads(fitted.to_json())
    assert (
        " ".join(data)
        == "schema space space_version num_classes usable reason points forms range provenance"
    )
    assert data["range"] == [
        min(p["c"] for p in data["points"]),
        max(p["c"] for p in data["points"]),
    ]
    assert set(data["forms"]["paper"]["r"]) == {
        "amplitude",
        "length_scale",
        "noise",
        "mean",
        "log_c",
    }


@pytest.mark.parametrize("count", range(5))
def test_formula_of_fewer_than_five_points_is_unusable(count: int) -> None:
    formula = fit_formula(B0, noisy_points(count), provenance={})
    read = TinyFormula.from_json(formula.to_json(), "few.json")
    assert not read.usable and json.loads(read.to_json())["usable"] is False
    for use in (lambda: read.suggest(0.25), lambda: read.predict(0.25)):
        with pytest.raises(
            RequestError, match=rf"few.json is not usable: {count} frontier models, at least 5"
        ):
            use()


@pytest.mark.parametrize(
    "points", [[(0.5, 0.8, 1.1)] * 5, [(0.1 * i, 1.0, 1.0) for i in range(1, 7)]]
)
def test_identical_points(points: list[tuple[float, float, float]]) -> None:
    predicted = fit_formula(B0, points, provenance={}).predict(0.5)
    assert predicted.r_mean == pytest.approx(
        points[0][1], abs=1e-3
    ) and predicted.d_mean == pytest.approx(points[0][2], abs=1e-3)


@pytest.mark.parametrize(
    "bad",
    [
        (0.5, math.nan, 1.0),
        (0.0, 1.0, 1.0),
        (0.5, -1.0, 1.0),
        (0.5, 1.0, math.inf),
        (0.5, 1.0),
        ("x", 1, 1),
    ],
)
def test_invalid_points(bad: Any) -> None:
    with pytest.raises(RequestError, match="no formula can be fitted"):
        fit_formula(B0, [*noisy_points(6), bad], provenance={})


@pytest.mark.parametrize("bad", [{"when": object()}, {"top1": math.nan}])
def test_provenance_must_be_json(bad: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="no formula can be fitted"):
        fit_formula(B0, noisy_points(6), provenance=bad)


def test_published_formula_equals_the_output_of_the_script(script: types.ModuleType) -> None:
    refitted, published = (
        json.loads(script.published().to_json()),
        json.loads(PUBLISHED_FILE.read_text("utf-8")),
    )
    for form in ("paper", "default"):
        for target in "rd":
            assert refitted["forms"][form].pop(target) == pytest.approx(
                published["forms"][form].pop(target), rel=1e-9, abs=1e-12
            )
    assert refitted == published
    assert "released" in str(published["provenance"])
    assert "never published" in str(published["provenance"])
    assert "dips" in published["provenance"]["paper_form"]


def test_published_formula_is_a_valid_document() -> None:
    """``load`` reads it without validation, because a suggestion does not import pydantic."""
    text = PUBLISHED_FILE.read_text("utf-8")
    contents = parse(text)
    assert contents == FormulaContents.from_json(json.loads(text))
    loaded = TinyFormula.load("published")
    assert loaded == TinyFormula.from_json(text, "published") and loaded.to_json() == text


def test_published_formula_is_monotonic() -> None:
    predicted = TinyFormula.load("published").predict(np.geomspace(0.06, 0.9, 5001))
    assert (np.diff(predicted.r_mean) >= 0).all() and (np.diff(predicted.d_mean) >= 0).all()
    # The provenance states that the other form dips.
    paper = TinyFormula.load("published").predict(np.geomspace(0.06, 0.9, 5001), "paper")
    assert (np.diff(paper.r_mean) < 0).any()


# Frontiers of many models.


def test_many_points_are_thinned_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian_process, "RESTARTS", 0)
    points = sorted(noisy_points(2000))
    thinned = fit_formula(B0, noisy_points(2000), provenance={"search": "long"})
    assert len(thinned.points) == MAX_FITTED and set(thinned.points) < set(points)
    assert thinned.range == (points[0][0], points[-1][0])
    assert thinned.provenance == {"search": "long", "thinned_from": 2000}
    read = TinyFormula.from_json(thinned.to_json())
    assert read.to_json() == thinned.to_json() and read.predict(0.3) == thinned.predict(0.3)
    assert read.predict(0.3).r_mean == pytest.approx(1.1 * 0.3**0.25, abs=0.05)
    assert read.suggest(0.3).network.c == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize("count", [MAX_FITTED - 1, MAX_FITTED])
def test_few_points_are_not_thinned(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian_process, "RESTARTS", 0)
    points = noisy_points(count)
    formula = fit_formula(B0, points, provenance={})
    assert formula.points == tuple(sorted(points)) and formula.provenance == {}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.5]) | st.floats(0.03, 1.05), min_size=10, max_size=60),
    st.integers(2, 10),
)
def test_thinned_points_cover_all_points(costs: list[float], count: int) -> None:
    points = [(c, float(i), 1.0) for i, c in enumerate(sorted(costs))]
    taken = thin_points(points, count)
    assert len(set(taken)) == count and set(taken) <= set(points) and list(taken) == sorted(taken)
    assert (taken[0][0], taken[-1][0]) == (points[0][0], points[-1][0])
    x, kept = np.log([p[0] for p in points]), np.log([p[0] for p in taken])
    farthest = np.abs(x[:, None] - kept[None, :]).min(axis=1).max()
    assert farthest <= (x[-1] - x[0]) / count + 1e-9


@pytest.mark.slow
def test_formula_with_the_maximum_number_of_points_is_usable() -> None:
    points = [{"c": c, "r": r, "d": d} for c, r, d in sorted(noisy_points(MAX_POINTS))]
    ends = [points[0]["c"], points[-1]["c"]]
    formula = TinyFormula.from_json(changed(points=points, range=ends, forms=kernels(noise=0.01)))
    assert formula.suggest(0.3).network.c == pytest.approx(0.3, rel=0.03)
    with pytest.raises(RequestError, match=r"forms.paper.r is singular$"):
        TinyFormula.from_json(changed(points=points, range=ends, forms=kernels(noise=0.0)))


# Parsing of untrusted files.


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [prefix, *(path for key, item in inner for path in paths(item, (*prefix, key)))]


GOOD = json.loads(PUBLISHED_FILE.read_text("utf-8"))
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    5,
    1e308,
    10**400,
    1e-320,
    "",
    "x\n\x1b[31m",
    "\ud800",
    [],
    {},
    [[]],
    math.nan,
    math.inf,
    "os:getcwd",
]


def read_or_reject(text: str) -> TinyFormula | None:
    """Check that a text is a formula with finite values, or is rejected in one printable line."""
    try:
        formula = TinyFormula.from_json(text, "odd.json")
    except RequestError as error:
        assert "odd.json" in str(error) and str(error).isprintable() and len(str(error)) < 600
        return None
    assert TinyFormula.from_json(formula.to_json()).to_json() == formula.to_json()
    if formula.usable:
        assert all(
            math.isfinite(v) for form in ("paper", "default") for v in formula.predict(0.3, form)
        )
    return formula


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(paths(GOOD)[1:]),
    st.one_of(st.sampled_from(ODD), st.floats(), st.integers(), st.just("drop")),
)
def test_any_single_change_is_valid_or_rejected(path: tuple[Any, ...], value: Any) -> None:
    data = copy.deepcopy(GOOD)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    if value == "drop":
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    formula = read_or_reject(json.dumps(data))
    if formula is not None:
        try:
            formula.suggest(0.3)
        except RequestError as error:
            assert str(error).isprintable()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, len(PUBLISHED_FILE.read_text("utf-8"))), st.text(max_size=5), st.integers(0, 5)
)
def test_any_damage_is_valid_or_rejected(place: int, inserted: str, cut: int) -> None:
    text = PUBLISHED_FILE.read_text("utf-8")
    read_or_reject(text[:place] + inserted + text[place + cut :])
    assert place > len(text) - 2 or read_or_reject(text[:place]) is None


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_other_json_is_rejected(value: Any) -> None:
    assert read_or_reject(json.dumps(value)) is None


def changed(**fields: Any) -> str:
    return json.dumps({**GOOD, **fields})


def kernels(**fields: Any) -> dict[str, Any]:
    return {
        form: {target: {**GOOD["forms"][form][target], **fields} for target in "rd"}
        for form in GOOD["forms"]
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        (PUBLISHED_FILE.read_text("utf-8")[:-50], "not JSON"),
        (changed(schema=2), r"schema: expected 1 \(got 2\)"),
        (changed(schema=True), r"schema: Input should be a valid integer \(got True\)"),
        (changed(schema=1.0), "schema: Input should be a valid integer"),
        (changed(points=GOOD["points"] * 401), "points: List should have at most 2000 items"),
        (changed(space=None), r"space: Input should be a valid string \(got None\)"),
        (changed(num_classes=10**400), "num_classes: Input should be less than or equal to"),
        (changed(num_classes=True), r"num_classes: Input should be a valid integer"),
        (changed(usable=1), r"usable: Input should be a valid boolean"),
        (changed(usable=False), r"reason: Input should be a valid string"),
        (changed(usable=False, reason="few"), r"forms: Dictionary should have at most 0 items"),
        (changed(reason="few"), r"reason: Input should be None"),
        (" " * (MAX_BYTES + 1), "over 5 MB"),
        (
            changed(points=[{**GOOD["points"][0], "r": 0}, *GOOD["points"][1:]]),
            r"points\[0\].r: Input should be greater than or equal to 0.01 \(got 0\)",
        ),
        (
            changed(points=[{**GOOD["points"][0], "d": -1.0}, *GOOD["points"][1:]]),
            r"points\[0\].d: Input should be greater",
        ),
        (
            changed(points=[*GOOD["points"][1:], {**GOOD["points"][0], "c": True}]),
            r"\[4\].c: Input",
        ),
        (changed(points=[*GOOD["points"][1:], [0.05, 1, 1]]), r"points\[4\]: Input should be"),
        (changed(points=GOOD["points"][1:]), "points: List should have at least 5 items"),
        (changed(points=[*GOOD["points"][1:], {"c": 0.05, "r": 1}]), r"points\[4\].d: Field req"),
        (changed(range=[0.01, 1.0]), "range: does not match the range of the points"),
        (changed(range=None), "range: does not match the range of the points"),
        (changed(forms={"default": GOOD["forms"]["default"]}), "forms.paper: Field required"),
        (changed(forms=kernels(noise=math.nan)), r"forms.paper.r.noise: Input should be a finite"),
        (changed(forms=kernels(amplitude=-1)), "forms.paper.r.amplitude: Input should be greater"),
        (changed(forms=kernels(amplitude=10**400)), "forms.paper.r.amplitude: Input should be"),
        (
            changed(forms=kernels(length_scale="1")),
            r"forms.paper.r.length_scale: Input should be a valid number \(got '1'\)",
        ),
        (changed(forms=kernels(log_c=1)), "forms.paper.r.log_c: Input should be a valid boolean"),
        (changed(provenance=[]), "provenance: Input should be a valid dictionary"),
        (
            changed(forms=kernels(noise=0.0, length_scale=1e5)),
            "kernel matrix of forms.paper.r is singular",
        ),
        (
            changed(forms=kernels(noise=0.0), points=[GOOD["points"][0], *GOOD["points"]]),
            "singular",
        ),
        (
            changed(provenance={"x": json.loads("[" * 200 + "]" * 200)}),
            "provenance: nested too deep",
        ),
        (
            PUBLISHED_FILE.read_text("utf-8").replace(
                '"fitted_to": ', '"fitted_to": 1e999, "was": '
            ),
            "provenance: a number is not finite",
        ),
    ],
)
def test_damaged_formula_is_rejected_with_the_field(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        TinyFormula.from_json(text, "odd.json")
    assert str(caught.value).startswith("formula odd.json: ") and "\n" not in str(caught.value)


def test_files(tmp_path: Path, fitted: TinyFormula) -> None:
    good, binary, big = tmp_path / "good.json", tmp_path / "binary.json", tmp_path / "big.json"
    good.write_text(fitted.to_json(), "utf-8")
    binary.write_bytes(b"\xff\xfe\x00")
    big.write_bytes(b" " * (MAX_BYTES + 1))
    assert (
        TinyFormula.load(good).to_json()
        == TinyFormula.load(str(good)).to_json()
        == fitted.to_json()
    )
    (tmp_path / "folder.json").mkdir()
    messages = {
        "none.json": "no such file",
        "folder.json": "no such file",
        "binary.json": "not UTF-8",
        "big.json": "over 5 MB",
    }
    for name, message in messages.items():
        with pytest.raises(RequestError, match=message) as caught:
            TinyFormula.load(tmp_path / name)
        assert name in str(caught.value)
    for name in ("publishd", "runs:/1/formula.json.pkl", ""):
        with pytest.raises(RequestError, match="unknown formula"):
            TinyFormula.load(name)


# SQLAlchemy 2.1 warns about MLflow's mapping when a store is first loaded.
mlflow_store = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, fitted: TinyFormula) -> str:
    """A tracking database with tiny-formula@champion and tiny-formula@logged.

    Version 1 (champion) is registered from files, version 2 (logged) from a logged model.
    """
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    for name, text in (
        ("formula", fitted.to_json()),
        ("damaged", fitted.to_json()[:-9]),
        ("empty", None),
    ):
        (folder / name).mkdir()
        (folder / name / ("other.txt" if text is None else "formula.json")).write_text(
            text or "nothing", "utf-8"
        )
    experiment = client.create_experiment(
        "formula", artifact_location=(folder / "artifacts").as_uri()
    )
    logged = client.create_logged_model(experiment, name="tiny-formula")
    client.log_model_artifacts(logged.model_id, str(folder / "formula"))
    client.finalize_logged_model(logged.model_id, "READY")
    client.create_registered_model("tiny-formula")
    sources = {
        "champion": str(folder / "formula"),
        "logged": f"models:/{logged.model_id}",
        "damaged": str(folder / "damaged"),
        "empty": str(folder / "empty"),
    }
    with pytest.MonkeyPatch.context() as environment:
        # MLflow resolves a logged model with its default URI, not with that of the client.
        environment.setenv("MLFLOW_TRACKING_URI", uri)
        for alias, source in sources.items():
            version = client.create_model_version(
                "tiny-formula", source, model_id=logged.model_id if alias == "logged" else None
            )
            client.set_registered_model_alias("tiny-formula", alias, version.version)
    return uri


@mlflow_store
@pytest.mark.parametrize("name", ["@champion", "/1", "@logged", "/2", "@champion/"])
def test_registered_model(
    name: str, registry: str, fitted: TinyFormula, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri()
    formula = TinyFormula.load(f"models:/tiny-formula{name}", tracking_uri=registry)
    assert formula.to_json() == fitted.to_json() and formula.source == f"models:/tiny-formula{name}"
    assert mlflow.get_tracking_uri() == before


@mlflow_store
def test_registered_model_at_the_default_tracking_uri(
    registry: str, fitted: TinyFormula, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    assert TinyFormula.load("models:/tiny-formula@champion").to_json() == fitted.to_json()


@mlflow_store
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/tiny-formula@missing", "no formula models:/tiny-formula@missing"),
        ("models:/tiny-formula/99", "no formula models:/tiny-formula/99"),
        ("models:/nothing@champion", "no formula models:/nothing@champion"),
        ("models:/tiny-formula@empty", "does not contain formula.json"),
        ("models:/tiny-formula@damaged", "formula models:/tiny-formula@damaged: not JSON"),
        ("models:/tiny-formula", "is not a registered model"),
        ("models:tiny-formula@champion", "is not a registered model"),
        ("models:/tiny-formula/1/../../x", "is not a registered model"),
    ],
)
def test_invalid_registered_model_is_rejected(name: str, message: str, registry: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        TinyFormula.load(name, tracking_uri=registry)
    assert str(caught.value).isprintable()


@mlflow_store
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///{}/none.db", "file://{}/mlruns"])
def test_unreachable_mlflow_raises(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = uri.format(tmp_path)
    with pytest.raises(TrackingError, match="MLflow") as caught:
        TinyFormula.load("models:/tiny-formula@champion", tracking_uri=address)
    assert address in str(caught.value) and str(caught.value).isprintable()
    assert not (tmp_path / "none.db").exists()


def test_messages_do_not_contain_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9 ") as caught:
        TinyFormula.load(
            "models:/tiny-formula@champion", tracking_uri="http://me:secret@127.0.0.1:9"
        )
    assert "secret" not in str(caught.value)


def test_predictions_are_not_clipped_to_ranges_narrower_than_the_points() -> None:
    """A search may draw below the ranges of its space: r = .2 is not raised to the range's .35."""
    formula = fit_formula(
        B0, [(c, 0.2 + 0.01 * c, 0.5) for c in (0.05, 0.08, 0.12, 0.2, 0.3)], provenance={}
    )
    suggestion = formula.suggest(0.1)
    assert suggestion.resolution == int(224 * suggestion.r_mean + 1e-6)
    assert suggestion.note is None
    assert suggestion.r < B0.ranges["r"][0]
