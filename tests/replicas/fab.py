"""DeepFool and FAB in the words of their papers, one sample and one entry at a time.

One input x (D,) with a label c and a function f from (1, D) to logits (1, K), in the box [0, 1].
Both return the points that the method linearises at, in order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]
DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}
NORM = {"linf": float("inf"), "l2": 2, "l1": 1}


def linearised(f: Logits, x: Tensor, c: int, clean: Tensor) -> tuple[list[Tensor], list[float]]:
    """For each class l but c: w = grad f_l - grad f_c, and f_c - f_l with a little to spare.

    To spare: a ten-thousandth of the clean input's own difference, which neither paper has.
    """
    scores = f(x[None])[0].detach()
    grads = torch.autograd.functional.jacobian(lambda v: f(v[None])[0], x)
    others = [j for j in range(len(scores)) if j != c]
    w = [grads[j] - grads[c] for j in others]
    spare = [1e-4 * abs(float(clean[c] - clean[j])) for j in others]
    return w, [float(scores[c] - scores[j]) + s for j, s in zip(others, spare, strict=True)]


def onto_plane(x: Tensor, w: Tensor, gap: float, norm: str, box: bool = True) -> Tensor:
    """The point nearest to x with w . (point - x) = gap, in the box; a corner if there is none."""
    if gap < 0:
        w, gap = -w, -gap
    room = [
        float("inf") if not box else float(1 - v if g > 0 else v)
        for v, g in zip(x.tolist(), w.tolist(), strict=True)
    ]
    gain = [abs(g) for g in w.tolist()]
    if norm == "l1":
        sizes, left = [0.0] * len(gain), gap
        for i in sorted(range(len(gain)), key=lambda i: -gain[i]):
            sizes[i] = min(room[i], left / gain[i])
            left -= gain[i] * sizes[i]
    else:
        low, high = 0.0, 1e6
        for _ in range(200):
            level = (low + high) / 2
            sizes = [
                min(level * (1.0 if norm == "linf" else g), r)
                for g, r in zip(gain, room, strict=True)
            ]
            enough = sum(g * s for g, s in zip(gain, sizes, strict=True)) >= gap
            low, high = (low, level) if enough else (level, high)
    return x + torch.tensor(sizes, dtype=x.dtype) * w.sign()


def nearest_class(w: list[Tensor], gaps: list[float], norm: str) -> int:
    away = [abs(g) / float(v.norm(p=DUAL[norm])) for v, g in zip(w, gaps, strict=True)]
    return away.index(min(away))


def deepfool(f: Logits, x: Tensor, c: int, norm: str, steps: int, overshoot: float) -> list[Tensor]:
    """Moosavi-Dezfooli et al. 2016, Algorithm 2; the box cuts the sum of the steps."""
    clean, at, total = f(x[None])[0].detach(), x.clone(), torch.zeros_like(x)
    visited = []
    for _ in range(steps):
        if int(f(at[None]).argmax()) != c:
            break
        visited.append(at)
        w, gaps = linearised(f, at, c, clean)
        s = nearest_class(w, gaps, norm)
        total = total + onto_plane(at, w[s], gaps[s], norm, box=False) - at
        total = torch.clip(x + total, 0, 1) - x
        at = torch.clip(x + (1 + overshoot) * total, 0, 1)
    return visited


def fab(
    f: Logits, x: Tensor, c: int, norm: str, steps: int, aim: int | None = None
) -> list[Tensor]:
    """Croce and Hein 2020, Algorithm 1, from the clean input: alpha 0.1, eta 1.05, beta 0.9.

    A point that has crossed is drawn back after it was linearised at, where the paper looks again
    at the point that it has drawn back. aim: the one class of targeted FAB.
    """
    clean, at = f(x[None])[0].detach(), x.clone()
    visited = []
    for _ in range(steps):
        visited.append(at)
        w, gaps = linearised(f, at, c, clean)
        others = [j for j in range(len(clean)) if j != c]
        base = at
        if int(f(at[None]).argmax()) != c:
            base = (1 - 0.9) * x + 0.9 * at
        here = [g - float(v @ (base - at)) for v, g in zip(w, gaps, strict=True)]
        s = nearest_class(w, here, norm) if aim is None else others.index(aim)
        start = gaps[s] - float(w[s] @ (x - at))
        one, two = onto_plane(base, w[s], here[s], norm), onto_plane(x, w[s], start, norm)
        far, near = float((one - base).norm(p=NORM[norm])), float((two - x).norm(p=NORM[norm]))
        alpha = min(far / (far + near), 0.1)
        mixed = (1 - alpha) * (base + 1.05 * (one - base)) + alpha * (x + 1.05 * (two - x))
        at = torch.clip(mixed, 0, 1)
    return visited
