"""Attacks in the words of their papers: numpy-like loops over samples, plain torch gradients.

All of them work on one input x (*shape) in the box [0, 1], a label c and a function f that maps
(1, *shape) to logits (1, K). They return every point that the method visits after the clean one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Logits = Callable[[Tensor], Tensor]


def loss(f: Logits, x: Tensor, c: int) -> Tensor:
    return F.cross_entropy(f(x[None]), torch.tensor([c]))


def gradient(f: Logits, x: Tensor, c: int) -> Tensor:
    leaf = x.clone().requires_grad_()
    loss(f, leaf, c).backward()
    assert leaf.grad is not None
    return leaf.grad


def fgsm(f: Logits, x: Tensor, c: int, eps: float) -> list[Tensor]:
    """Goodfellow et al. 2015: x + eps sign(grad J(x, c))."""
    return [torch.clip(x + eps * torch.sign(gradient(f, x, c)), 0, 1)]


def fgsm_targeted(f: Logits, x: Tensor, t: int, eps: float) -> list[Tensor]:
    """The same towards a class: x - eps sign(grad J(x, t))."""
    return [torch.clip(x - eps * torch.sign(gradient(f, x, t)), 0, 1)]


def r_fgsm(f: Logits, x: Tensor, c: int, eps: float, alpha: float, noise: Tensor) -> list[Tensor]:
    """Tramer et al. 2018: a random sign step of alpha, then a gradient step of eps - alpha."""
    first = torch.clip(x + alpha * torch.sign(noise), 0, 1)
    return [first, torch.clip(first + (eps - alpha) * torch.sign(gradient(f, first, c)), 0, 1)]


def pgd(
    f: Logits, x: Tensor, c: int, eps: float, step: float, start: Tensor, steps: int
) -> list[Tensor]:
    """Madry et al. 2018 in Linf: BIM from a given point of the ball."""
    visited, at = [start], start
    for _ in range(steps):
        at = at + step * torch.sign(gradient(f, at, c))
        for i in range(at.numel()):  # the projection, entry by entry
            centre = float(x.flatten()[i])
            low, high = max(centre - eps, 0.0), min(centre + eps, 1.0)
            at.view(-1)[i] = min(max(float(at.view(-1)[i]), low), high)
        visited.append(at.clone())
    return visited


def bim(f: Logits, x: Tensor, c: int, eps: float, step: float, steps: int) -> list[Tensor]:
    """Kurakin et al. 2017: Clip_{x, eps}(x_k + a sign(grad J(x_k, c)))."""
    visited, at = [], x
    for _ in range(steps):
        at = at + step * torch.sign(gradient(f, at, c))
        at = torch.maximum(torch.minimum(at, x + eps), x - eps)
        at = torch.clip(at, 0, 1)
        visited.append(at)
    return visited


def mim(
    f: Logits, x: Tensor, c: int, eps: float, step: float, steps: int, decay: float
) -> list[Tensor]:
    """Dong et al. 2018: g <- decay g + grad / |grad|_1, then a sign step along g."""
    visited, at, g = [], x, torch.zeros_like(x)
    for _ in range(steps):
        grad = gradient(f, at, c)
        g = decay * g + grad / grad.abs().sum()
        at = at + step * torch.sign(g)
        at = torch.clip(torch.maximum(torch.minimum(at, x + eps), x - eps), 0, 1)
        visited.append(at)
    return visited


def smoothgrad_attack(f: Logits, x: Tensor, c: int, eps: float, noise: Tensor) -> list[Tensor]:
    """Survey 3.1.1: x - eps sign(mean grad of log f_c at noisy copies); noise (n, *shape)."""
    total = torch.zeros_like(x)
    for some in noise:
        total = total - gradient(f, x + some, c)  # log f_c is minus the cross-entropy
    return [torch.clip(x - eps * torch.sign(total / len(noise)), 0, 1)]


def deletion(f: Logits, x: Tensor, c: int, worth: Tensor, baseline: float) -> tuple[Tensor, int]:
    """Survey Eq. 12: set the largest positive entries of the map to the baseline, one by one.

    Returns the first input of another class and how many entries changed; x and -1 for none.
    """
    order = sorted(range(x.numel()), key=lambda i: (-float(worth.flatten()[i]), i))
    at, changed = x.clone().flatten(), 0
    for i in order:
        if float(worth.flatten()[i]) <= 0:
            break
        if float(at[i]) == baseline:
            continue
        at[i] = baseline
        changed += 1
        with torch.no_grad():
            if int(f(at.view_as(x)[None]).argmax()) != c:
                return at.view_as(x), changed
    return x, -1


def l2_pgd(
    f: Logits, x: Tensor, c: int, eps: float, step: float, start: Tensor, steps: int
) -> list[Tensor]:
    """PGD in L2: unit gradient steps, then the nearest point of ball and box (bisected)."""
    visited, at = [start], start
    for _ in range(steps):
        grad = gradient(f, at, c)
        at = x + nearest(at + step * grad / grad.norm() - x, -x, 1 - x, eps)
        visited.append(at)
    return visited


def nearest(d: Tensor, low: Tensor, high: Tensor, eps: float) -> Tensor:
    def shrunk(t: float) -> Tensor:
        return torch.maximum(torch.minimum(d / (1 + t), high), low)

    if float(shrunk(0.0).norm()) <= eps:
        return shrunk(0.0)
    few, many = 0.0, 1e4
    for _ in range(200):
        t = (few + many) / 2
        few, many = (t, many) if float(shrunk(t).norm()) > eps else (few, t)
    return shrunk(many)


def strongest(f: Logits, clean: Tensor, visited: list[Tensor], c: int) -> Tensor:
    """Of all points, the clean one too: wrong ones first, then the one of the largest loss."""
    with torch.no_grad():
        ranked = [
            (int(f(p[None]).argmax()) != c, float(loss(f, p, c)), -k)
            for k, p in enumerate([clean, *visited])
        ]
    return [clean, *visited][-max(ranked)[2]]
