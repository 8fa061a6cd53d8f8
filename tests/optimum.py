"""The smallest perturbation that flips a linear model, by algebra that owes nothing to foible."""

from __future__ import annotations

import numpy as np
from conftest import LinearCase
from scipy.optimize import linprog, minimize
from torch import Tensor


def pairwise(norm: str, gain: np.ndarray, room: np.ndarray, margin: float) -> float:
    """The least size of d with gain . d >= margin and 0 <= d <= room, all signs taken out."""
    if margin <= 0:
        return 0.0
    if float((gain * np.where(gain > 0, room, 0.0)).sum()) < margin:
        return float("inf")
    if norm == "linf":
        # sum gain min(eps, room) is piecewise linear in eps with corners at the rooms.
        reached, slope, at = 0.0, float(gain.sum()), 0.0
        for i in np.argsort(room):
            if reached + slope * (room[i] - at) >= margin:
                break
            reached, at, slope = reached + slope * (room[i] - at), room[i], slope - gain[i]
        return at + (margin - reached) / slope
    if norm == "l2":
        low, high = 0.0, 1.0
        while (gain * np.minimum(high * gain, room)).sum() < margin:
            high *= 2
        for _ in range(200):
            middle = (low + high) / 2
            enough = (gain * np.minimum(middle * gain, room)).sum() >= margin
            low, high = (low, middle) if enough else (middle, high)
        return float(np.linalg.norm(np.minimum(high * gain, room)))
    if norm == "l1":
        used = 0.0
        for i in np.argsort(-gain):
            if gain[i] * room[i] >= margin:
                return used + margin / gain[i]
            used, margin = used + room[i], margin - gain[i] * room[i]
    if norm == "l0":
        return float(np.searchsorted(np.cumsum(-np.sort(-gain * room)), margin - 1e-12) + 1)
    raise AssertionError(norm)


def room_of(case: LinearCase, x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    low, high = case.bounds
    return np.where(gain > 0, high - x, x - low)


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().double().numpy()


def untargeted(case: LinearCase, norm: str) -> np.ndarray:
    """The least eps of each row that loses its label: the least over the other classes."""
    w, b, xs = _numpy(case.weight), _numpy(case.bias), _numpy(case.x)
    found = []
    for x, y in zip(xs, case.y.tolist(), strict=True):
        z, best = w @ x + b, float("inf")
        for j in range(len(w)):
            if j != y:
                g = w[j] - w[y]
                best = min(best, pairwise(norm, np.abs(g), room_of(case, x, g), z[y] - z[j]))
        found.append(best)
    return np.array(found)


def targeted(case: LinearCase, norm: str) -> np.ndarray:
    """The least eps of each row at which the target beats every other class; inf for never."""
    w, b, xs = _numpy(case.weight), _numpy(case.bias), _numpy(case.x)
    found = []
    for x, t in zip(xs, case.target.tolist(), strict=True):
        others = [j for j in range(len(w)) if j != t]
        a, c = w[others] - w[t], (w @ x + b)[t] - (w @ x + b)[others]  # a d <= c
        found.append(_smallest(norm, a, c, case.bounds[0] - x, case.bounds[1] - x))
    return np.array(found)


def _smallest(norm: str, a: np.ndarray, c: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The least |d| with a d <= c and low <= d <= high; d = p - q, both at least 0."""
    n = a.shape[1]
    if norm == "linf":
        cost = np.r_[np.zeros(n), 1.0]
        eye, one = np.eye(n), np.ones((n, 1))
        rows = np.block([[a, np.zeros((len(a), 1))], [eye, -one], [-eye, -one]])
        right = np.r_[c, np.zeros(2 * n)]
        bounds = [*zip(low, high, strict=True), (0, None)]
    else:  # the linear programme for L1; also where the search for L2 starts
        cost, rows, right = np.ones(2 * n), np.hstack([a, -a]), c
        bounds = [(0, h) for h in high] + [(0, -lo) for lo in low]
    answer = linprog(cost, A_ub=rows, b_ub=right, bounds=bounds, method="highs")
    if answer.status == 2:
        return float("inf")
    assert answer.status == 0, answer.message
    if norm != "l2":
        return float(answer.fun)
    quadratic = minimize(
        lambda d: 0.5 * float(d @ d), answer.x[:n] - answer.x[n:], jac=lambda d: d,
        bounds=list(zip(low, high, strict=True)), method="SLSQP",
        constraints={"type": "ineq", "fun": lambda d: c - a @ d, "jac": lambda d: -a},
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert (a @ quadratic.x <= c + 1e-8).all(), quadratic.message
    return float(np.linalg.norm(quadratic.x))


def _pair(case: LinearCase, norm: str, x: np.ndarray, y: int, j: int) -> float:
    w, b = _numpy(case.weight), _numpy(case.bias)
    g, z = w[j] - w[y], w @ x + b
    return pairwise(norm, np.abs(g), room_of(case, x, g), z[y] - z[j])


def runner_up(case: LinearCase, norm: str) -> np.ndarray:
    """The least eps at which each row falls to the class of its second largest clean score."""
    w, b, xs = _numpy(case.weight), _numpy(case.bias), _numpy(case.x)
    second = [int(np.argsort(w @ x + b)[-2]) for x in xs]
    y = case.y.tolist()
    return np.array([_pair(case, norm, x, a, j) for x, a, j in zip(xs, y, second, strict=True)])


def only_the_label(case: LinearCase, norm: str) -> np.ndarray:
    """The least eps at which the target beats the label, whatever the other classes do."""
    both = zip(_numpy(case.x), case.y.tolist(), case.target.tolist(), strict=True)
    return np.array([_pair(case, norm, x, y, t) for x, y, t in both])
