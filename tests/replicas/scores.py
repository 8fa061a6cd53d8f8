"""NES, SPSA, SimBA and the funnel, one sample at a time, slow and shaped like the texts.

Each returns every point that is asked, in the order of the asking; a step that meets a fooled one,
probes included, is the last.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from replicas.attacks import gradient, nearest

Score = Callable[[Tensor], float]  # above 0: fooled


def project(x: Tensor, at: Tensor, norm: str, eps: float) -> Tensor:
    d = (at - x).maximum(-x).minimum(1 - x)
    return x + (d.clamp(-eps, eps) if norm == "linf" else nearest(at - x, -x, 1 - x, eps))


def steep(v: Tensor, norm: str) -> Tensor:
    return v.sign() if norm == "linf" else v / v.norm()


def estimate(
    f: Score, x: Tensor, at: Tensor, ball: tuple[str, float], width: float, noise: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The mean of u (f(x + width u) - f(x - width u)) / (2 width), probes kept in the ball."""
    total, up, down = torch.zeros_like(x), [], []
    for u in noise:
        up.append(project(x, at + width * u, *ball))
        down.append(project(x, at - width * u, *ball))
        total = total + u * (f(up[-1]) - f(down[-1])) / (2 * width)
    return total / len(noise), [*up, *down]


def nes(
    f: Score, x: Tensor, ball: tuple[str, float], noise: list[list[Tensor]], width: float,
    share: float, momentum: float,
) -> list[Tensor]:  # fmt: skip
    """Steepest steps of share * eps; halved when the score is lower than five steps before."""
    at, v, length, recent, asked = x, torch.zeros_like(x), share * ball[1], [], []
    for step, directions in enumerate(noise):
        if step:
            asked.append(at)
            if f(at) > 0:
                return asked
            recent.append(f(at))
            if len(recent) >= 5 and recent[-1] < recent[-5]:
                length, recent = max(length / 2, 0.005 * share * ball[1]), []
        g, points = estimate(f, x, at, ball, width, directions)
        asked += points
        if any(f(point) > 0 for point in points):
            return asked
        v = momentum * v + (1 - momentum) * g
        at = project(x, at + length * steep(v, ball[0]), *ball)
    return [*asked, at]


def spsa(
    f: Score, x: Tensor, ball: tuple[str, float], noise: list[list[Tensor]], width: float,
    rate: float,
) -> list[Tensor]:  # fmt: skip
    """Adam (0.9, 0.999) along estimates from random signs."""
    at, m, s, asked = x, torch.zeros_like(x), torch.zeros_like(x), []
    for step, directions in enumerate(noise):
        if step:
            asked.append(at)
            if f(at) > 0:
                return asked
        g, points = estimate(f, x, at, ball, width, directions)
        asked += points
        if any(f(point) > 0 for point in points):
            return asked
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        mean, square = m / (1 - 0.9 ** (step + 1)), s / (1 - 0.999 ** (step + 1))
        at = project(x, at + rate * mean / (square.sqrt() + 1e-9), *ball)
    return [*asked, at]


def simba(
    f: Score, x: Tensor, order: list[int], size: float, eps: float, most: int
) -> list[Tensor]:
    """Each value up, then down, in the order given, again and again; idle moves are not asked."""
    best, value, asked, turn = x, f(x), [], 0
    while len(asked) < most:
        for sign in (1, -1):
            move = torch.zeros_like(x)
            move.view(-1)[order[turn % len(order)]] = sign * size
            at = project(x, best + move, "l2", eps)
            if torch.equal(at, best):
                continue
            asked.append(at)
            if f(at) > value:
                best, value = at, f(at)
                break
            if len(asked) == most:
                break
        turn += 1
        if value > 0:
            break
    return asked


def funnel(
    f: Callable[[Tensor], Tensor], x: Tensor, c: int, eps: float, start: Tensor, steps: int,
    shape: tuple[float, float, float, float],
) -> list[Tensor]:  # fmt: skip
    """Unit L2 steps in a ball that shrinks from wide * eps, of `first` to `last` of its radius."""
    wide, descent, first, last = shape
    at, asked = start, [start]
    for step in range(steps):
        g = gradient(f, at, c)
        radius = eps * wide ** max(0.0, 1 - (step + 1) / (descent * steps))
        length = (first + (last - first) * step / steps) * radius
        at = project(x, at + length * g / g.norm(), "l2", radius)
        asked.append(at)
    return asked
