"""Intervals, rank statistics, and the binomial distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float] | None:
    """Return the 95 % Wilson interval of a rate; None for zero of zero, which is not measured.

    >>> low, high = wilson(0, 100)
    >>> low, round(high, 3)
    (0.0, 0.037)
    """
    if n == 0:
        return None
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    return low, 1.0 if hits == n else min(1.0, centre + half)


def mean_interval(values: Tensor, z: float = 1.959963984540054) -> list[float] | None:
    """Return [mean, low, high] with a normal 95 % interval; None for no values."""
    data = values.detach().cpu().double().numpy()
    data = data[np.isfinite(data)]
    if len(data) == 0:
        return None
    spread = float(data.std(ddof=1)) / math.sqrt(len(data)) if len(data) > 1 else 0.0
    mean = float(data.mean())
    return [mean, mean - z * spread, mean + z * spread]


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks along the last axis, ties sharing their mean rank."""
    order = np.argsort(values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, -1)
    place = np.broadcast_to(np.arange(values.shape[-1], dtype=float), values.shape)
    new = np.ones(values.shape, bool)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    group = np.cumsum(new, -1) - 1
    out = np.empty(values.shape)
    flat_g, flat_p = group.reshape(-1, values.shape[-1]), place.reshape(-1, values.shape[-1])
    flat_o, flat_out = order.reshape(-1, values.shape[-1]), out.reshape(-1, values.shape[-1])
    for g, p, o, target in zip(flat_g, flat_p, flat_o, flat_out, strict=True):
        mean = np.bincount(g, p) / np.bincount(g)
        target[o] = mean[g]
    return out


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation along the last axis; NaN where one side is constant."""
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(scale > 0, (a * b).sum(-1) / scale, np.nan))


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the rank correlation along the last axis."""
    return pearson(ranks(np.asarray(a, float)), ranks(np.asarray(b, float)))


def auc(values: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the share of (positive, other) pairs in which the positive's value is the larger one.

    values: (n,); positive: (n,) bool. Ties count half. None where one side is empty.

    >>> auc(np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, False, True, True]))
    0.875
    """
    hits = int(positive.sum())
    pairs = hits * (len(values) - hits)
    if pairs == 0:
        return None
    # Ranks of the positives, less what they take among themselves (Mann and Whitney).
    above = float((ranks(np.asarray(values, float))[positive] + 1).sum()) - hits * (hits + 1) / 2
    return above / pairs


def quantiles(values: Tensor, shares: Sequence[float]) -> list[float | None]:
    """Return the values (n,) below which each share lies; None where that one is infinite.

    The lower of two neighbours is taken, so that an infinite one does not spoil the other.

    >>> import torch
    >>> quantiles(torch.tensor([1.0, 2.0, float("inf")]), (0.5, 0.9))
    [2.0, 2.0]
    """
    if len(values) == 0:
        return [None] * len(shares)
    ordered = values.double().sort().values
    picked = [float(ordered[int(share * (len(values) - 1))]) for share in shares]
    return [value if math.isfinite(value) else None for value in picked]


def binomial_tail(hits: Tensor, n: int | Tensor, p: Tensor) -> Tensor:
    """Return the probability (B,) of at least `hits` of n where each comes with probability p.

    hits: (B,) int64 in [0, n]; n: one for all or (B,); p: (B,) float64 in [0, 1]. It is the
    regularised incomplete beta function at p, by its continued fraction (Lentz's method): exact to
    about 1e-12.

    >>> tail = binomial_tail(torch.tensor([0, 2, 3]), 3, torch.full((3,), 0.5).double())
    >>> [round(float(t), 12) for t in tail]
    [1.0, 0.5, 0.125]
    """
    a, b = hits.double().clamp_min(1), (n + 1 - hits).double()
    # The fraction converges fast on one side of the mean; the other is its mirror.
    swap = p > (a + 1) / (a + b + 2)
    a, b, x = torch.where(swap, b, a), torch.where(swap, a, b), torch.where(swap, 1 - p, p)
    front = torch.xlogy(a, x) + torch.xlogy(b, 1 - x) - a.log()
    front = front + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    value = front.exp() / _fraction(a, b, x)
    return torch.where(hits <= 0, 1.0, torch.where(swap, 1 - value, value))


def _fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Return the continued fraction of the incomplete beta function (Abramowitz 26.5.8)."""
    value = c = torch.ones_like(x)
    d, done = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    for count in range(1, 100_000):
        m = count // 2
        if count % 2:
            step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + step * d)
        c = 1 + step / c
        # A number that has settled stays, whatever the others in its batch still need.
        done = done | ((c * d - 1).abs() < 1e-14)
        value = torch.where(done, value, value * (c * d))
        if bool(done.all()):
            break
    return value


def binomial_lower(hits: Tensor, n: int, alpha: float) -> Tensor:
    """Return the exact lower bound (B,) of a rate of which `hits` (B,) of n were seen.

    One-sided, Clopper and Pearson 1934: with probability 1 - alpha at least the true rate is no
    smaller. It is the p at which so many hits or more have probability alpha; 0 for no hits.

    >>> round(float(binomial_lower(torch.tensor([10]), 10, 0.001)), 12)  # alpha ** (1 / 10)
    0.501187233627
    """
    kinds, place = hits.unique(return_inverse=True)
    low, high = torch.zeros_like(kinds, dtype=torch.float64), kinds.double() / n
    for _ in range(50):
        middle = (low + high) / 2
        below = binomial_tail(kinds, n, middle) < alpha
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(kinds > 0, low, 0.0)[place]
