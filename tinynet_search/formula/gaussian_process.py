"""Gaussian process regression of one multiplier on c (equations 2-4).

Called by ``tiny_formula``, which fits at most ``MAX_FITTED`` points. Fitting uses scikit-learn;
prediction needs only numpy.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESTARTS = 9
# The time of a fit grows with the cube of the number of points: about 4 s for 200 points and 30 s
# for 500 (benchmarks/formula_fit.py).
MAX_FITTED = 200

Points = Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Kernel:
    """``amplitude * exp(-(x - x')^2 / (2 length_scale^2))`` plus white noise, on centred targets.

    Attributes:
        amplitude: Variance of the signal.
        noise: Variance of the noise, sigma squared in the paper.
        length_scale: In units of c, or of log c if ``log_c``.
        mean: Mean subtracted from the targets; 0 is the paper's zero-mean prior.
        log_c: Whether x is log c instead of c.
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
    """Bounds of the hyper-parameters.

    Without bounds, the length scale diverges or collapses on this few points.
    """

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
        kernel: Covariance and mean.
        c, targets: The training points, of equal length.

    Raises:
        numpy.linalg.LinAlgError: The kernel matrix is singular.
    """

    def __init__(self, kernel: Kernel, c: Sequence[float], targets: Sequence[float]) -> None:
        self.kernel, self.x = kernel, kernel.inputs(c)
        matrix = kernel.covariance(self.x, self.x) + kernel.noise * np.eye(len(self.x))
        self.lower = np.linalg.cholesky(matrix)
        # With rounding, a singular matrix can pass the decomposition with a last pivot near zero.
        if np.min(np.diag(self.lower)) ** 2 <= 8 * len(self.x) * np.finfo(float).eps * (
            kernel.amplitude + kernel.noise
        ):
            raise np.linalg.LinAlgError("singular kernel matrix")
        self.weights = np.linalg.solve(
            self.lower.T, np.linalg.solve(self.lower, np.asarray(targets, float) - kernel.mean)
        )

    def __call__(self, c: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation at each c, both (len(c),).

        The variance includes the noise, as in equation 4.
        """
        across = self.kernel.covariance(self.kernel.inputs(c), self.x)
        mean = self.kernel.mean + across @ self.weights
        explained = np.linalg.solve(self.lower, across.T)
        variance = (
            self.kernel.amplitude + self.kernel.noise - np.einsum("ij,ij->j", explained, explained)
        )
        return mean, np.sqrt(np.maximum(variance, 0.0))

    def leave_one_out(self) -> NDArray[np.float64]:
        """Each target minus its mean given all other points, (points,).

        The hyper-parameters stay those of all points, so no matrix is decomposed again (Rasmussen
        and Williams 2006, equation 5.12).
        """
        inverse = np.linalg.inv(self.lower)
        return self.weights / np.einsum("ij,ij->j", inverse, inverse)


def thin_points(points: Points, count: int) -> Points:
    """Select ``count`` points that cover log c, from more (c, r, d) points sorted by c.

    Farthest-point selection: starts with both ends, then repeatedly adds the point that is farthest
    in log c from all selected ones. The largest distance from a point to a selected one is at most
    twice the optimum (Gonzalez 1985). r and d are not used, because that would change their noise.
    """
    x = np.log([c for c, _, _ in points])
    taken = [0, len(x) - 1]
    distance = np.minimum(x - x[0], x[-1] - x)
    distance[taken] = -1.0
    while len(taken) < count:
        farthest = int(np.argmax(distance))
        taken.append(farthest)
        distance = np.minimum(distance, np.abs(x - x[farthest]))
        # Lower than the distance 0 of an unselected point with the same c.
        distance[farthest] = -1.0
    return [points[i] for i in sorted(taken)]


def fit_forms(
    points: Points,
    seed: int,
    bounds: Mapping[tuple[str, str], Bounds],
) -> dict[str, dict[str, Kernel]]:
    """Fit the kernels to (c, r, d) points.

    Args:
        seed: Seed of the random restarts.
        bounds: Bounds by (form, target) that replace those of ``BOUNDS``.

    Returns:
        Kernels by form and target.
    """
    from threadpoolctl import threadpool_limits

    c, r, d = zip(*points, strict=True)

    def fitted(form: str, target: str) -> Kernel:
        default, box = form == "default", bounds.get((form, target), BOUNDS[form])
        return fit_kernel(
            c, r if target == "r" else d, log_c=default, centred=default, bounds=box, seed=seed
        )

    # A second thread does not speed up matrices this small, and on busy cores threads wait for each
    # other.
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
    """The kernel of highest marginal likelihood within the bounds, from ``RESTARTS`` + 1 starts.

    Hyper-parameters are rounded to six digits: further digits are numerical noise of the optimiser
    and differ between machines.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    mean = float(np.mean(targets)) if centred else 0.0
    x, y = Kernel(1.0, 1.0, 0.0, mean, log_c).inputs(c), np.asarray(targets, float) - mean
    start = _middle(bounds)
    prior = ConstantKernel(start[0], bounds.amplitude) * RBF(
        start[1], bounds.length_scale
    ) + WhiteKernel(start[2], bounds.noise)
    search: Any = {"optimizer": _optimise, "n_restarts_optimizer": RESTARTS, "random_state": seed}
    regressor: Any = GaussianProcessRegressor(prior, alpha=0, normalize_y=False, **search)
    with warnings.catch_warnings():
        # scikit-learn warns of hyper-parameters at a bound, which is expected here.
        warnings.simplefilter("ignore")
        regressor.fit(x[:, None], y)
    amplitude, length_scale, noise = (float(f"{v:.6g}") for v in np.exp(regressor.kernel_.theta))
    return Kernel(amplitude, length_scale, noise, mean, log_c)


def _middle(bounds: Bounds) -> list[float]:
    return [
        math.sqrt(low * high) for low, high in (bounds.amplitude, bounds.length_scale, bounds.noise)
    ]


def _optimise(
    objective: Any, theta: NDArray[np.float64], bounds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """L-BFGS-B as in scikit-learn, run to convergence so that all good starts agree."""
    from scipy.optimize import minimize

    result = minimize(
        objective,
        theta,
        method="L-BFGS-B",
        jac=True,
        bounds=bounds,
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 2000},
    )
    return result.x, float(result.fun)


class Prediction(NamedTuple):
    """Means and standard deviations of r and d at c, as floats or (len(c),) arrays."""

    r_mean: Any
    r_std: Any
    d_mean: Any
    d_std: Any
