"""Fong and Vedaldi 2017, one image at a time, with torch's own Adam."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Logits = Callable[[Tensor], Tensor]


def blend(x: Tensor, null: Tensor, m: Tensor) -> Tensor:
    """Their Eq. 2: m shows the image, 1 - m the null image."""
    m = F.interpolate(m[None, None], x.shape[-2:], mode="bilinear")[0]
    return m * x + (1 - m) * null


def moved(x: Tensor, down: int, right: int) -> Tensor:
    """The image (C, H, W) shifted by whole pixels, its edge repeated."""
    out = torch.empty_like(x)
    high, wide = x.shape[1:]
    for i in range(high):
        for j in range(wide):
            row = min(max(i - down, 0), high - 1)
            out[:, i, j] = x[:, row, min(max(j - right, 0), wide - 1)]
    return out


def rough(m: Tensor, power: float) -> Tensor:
    """The sum over neighbours of |difference|^power."""
    total = torch.zeros((), dtype=m.dtype)
    for i in range(m.shape[0]):
        for j in range(m.shape[1]):
            if i + 1 < m.shape[0]:
                total = total + (m[i + 1, j] - m[i, j]).abs() ** power
            if j + 1 < m.shape[1]:
                total = total + (m[i, j + 1] - m[i, j]).abs() ** power
    return total


def disc(f: Logits, x: Tensor, null: Tensor, c: int, side: int, keep: bool) -> Tensor:
    """The smallest disc, as the mask that shows, after which 99 % of the change is made."""

    def shown(radius: float) -> Tensor:
        m = torch.ones(side, side, dtype=x.dtype)
        for i in range(side):
            for j in range(side):
                a, b = ((2 * k + 1 - side) / side for k in (i, j))
                if (a * a + b * b) ** 0.5 < radius:
                    m[i, j] = 0
        return 1 - m if keep else m

    radii = [0.0] + [1.5 * k / 8 for k in range(1, 9)] + [9.0]
    told = [float(f(blend(x, null, shown(r))[None])[0, c].detach()) for r in radii]
    for radius, value in zip(radii[1:], told[1:], strict=True):
        if abs(value - told[0]) >= 0.99 * abs(told[-1] - told[0]):
            return shown(radius)
    raise AssertionError("everything does all that everything does")


def mask(
    f: Logits,
    pair: tuple[Tensor, Tensor],
    c: int,
    shifts: list[tuple[int, int]],
    prices: tuple[float, float],
    moves: tuple[float, float],
    keep: bool,
) -> Tensor:
    """Their Eq. 3 and 4, and the preservation game of their Eq. 2: the mask m (h, w) at last.

    pair: image and null image. shifts: one a step. prices: of area and roughness, for a mean.
    """
    x, null = pair
    side = x.shape[-1] // 2
    m = disc(f, x, null, c, side, keep).requires_grad_()
    optimiser = torch.optim.Adam([m], lr=moves[0], eps=1e-30)
    for step, (down, right) in enumerate(shifts):
        optimiser.param_groups[0]["lr"] = moves[0] * (moves[1] / moves[0]) ** (
            step / max(1, len(shifts) - 1)
        )
        seen = blend(moved(x, down, right), moved(null, down, right), m)
        p = f(seen[None]).softmax(1)[0, c]
        chosen = m if keep else 1 - m
        loss = prices[0] * chosen.mean() + prices[1] * rough(m, 3) / m.numel()
        loss = loss - p if keep else loss + p
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            m.clamp_(0, 1)
    return m.detach()
