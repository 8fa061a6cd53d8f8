"""APGD in the words of its two papers: one input at a time, plain numbers, loops.

x (*shape) lies in the box [0, 1], c is its label, f maps (1, *shape) to logits (1, K). Both return
every point that is looked at, the start first and the one after the last move included.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from replicas.attacks import Logits, nearest

Loss = Callable[[Tensor, int], Tensor]  # logits (K,), label


def cross_entropy(z: Tensor, c: int) -> Tensor:
    return F.cross_entropy(z[None], torch.tensor([c]))


def dlr(z: Tensor, c: int) -> Tensor:
    """-(z_c - max over i != c of z_i) / (z_pi1 - z_pi3)."""
    others = torch.cat([z[:c], z[c + 1 :]])
    order = z.sort(descending=True).values
    return -(z[c] - others.max()) / (order[0] - order[2])


def targeted_dlr(t: int) -> Loss:
    """-(z_c - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2)."""

    def loss(z: Tensor, c: int) -> Tensor:
        order = z.sort(descending=True).values
        return -(z[c] - z[t]) / (order[0] - (order[2] + order[3]) / 2)

    return loss


def look(f: Logits, loss: Loss, at: Tensor, c: int) -> tuple[float, Tensor]:
    leaf = at.clone().requires_grad_()
    value = loss(f(leaf[None])[0], c)
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad


def checkpoints(steps: int) -> list[int]:
    """w_j = ceil(p_j N), p_1 = .22, p_(j+1) = p_j + max(p_j - p_(j-1) - .03, .06), Algorithm 1."""
    p = [0.0, 0.22]
    while p[-1] + max(p[-1] - p[-2] - 0.03, 0.06) <= 1 + 1e-9:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    return [ceil(round(q * steps, 6)) for q in p]


def apgd(
    f: Logits, loss: Loss, x: Tensor, c: int, eps: float, start: Tensor, steps: int, norm: str
) -> list[Tensor]:
    """Croce and Hein 2020, Algorithm 1."""

    def project(point: Tensor) -> Tensor:
        if norm == "l2":
            return x + nearest(point - x, -x, 1 - x, eps)
        return torch.clip(torch.minimum(torch.maximum(point, x - eps), x + eps), 0, 1)

    marks = [w for w in checkpoints(steps) if w < steps]
    eta, at, before, visited = 2 * eps, start, start, [start]
    value, grad = look(f, loss, at, c)
    best, best_value, best_grad = at, value, grad
    best_at_mark, eta_changed, rises = value, False, 0
    for k in range(steps):
        direction = grad.sign() if norm == "linf" else grad / max(float(grad.norm()), 1e-300)
        z = project(at + eta * direction)
        new = z if k == 0 else project(at + 0.75 * (z - at) + 0.25 * (at - before))
        before, at = at, new
        visited.append(at)
        if k + 1 == steps:
            break
        last, (value, grad) = value, look(f, loss, at, c)
        rises += value > last
        if value > best_value:
            best, best_value, best_grad = at, value, grad
        if k + 1 in marks[1:]:
            width = k + 1 - marks[marks.index(k + 1) - 1]
            few = rises < 0.75 * width
            stuck = not eta_changed and best_value == best_at_mark
            eta_changed = few or stuck
            if eta_changed:
                eta, at, grad = eta / 2, best, best_grad
            best_at_mark, rises = best_value, 0
    return visited


def onto_l1(d: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest change of L1 length eps at most that keeps x + d in [0, 1], by bisection."""

    def shrunk(t: float) -> Tensor:
        return torch.clip(d.sign() * torch.clamp(d.abs() - t, min=0), -x, 1 - x)

    if float(shrunk(0.0).abs().sum()) <= eps:
        return shrunk(0.0)
    few, many = 0.0, float(d.abs().max())
    for _ in range(60):
        t = (few + many) / 2
        few, many = (t, many) if float(shrunk(t).abs().sum()) > eps else (few, t)
    return shrunk(many)


def sparse_apgd(
    f: Logits, loss: Loss, x: Tensor, c: int, eps: float, start: Tensor, steps: int
) -> list[Tensor]:
    """Croce and Hein 2021: sparse steps; 3 eps, 2 eps and eps for .3, .3 and .4 of the steps."""
    third, best, best_grad = int(0.3 * steps + 1e-9), start, start
    plan = [(3 * eps, third), (2 * eps, third), (eps, steps - 2 * third)]
    at, visited, k = start, [], 0.2
    for phase, (radius, length) in enumerate(plan):
        if phase:
            at = x + onto_l1(best - x, x, radius)
            k = float((at != x).sum()) / x.numel() / 1.5
        changed = float((at != x).sum()) if phase else float(x.numel())
        eta, best_value, every = radius, float("-inf"), max(int(0.04 * length), 1)
        for i in range(length):
            visited.append(at)
            value, grad = look(f, loss, at, c)
            if value > best_value:
                best, best_value, best_grad = at, value, grad
            if i and i % every == 0:
                now = float((best != x).sum())
                if now < 0.95 * changed:
                    eta, at, grad = radius, best, best_grad
                else:
                    eta = max(eta / 1.5, radius / 10)
                k, changed = now / x.numel() / 1.5, now
            count = min(max(int(k * x.numel()), 1), x.numel())
            least = grad.abs().flatten().sort(descending=True).values[count - 1]
            move = torch.where(grad.abs() >= least, grad, 0.0).sign()
            at = x + onto_l1(at + eta * move / max(float(move.abs().sum()), 1.0) - x, x, radius)
    return [*visited, at]
