"""A Gaussian process over many points, in time that grows with their number and not with its cube.

Within the range of c that a search spans the kernel is so smooth that, to rounding, its matrix over any number of points has
a rank of some dozens: K = B H B^T, with B an orthonormal basis of the polynomials on the points and H the kernel at Chebyshev
nodes seen in that basis. Likelihood and posterior follow from H alone; nothing is left out and no point is dropped.
"""

import math
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Points from which on this way is taken: below it, scikit-learn and a dense matrix take a second or two.
MANY = 128
# Nodes for a span of no length scale at all, and more for each length scale of the span: the kernel's error is then rounding.
NODES, NODES_A_SCALE = 20, 8
# Beyond these a length scale is too short for its points to be worth it.
MOST_NODES = 160


def nodes_for(x: Array, shortest: float) -> int | None:
    """Chebyshev nodes that carry a kernel of at least this length scale over the points; None where too many would be needed."""
    count = NODES + math.ceil(NODES_A_SCALE * float(np.ptp(x)) / shortest)
    return count if count <= min(MOST_NODES, len(x)) else None


class Basis:
    """Orthonormal polynomials on the points x, (n,), up to the degree that ``count`` nodes determine."""

    def __init__(self, x: Array, count: int) -> None:
        middle, half = (x.max() + x.min()) / 2, max(float(np.ptp(x)) / 2, 1e-12)
        unit = np.cos(np.pi * (np.arange(count) + 0.5) / count)
        self.nodes = middle + half * unit
        self.columns, upper = np.linalg.qr(chebyshev.chebvander((x - middle) / half, count - 1))
        weights = 2.0 / count * chebyshev.chebvander(unit, count - 1).T
        weights[0] /= 2
        self._seen = upper @ weights
        self._apart = (self.nodes[:, None] - self.nodes[None, :]) ** 2

    def kernel(self, length_scale: float) -> tuple[Array, Array]:
        """The kernel of amplitude 1 in this basis, (count, count), and its derivative by the log of the length scale."""
        apart = self._apart / length_scale**2
        plain = np.exp(-0.5 * apart)
        return self._seen @ plain @ self._seen.T, self._seen @ (plain * apart) @ self._seen.T


class Likelihood:
    """Minus the log marginal likelihood of targets y, (n,), and its gradient, by the logs of amplitude, length scale and noise."""

    def __init__(self, basis: Basis, y: Array) -> None:
        self._basis, self._n = basis, len(y)
        self._seen = basis.columns.T @ y
        self._beyond = max(float(y @ y - self._seen @ self._seen), 0.0)

    def __call__(self, theta: Array) -> tuple[float, Array]:
        amplitude, length_scale, noise = np.exp(theta)
        plain, slope = self._basis.kernel(length_scale)
        rest = self._n - len(plain)
        lower = np.linalg.cholesky(amplitude * plain + noise * np.eye(len(plain)))
        inverse = np.linalg.inv(lower)
        inverse = inverse.T @ inverse
        weights = inverse @ self._seen
        value = 0.5 * (
            self._seen @ weights
            + self._beyond / noise
            + rest * theta[2]
            + self._n * math.log(2 * math.pi)
        )
        value += float(np.log(np.diag(lower)).sum())
        steps = [amplitude * plain, amplitude * slope]
        gradient = [0.5 * (np.sum(inverse * step) - weights @ step @ weights) for step in steps]
        own = noise * (np.trace(inverse) - weights @ weights) + rest - self._beyond / noise
        return float(value), np.array([*gradient, 0.5 * own])


class SmoothPosterior:
    """Equation 4 over many points, as ``gaussian.Posterior`` gives it.

    Raises:
        numpy.linalg.LinAlgError: the kernel matrix is singular.
    """

    def __init__(self, kernel: Any, x: Array, targets: Array, count: int) -> None:
        self._kernel, self._x, self._basis = kernel, x, Basis(x, count)
        plain, _ = self._basis.kernel(kernel.length_scale)
        # More points than the rank: the matrix's smallest eigenvalue is the noise.
        if kernel.noise <= 8 * len(x) * np.finfo(float).eps * (kernel.amplitude + kernel.noise):
            raise np.linalg.LinAlgError("singular kernel matrix")
        self._lower = np.linalg.cholesky(kernel.amplitude * plain + kernel.noise * np.eye(count))
        self._weights = np.linalg.solve(
            self._lower.T,
            np.linalg.solve(self._lower, self._basis.columns.T @ (targets - kernel.mean)),
        )

    def __call__(self, c: Any) -> tuple[Array, Array]:
        across = self._kernel.covariance(self._kernel.inputs(c), self._x) @ self._basis.columns
        mean = self._kernel.mean + across @ self._weights
        explained = np.linalg.solve(self._lower, across.T)
        variance = (
            self._kernel.amplitude
            + self._kernel.noise
            - np.einsum("ij,ij->j", explained, explained)
        )
        return mean, np.sqrt(np.maximum(variance, 0.0))
