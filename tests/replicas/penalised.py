"""Steps of penalty attacks in the words of their papers, entry by entry."""

from __future__ import annotations

import math


def adam(
    path: list[list[float]], start: list[float], steps: list[float], box: tuple[float, float]
) -> list[float]:
    """Kingma and Ba 2015 on one vector: gradients `path`, a step length each, cut by a box."""
    at, m, v = list(start), [0.0] * len(start), [0.0] * len(start)
    for t, (gradient, alpha) in enumerate(zip(path, steps, strict=True), start=1):
        for i, g in enumerate(gradient):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            m_hat, v_hat = m[i] / (1 - 0.9**t), v[i] / (1 - 0.999**t)
            at[i] = min(max(at[i] - alpha * m_hat / math.sqrt(v_hat), box[0]), box[1])
    return at


def shrink(z: float, beta: float, box: tuple[float, float]) -> float:
    """Chen et al. 2018, Eq. 5, of a change: S_beta within the box."""
    if z > beta:
        return min(z - beta, box[1])
    if z < -beta:
        return max(z + beta, box[0])
    return 0.0


def fista(
    path: list[list[float]],
    start: list[float],
    steps: list[float],
    box: tuple[float, float],
    squared: float,
) -> list[float]:
    """Chen et al. 2018, Algorithm 1: x from y by shrinking, y by k / (k + 3) further.

    path: the gradients of the hinge at each y; squared: the factor of the squared term, where
    that of L1 is 1. Returns the last y.
    """
    x, y = list(start), list(start)
    for k, (gradient, alpha) in enumerate(zip(path, steps, strict=True)):
        for i, g in enumerate(gradient):
            new = shrink(y[i] - alpha * (g + 2 * squared * y[i]), alpha, box)
            y[i] = min(max(new + k / (k + 3) * (new - x[i]), box[0]), box[1])
            x[i] = new
    return y
