"""Minimum-norm attacks in the words of their papers: one input, one target, loops.

x (*shape) is an input, t the class to reach, f maps (1, *shape) to logits (1, K). The box is
[low, high]. Where foible departs from the paper its docstring says so, and so does this. All
return the points whose gradient is taken, the clean one first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from replicas.attacks import Logits


def margin_and_gradient(f: Logits, x: Tensor, t: int) -> tuple[float, Tensor]:
    """z_t less the largest other logit."""
    leaf = x.clone().requires_grad_()
    z = f(leaf[None])[0]
    value = z[t] - max(z[j] for j in range(len(z)) if j != t)
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad.flatten()


def onto_ball(norm: str, v: list[float], eps: float) -> list[float]:
    """The nearest point of the ball, where the box is far away."""
    if norm == "linf":
        return [min(max(a, -eps), eps) for a in v]
    if norm == "l2":
        size = math.sqrt(sum(a * a for a in v))
        return [a * min(1.0, eps / size) for a in v]
    if norm == "l1":
        if sum(abs(a) for a in v) <= eps:
            return v
        low, high = 0.0, max(abs(a) for a in v)
        for _ in range(200):  # the threshold, by bisection
            middle = (low + high) / 2
            full = sum(max(abs(a) - middle, 0.0) for a in v) > eps
            low, high = (middle, high) if full else (low, middle)
        return [math.copysign(max(abs(a) - high, 0.0), a) for a in v]
    raise AssertionError(norm)


def length(norm: str, v: list[float]) -> float:
    if norm == "linf":
        return max(abs(a) for a in v)
    if norm == "l2":
        return math.sqrt(sum(a * a for a in v))
    return sum(abs(a) for a in v) if norm == "l1" else float(sum(a != 0 for a in v))


def unit(norm: str, g: list[float], late: float) -> list[float]:
    if norm == "l2" or norm == "l1":
        return [a / math.sqrt(sum(b * b for b in g)) for a in g]
    if norm == "linf":
        mean = sum(abs(a) for a in g) / len(g)
        return [math.copysign((abs(a) / mean) ** late, a) for a in g]
    raise AssertionError(norm)


def fast_minimum(
    f: Logits, x: Tensor, t: int, norm: str, steps: int, pace: tuple[float, ...], sphere: bool
) -> list[Tensor]:
    """Algorithm 1 of Pintor et al. 2021; on the sphere, that of Rony et al. 2019.

    pace: the first and the last length of a move, and the first and the last gamma.
    """
    first, last, gamma_0, gamma_k = pace
    delta, eps, best, rate, before = [0.0] * x.numel(), 0.0, math.inf, 0.0, False
    visited = []
    for k in range(steps):
        at = x + torch.tensor(delta, dtype=x.dtype).view_as(x)
        visited.append(at)
        value, gradient = margin_and_gradient(f, at, t)
        g, size, won = gradient.tolist(), length(norm, delta), value > 0
        done = k / (steps - 1)
        cosine = (1 + math.cos(math.pi * done)) / 2
        gamma = gamma_k + (gamma_0 - gamma_k) * cosine
        rate = (
            max(gamma, rate * (1.5 - cosine / 2)) if won and before and best < math.inf else gamma
        )
        rate, before = min(rate, 0.5), won
        if won:
            best = min(best, size)
            eps = min(eps * (1 - rate), best)
        elif best < math.inf:
            eps = min(eps * (1 + gamma), best)
        else:  # the distance to the boundary of a linear model, by the dual norm
            dual = {"linf": sum(map(abs, g)), "l2": length("l2", g)}.get(norm, length("linf", g))
            guess = (size + abs(value) / dual) * (1 + gamma)
            eps = min(guess, 1.5 * eps) if eps > 0 else guess
        share = first * (last / first) ** done * eps
        delta = [d + share * u for d, u in zip(delta, unit(norm, g, 1 - cosine), strict=True)]
        if sphere and best < math.inf:
            delta = [d * eps / length("l2", delta) for d in delta]
        delta = onto_ball(norm, delta, eps)
    return visited


def sparse_minimum(
    f: Logits, x: Tensor, t: int, steps: int, pace: tuple[float, ...]
) -> list[Tensor]:
    """The same in L0 and [0, 1]: eps counts features, and the box matters."""
    first, last, gamma_0, gamma_k = pace
    clean, eps, best = x.flatten().tolist(), 0, math.inf
    delta, rate, before, visited = [0.0] * x.numel(), 0.0, False, []
    for k in range(steps):
        at = x + torch.tensor(delta, dtype=x.dtype).view_as(x)
        visited.append(at)
        value, gradient = margin_and_gradient(f, at, t)
        g, size, won = gradient.tolist(), int(length("l0", delta)), value > 0
        done = k / (steps - 1)
        cosine = (1 + math.cos(math.pi * done)) / 2
        gamma = gamma_k + (gamma_0 - gamma_k) * cosine
        rate = (
            max(gamma, rate * (1.5 - cosine / 2)) if won and before and best < math.inf else gamma
        )
        rate, before = min(rate, 0.5), won
        if won:
            best = min(best, size)
            eps = math.floor(min(eps * (1 - rate), best))
        elif best < math.inf:
            eps = math.ceil(max(min(eps * (1 + gamma), best), eps + 1))
        else:
            guess = (size + abs(value) / max(map(abs, g))) * (1 + gamma)
            guess = min(guess, 1.5 * eps) if eps > 0 else guess
            eps = math.ceil(max(min(guess, len(g)), eps + 1))
        eps = int(max(min(eps, best - 1), 1))
        gain = [a * ((1 - c) if a > 0 else c) for a, c in zip(g, clean, strict=True)]
        share = first * (last / first) ** done / max(map(abs, gain))
        far = [d + share * a for d, a in zip(delta, gain, strict=True)]
        cut = [min(max(c + v, 0.0), 1.0) - c for c, v in zip(clean, far, strict=True)]
        saved = [v * v - (v - d) ** 2 for v, d in zip(far, cut, strict=True)]
        largest = sorted(range(len(cut)), key=lambda i: -saved[i])[:eps]
        delta = [d if i in largest else 0.0 for i, d in enumerate(cut)]
    return visited


def sigma_zero(
    f: Logits, x: Tensor, t: int, steps: int, settings: tuple[float, ...]
) -> list[Tensor]:
    """Algorithm 1 of Cina et al. 2024 in [0, 1]: sigma, tau, its rate, the first step."""
    sigma, tau, rate, eta_0 = settings
    clean, d, visited = x.flatten().tolist(), x.numel(), []
    delta = [0.0] * d
    for k in range(steps):
        at = x + torch.tensor(delta, dtype=x.dtype).view_as(x)
        visited.append(at)
        value, gradient = margin_and_gradient(f, at, t)
        eta = eta_0 * (1 + math.cos(math.pi * k / (steps - 1))) / 2
        # foible: a slope counts by the room that the box leaves, at a largest value of 1.
        gain = [
            g * ((1 - c) if g > 0 else c) for g, c in zip(gradient.tolist(), clean, strict=True)
        ]
        most = max(map(abs, gain))
        count = [2 * v * sigma / (v * v + sigma) ** 2 / d for v in delta]
        loss = 0.0 if value > 0 else 1.0
        up = [loss * g / most - c for g, c in zip(gain, count, strict=True)]
        most = max(map(abs, up))
        for i in range(d):
            moved = delta[i] + (eta * up[i] / most if most > 0 else 0.0)
            moved = min(max(clean[i] + moved, 0.0), 1.0) - clean[i]
            delta[i] = 0.0 if abs(moved) < tau else moved
        tau = min(max(tau + (rate if value > 0 else -rate) * eta, 0.0), 1.0)
    return visited


def jsma(f: Logits, x: Tensor, t: int, pairs: int, theta: float) -> list[Tensor]:
    """Algorithm 3 of Papernot et al. 2016 in [0, 1], each feature towards where it helps."""
    at, visited = x.clone(), []
    clean = x.flatten()
    for _ in range(pairs):
        visited.append(at.clone())
        leaf = at.clone().requires_grad_()
        z = f(leaf[None])[0]
        if int(z.argmax()) == t:
            break
        (a,) = torch.autograd.grad(z[t], leaf, retain_graph=True)
        (b,) = torch.autograd.grad(z.sum() - z[t], leaf)
        flat, a, b, moves = at.view(-1), a.flatten(), b.flatten(), {}
        for i in range(len(flat)):
            up = bool(a[i] > b[i])
            move = min(theta, 1 - float(flat[i])) if up else -min(theta, float(flat[i]))
            if move != 0 and move * float(flat[i] - clean[i]) >= 0:
                moves[i] = move
        best, chosen = -math.inf, (0, 0)
        for p in moves:
            for q in moves:
                alpha = float(a[p] * moves[p] + a[q] * moves[q])
                beta = float(b[p] * moves[p] + b[q] * moves[q])
                if p < q and alpha > 0 and beta < 0 and -alpha * beta > best:
                    best, chosen = -alpha * beta, (p, q)
        if best == -math.inf:  # foible then moves one feature
            break
        for i in chosen:
            flat[i] += moves[i]
    return visited
