"""Cost of fitting the formula to many frontier models, and the effect of fitting it to only 200.

Run by ``python -m benchmarks.run formula_fit``. The fit uses a dense kernel matrix.

The models are the frontiers of searches on EfficientNet-B0 with synthetic top-1: it rises with c,
is highest near a curve of r and d, and has noise. One thread is used. Times are the CPU times of
the process, since other processes share the machine.
"""

import importlib
import math
import random
import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.measure import Row
from search_spaces import Network, get_space
from search_spaces.samplers import draw
from tinynet_search.formula.frontier import TrialPoint, select_frontier
from tinynet_search.formula.gaussian_process import (
    BOUNDS,
    MAX_FITTED,
    Kernel,
    fit_kernel,
    thin_points,
)
from tinynet_search.formula.tiny_formula import TinyFormula

SPACE = get_space("efficientnet_b0")
# Sizes of the frontier; the search has five times as many trials.
SIZES = (128, 200, 500, 1000)
LARGEST_SIZE = 2000
FRACTION = 0.2
BUDGETS = np.geomspace(0.06, 0.9, 28)
# Seconds that a driver may spend on a formula; a frontier whose fit takes longer is thinned.
TARGET = 10.0

Points = list[tuple[float, float, float]]


def run() -> list[Row]:
    # Import before the timing, so that it does not count towards the first fit.
    importlib.import_module("sklearn.gaussian_process")
    rows: list[Row] = []
    with threadpool_limits(limits=1):
        for count in SIZES:
            points = frontier(count)
            forms, fit_rows = _fit(points)
            rows += fit_rows
            if count > MAX_FITTED:
                rows += _thinning(points, forms)
        rows.append(_evaluation(frontier(LARGEST_SIZE)))
    return rows


def frontier(count: int) -> Points:
    """(c, r, d) of the ``count`` frontier models of a search, sorted by c."""
    networks = draw(SPACE, "uniform", round(count / FRACTION), seed=0)
    trials = [TrialPoint(n.key, n.rdw, n.c, _top1(n), "finished") for n in networks]
    models = select_frontier(trials, fraction=FRACTION)
    return sorted((model.c, model.rdw[0], model.rdw[1]) for model in models)


def _top1(network: Network) -> float:
    log_c, noise = math.log(network.c), random.Random(network.key).gauss(0.0, 0.7)
    r_off = math.log(network.rdw.r) - 0.25 * log_c - 0.05
    d_off = math.log(network.rdw.d) - 0.3 * log_c
    return 30.0 + 40.0 * network.c**0.3 - 8.0 * (r_off**2 + d_off**2) + noise


def _fit(points: Points) -> tuple[dict[str, dict[str, Kernel]], list[Row]]:
    """Fit the four kernels one by one, as ``fit_forms`` does; also return a row for each time."""
    c, r, d = zip(*points, strict=True)
    forms: dict[str, dict[str, Kernel]] = {}
    rows: list[Row] = []
    started = time.perf_counter()
    for form in BOUNDS:
        is_default = form == "default"
        forms[form] = {}
        for target, values in (("r", r), ("d", d)):
            kernel_started = time.process_time()
            forms[form][target] = fit_kernel(
                c, values, log_c=is_default, centred=is_default, bounds=BOUNDS[form], seed=0
            )
            name = f"{len(points):,} points: {form} {target}, CPU"
            rows.append(Row(name, time.process_time() - kernel_started, "s"))
    wall = time.perf_counter() - started
    cpu = sum(row.value for row in rows)
    target = TARGET if len(points) == 500 else None
    total = Row(f"{len(points):,} points: all four kernels, CPU", cpu, "s", target)
    return forms, [*rows, total, Row(f"{len(points):,} points: all four kernels, wall", wall, "s")]


def _thinning(points: Points, forms: dict[str, dict[str, Kernel]]) -> list[Row]:
    """Compare the predictions of formulas fitted to ``MAX_FITTED`` points and to all points."""
    kept = list(thin_points(points, MAX_FITTED))
    thinned_forms, _ = _fit(kept)
    full, thinned = _formula(points, forms), _formula(kept, thinned_forms)
    rows: list[Row] = []
    for form in BOUNDS:
        a, b = full.predict(BUDGETS, form), thinned.predict(BUDGETS, form)
        for target, before, after, std in (
            ("r", a.r_mean, b.r_mean, a.r_std),
            ("d", a.d_mean, b.d_mean, a.d_std),
        ):
            name = f"{len(points):,} points, {MAX_FITTED} of them fitted: {form} {target}(c)"
            rms = float(np.sqrt(np.mean((after - before) ** 2)))
            rows.append(Row(f"{name} moves by (root mean square)", rms, ""))
            rows.append(Row(f"{name}, standard deviation", float(np.mean(std)), ""))
    pixels = [
        abs(full.suggest(float(c)).resolution - thinned.suggest(float(c)).resolution)
        for c in BUDGETS
    ]
    name = (
        f"{len(points):,} points, {MAX_FITTED} of them fitted: resolution of suggestions moves by"
    )
    return [
        *rows,
        Row(f"{name} (mean)", float(np.mean(pixels)), "pixels"),
        Row(f"{name} (most)", float(max(pixels)), "pixels"),
    ]


def _formula(points: Points, forms: dict[str, dict[str, Kernel]]) -> TinyFormula:
    return TinyFormula(
        SPACE.name, SPACE.version, SPACE.num_classes, tuple(points), forms, provenance={}
    )


def _evaluation(points: Points) -> Row:
    """Time one evaluation of the likelihood and its gradient.

    Fitting four kernels takes about 1,500 evaluations.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    c, r, _ = zip(*points, strict=True)
    prior = ConstantKernel(1.0) * RBF(1.0) + WhiteKernel(0.05)
    fixed: Any = {"alpha": 0, "optimizer": None}
    regressor: Any = GaussianProcessRegressor(prior, **fixed)
    regressor.fit(np.log(c)[:, None], np.array(r))
    started = time.process_time()
    regressor.log_marginal_likelihood(regressor.kernel_.theta, eval_gradient=True)
    seconds = time.process_time() - started
    return Row(f"{len(points):,} points: one evaluation of the likelihood, CPU", seconds, "s")
