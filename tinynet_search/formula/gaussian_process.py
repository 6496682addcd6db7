"""Gaussian process regression of one multiplier on c (equations 2-4): fitted by scikit-learn, used with numpy alone.

Called by ``tiny_formula``, which fits at most ``MOST_FITTED`` points.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESTARTS = 9
# The time of a fit grows with the cube of the points: some 4 s of 200, 30 s of 500 (benchmarks/formula_fit.py).
MOST_FITTED = 200

Points = Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Kernel:
    """``amplitude * exp(-(x - x')^2 / (2 length_scale^2))`` plus white noise, on targets less their mean.

    Attributes:
        amplitude, noise: variances, the noise the paper's sigma squared.
        length_scale: in units of c, or of log c where ``log_c``.
        mean: what was subtracted from the targets; 0 is the paper's zero-mean prior.
        log_c: whether x is log c rather than c.
    """

    amplitude: float
    length_scale: float
    noise: float
    mean: float
    log_c: bool

    def inputs(self, c: Any) -> NDArray[np.float64]:
        """x of each c, (len(c),)."""
        values = np.atleast_1d(np.asarray(c, float))
        return np.log(values) if self.log_c else values

    def covariance(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        """K(a, b) without the noise, (len(a), len(b))."""
        return self.amplitude * np.exp(-0.5 * ((a[:, None] - b[None, :]) / self.length_scale) ** 2)


@dataclass(frozen=True)
class Bounds:
    """Where the likelihood may look: without bounds a length scale runs away or collapses on so few points."""

    amplitude: tuple[float, float]
    length_scale: tuple[float, float]
    noise: tuple[float, float]


# Frontier models span c = .03-1.05, which is 3.6 in log c, and r and d of .35-2.8.
BOUNDS = {
    "paper": Bounds(amplitude=(0.01, 100.0), length_scale=(0.1, 3.0), noise=(1e-4, 1.0)),
    "default": Bounds(amplitude=(1e-3, 10.0), length_scale=(0.5, 5.0), noise=(1e-6, 1.0)),
}


class Posterior:
    """Equation 4 for one target: the distribution of r* (or d*) given the training points.

    Args:
        kernel: covariance and mean.
        c, targets: the training points, equally long.

    Raises:
        numpy.linalg.LinAlgError: the kernel matrix is singular.
    """

    def __init__(self, kernel: Kernel, c: Sequence[float], targets: Sequence[float]) -> None:
        self.kernel, self.x = kernel, kernel.inputs(c)
        matrix = kernel.covariance(self.x, self.x) + kernel.noise * np.eye(len(self.x))
        self.lower = np.linalg.cholesky(matrix)
        # Rounding lets a singular matrix through with a last pivot of nearly nothing.
        if np.min(np.diag(self.lower)) ** 2 <= 8 * len(self.x) * np.finfo(float).eps * (
            kernel.amplitude + kernel.noise
        ):
            raise np.linalg.LinAlgError("singular kernel matrix")
        self.weights = np.linalg.solve(
            self.lower.T, np.linalg.solve(self.lower, np.asarray(targets, float) - kernel.mean)
        )

    def __call__(self, c: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation at each c, both (len(c),); the variance includes the noise, as in equation 4."""
        across = self.kernel.covariance(self.kernel.inputs(c), self.x)
        mean = self.kernel.mean + across @ self.weights
        explained = np.linalg.solve(self.lower, across.T)
        variance = (
            self.kernel.amplitude + self.kernel.noise - np.einsum("ij,ij->j", explained, explained)
        )
        return mean, np.sqrt(np.maximum(variance, 0.0))


def spread(points: Points, count: int) -> Points:
    """The ``count`` points that span log c best, of more (c, r, d) points by rising c.

    Both ends are taken, then repeatedly the point that is farthest in log c from all that are taken: none is then farther
    than twice what the best choice could reach (Gonzalez 1985). r and d have no part in it, which would change their noise.
    """
    x = np.log([c for c, _, _ in points])
    taken = [0, len(x) - 1]
    distance = np.minimum(x - x[0], x[-1] - x)
    distance[taken] = -1.0
    while len(taken) < count:
        farthest = int(np.argmax(distance))
        taken.append(farthest)
        distance = np.minimum(distance, np.abs(x - x[farthest]))
        # Below a point of equal c that is not taken.
        distance[farthest] = -1.0
    return [points[i] for i in sorted(taken)]


def fit_forms(
    points: Points,
    seed: int,
    bounds: Mapping[tuple[str, str], Bounds],
) -> dict[str, dict[str, Kernel]]:
    """Kernels by form and target for (c, r, d) points; ``bounds`` by (form, target), where not those of ``BOUNDS``."""
    from threadpoolctl import threadpool_limits

    c, r, d = zip(*points, strict=True)

    def fitted(form: str, target: str) -> Kernel:
        ours, box = form == "default", bounds.get((form, target), BOUNDS[form])
        return fit_kernel(
            c, r if target == "r" else d, log_c=ours, centred=ours, bounds=box, seed=seed
        )

    # Matrices this small gain nothing from a second thread, and on busy cores the threads wait for each other.
    with threadpool_limits(limits=1):
        return {form: {target: fitted(form, target) for target in "rd"} for form in BOUNDS}


def fit_kernel(
    c: Sequence[float],
    targets: Sequence[float],
    *,
    log_c: bool,
    centred: bool,
    bounds: Bounds,
    seed: int,
) -> Kernel:
    """The kernel of highest marginal likelihood within the bounds, from ``RESTARTS`` + 1 seeded starts.

    Hyper-parameters are kept to six digits: more would be the optimiser's rounding, and differ between machines.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    mean = float(np.mean(targets)) if centred else 0.0
    x, y = Kernel(1.0, 1.0, 0.0, mean, log_c).inputs(c), np.asarray(targets, float) - mean
    start = _middle(bounds)
    prior = ConstantKernel(start[0], bounds.amplitude) * RBF(
        start[1], bounds.length_scale
    ) + WhiteKernel(start[2], bounds.noise)
    search: Any = {"optimizer": _maximise, "n_restarts_optimizer": RESTARTS, "random_state": seed}
    regressor: Any = GaussianProcessRegressor(prior, alpha=0, normalize_y=False, **search)
    with warnings.catch_warnings():
        # A hyper-parameter at its bound is what the bounds are for.
        warnings.simplefilter("ignore")
        regressor.fit(x[:, None], y)
    amplitude, length_scale, noise = (float(f"{v:.6g}") for v in np.exp(regressor.kernel_.theta))
    return Kernel(amplitude, length_scale, noise, mean, log_c)


def _middle(bounds: Bounds) -> list[float]:
    return [
        math.sqrt(low * high) for low, high in (bounds.amplitude, bounds.length_scale, bounds.noise)
    ]


def _maximise(
    objective: Any, theta: NDArray[np.float64], bounds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """L-BFGS-B like scikit-learn's own, run until it stands still, so that all good starts end in one place."""
    from scipy.optimize import minimize

    found = minimize(
        objective,
        theta,
        method="L-BFGS-B",
        jac=True,
        bounds=bounds,
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 2000},
    )
    return found.x, float(found.fun)


class Prediction(NamedTuple):
    """The formula's resolution and depth multipliers at some c: means and standard deviations, floats or (len(c),) arrays."""

    r_mean: Any
    r_std: Any
    d_mean: Any
    d_std: Any
