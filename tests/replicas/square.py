"""The moves of the square attack in the words of Andriushchenko et al. 2020, with loops.

A window is (row, column, height, width), rows and columns counted from 0.
"""

from __future__ import annotations

import numpy as np

Window = tuple[int, int, int, int]


def pyramid(tall: int, wide: int) -> np.ndarray:
    """Nested rectangles around the centre; the k-th from the middle adds 1 / (k + 1)^2."""
    out = np.zeros((tall, wide))
    centre = (tall // 2, wide // 2)
    for k in range(max(tall // 2, wide // 2) + 1):
        for r in range(tall):
            for s in range(wide):
                if max(abs(r - centre[0]), abs(s - centre[1])) <= k:
                    out[r, s] += 1 / (k + 1) ** 2
    return out


def eta(tall: int, wide: int, across: bool) -> np.ndarray:
    """Two pyramids of opposite sign; across: the second below the first."""
    if not across:
        return eta(wide, tall, True).T
    half = tall // 2
    return np.concatenate([pyramid(half, wide), -pyramid(tall - half, wide)])


def size(norm: str, values: np.ndarray) -> float:
    return float(np.abs(values).sum() if norm == "l1" else np.sqrt((values**2).sum()))


def linf_move(best: np.ndarray, at: Window, up: list[bool], eps: float) -> np.ndarray:
    """Add +-2 eps in the window, a sign a channel, and clip to the ball."""
    out = best.copy()
    r, s, h, w = at
    for c in range(best.shape[0]):
        out[c, r : r + h, s : s + w] += 2 * eps if up[c] else -2 * eps
    return out.clip(-eps, eps)


def mass_move(
    norm: str, best: np.ndarray, into: Window, out_of: Window, rho: list[int],
    across: bool, eps: float,
) -> np.ndarray:  # fmt: skip
    """Algorithm 3: window 2 is emptied, window 1 gets its mass and what was not yet spent."""
    power = 1 if norm == "l1" else 2
    channels = best.shape[0]
    (r1, s1, h, w), (r2, s2, _, _) = into, out_of
    unused = max(eps**power - size(norm, best) ** power, 0.0)
    bump = eta(h, w, across)
    bump /= size(norm, bump)
    out = best.copy()
    for c in range(channels):
        old = best[c, r1 : r1 + h, s1 : s1 + w]
        new = rho[c] * bump
        if size(norm, old) > 0:
            new = new + old / size(norm, old)
        both = np.zeros_like(best[c], dtype=bool)
        both[r1 : r1 + h, s1 : s1 + w] = True
        both[r2 : r2 + h, s2 : s2 + w] = True
        free = (size(norm, best[c][both]) ** power + unused / channels) ** (1 / power)
        out[c, r2 : r2 + h, s2 : s2 + w] = 0
        out[c, r1 : r1 + h, s1 : s1 + w] = new / size(norm, new) * free
    return out
