"""A mixture of regressions in the words of its papers: numpy, one sample's data, plain loops."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize


def variation(b: np.ndarray) -> float:
    return float(sum(abs(b[j] - b[j + 1]) for j in range(len(b) - 1)))


def fused(gram: np.ndarray, cross: np.ndarray, penalty: float) -> np.ndarray:
    """min b'Gb / 2 - c'b + penalty TV(b), as a smooth problem with bounds: jumps are up - down."""
    size = len(cross)
    lower = np.tril(np.ones((size, size - 1)), -1)
    turn = np.hstack([np.ones((size, 1)), lower, -lower])

    def value(t: np.ndarray) -> tuple[float, np.ndarray]:
        b = turn @ t
        slope = turn.T @ (gram @ b - cross)
        slope[1:] += penalty
        return float(b @ gram @ b / 2 - cross @ b + penalty * t[1:].sum()), slope

    bounds = [(None, None)] + [(0, None)] * (2 * size - 2)
    start = np.zeros(2 * size - 1)
    options = {"maxiter": 20000, "maxfun": 100000, "ftol": 1e-16, "gtol": 1e-12, "maxcor": 40}
    found = minimize(value, start, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    return turn @ found.x


def density(y: float, mean: float, sigma: float) -> float:
    return math.exp(-((y - mean) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))


def em(
    x: np.ndarray,
    y: np.ndarray,
    planes: list[np.ndarray],
    share: np.ndarray,
    sigma: np.ndarray,
    steps: int,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, list[float]]:
    """The ordinary mixture of linear regressions (no penalty); planes: (offset, weights) each.

    Returns planes, shares, sigmas and the log-likelihood before every step and after the last.
    """  # fmt: skip
    n, count = len(y), len(planes)
    design = np.hstack([np.ones((n, 1)), x])
    said = []

    def each() -> np.ndarray:
        return np.array(
            [
                [share[k] * density(y[i], design[i] @ planes[k], sigma[k]) for k in range(count)]
                for i in range(n)
            ]
        )

    for _ in range(steps):
        parts = each()
        said.append(float(np.log(parts.sum(1)).sum()))
        owned = parts / parts.sum(1, keepdims=True)
        for k in range(count):
            w = owned[:, k]
            planes[k] = np.linalg.solve(design.T @ (w[:, None] * design), design.T @ (w * y))
            sigma[k] = math.sqrt(float(w @ (y - design @ planes[k]) ** 2) / w.sum())
            share[k] = w.mean()
    said.append(float(np.log(each().sum(1)).sum()))
    return planes, share, sigma, said
