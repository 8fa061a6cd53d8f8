"""Training losses in the words of their papers: one sample at a time, plain torch gradients."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of one sample x (*shape), y ()."""
    return F.cross_entropy(net(x[None]), y[None])


def input_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(net, leaf, y), leaf)
    return grad


def fgsm_of(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return (x + eps * input_gradient(net, x, y).sign()).clamp(0, 1)


def ensemble(net: nn.Module, source: nn.Module, x: Tensor, y: Tensor, eps: float) -> list[float]:
    """Tramer et al. 2018: half clean, half one step on the source from its own prediction."""
    values = []
    for one, label in zip(x, y, strict=True):
        guess = source(one[None]).argmax(1)[0]
        moved = fgsm_of(source, one, guess, eps)
        half = loss_of(net, one, label) / 2 + loss_of(net, moved, label) / 2
        values.append(float(half.detach()))
    return values


def gradient_penalty(net: nn.Module, x: Tensor, y: Tensor, weight: float) -> list[float]:
    """Ross and Doshi-Velez 2018, sample by sample."""
    return [
        float(loss_of(net, a, b).detach() + weight * (input_gradient(net, a, b) ** 2).sum())
        for a, b in zip(x, y, strict=True)
    ]


def awp_weights(net: nn.Module, x: Tensor, y: Tensor, gamma: float) -> dict[str, Tensor]:
    """Wu et al. 2020, the authors' code: a proxy takes a step of SGD uphill, and its difference
    is scaled to gamma times the norm of each weight."""
    proxy = copy.deepcopy(net)
    optimiser = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-F.cross_entropy(proxy(x), y)).backward()
    optimiser.step()
    found = {}
    for (name, old), new in zip(net.named_parameters(), proxy.parameters(), strict=True):
        if old.dim() <= 1:
            found[name] = old.detach().clone()
            continue
        difference = (new - old).detach()
        found[name] = (old + gamma * old.norm() / (difference.norm() + 1e-20) * difference).detach()
    return found


def free_training(
    net: nn.Module, batches: list[tuple[Tensor, Tensor]], eps: float, replays: int, rate: float
) -> Tensor:
    """Shafahi et al. 2019, Algorithm 1, by plain gradient descent; returns the last change."""
    change = torch.zeros_like(batches[0][0])
    for x, y in batches:
        for _ in range(replays):
            at = (x + change[: len(x)]).clamp(0, 1).detach().requires_grad_()
            loss = F.cross_entropy(net(at), y)
            wanted = [at, *net.parameters()]
            grads = torch.autograd.grad(loss, wanted)
            moved = change[: len(x)] + eps * grads[0].sign()
            change[: len(x)] = moved.clamp(-eps, eps)
            with torch.no_grad():
                for p, grad in zip(net.parameters(), grads[1:], strict=True):
                    p -= rate * grad
    return change


def distilled(net: nn.Module, teacher: nn.Module, x: Tensor, t: float) -> list[float]:
    """Papernot et al. 2016: the cross-entropy with the teacher's vector, both softened."""
    values = []
    for one in x:
        p = torch.exp(teacher(one[None])[0] / t)
        q = torch.exp(net(one[None])[0] / t)
        p, q = p / p.sum(), q / q.sum()
        values.append(float(-sum(a * torch.log(b) for a, b in zip(p, q, strict=True)).detach()))
    return values


def crex(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    r: Tensor,
    prices: tuple[float, float, float],
    patch: int | None,
) -> list[float]:
    """Du et al. 2019 on tables, sample by sample: prices are lambda 1, b and a."""
    weight, b, a = prices
    values = []
    for one, label, reason in zip(x, y, r, strict=True):
        maps = explanation(net, one, patch)
        confident = sum(float(((1 - reason) * s).abs().sum()) for s in maps) / len(maps)
        left = one * (1 - reason)
        fall = net(one[None]).softmax(1)[0, label] - net(left[None]).softmax(1)[0, label]
        cosines = []
        for s in explanation(net, left, patch):
            share = s.abs() / s.abs().sum()
            even = torch.full_like(share, 1 / len(share))
            cosines.append(float(F.cosine_similarity(share, even, dim=0)))
        unsure = -abs(float(fall.detach())) - a * sum(cosines) / len(cosines)
        loss = float(loss_of(net, one, label).detach())
        values.append(loss + weight * (confident + b * unsure))
    return values


def explanation(net: nn.Module, x: Tensor, patch: int | None) -> list[Tensor]:
    """The gradient of the sum of log-probabilities, or what each class loses by each part."""
    if patch is None:
        leaf = x.clone().requires_grad_()
        return [torch.autograd.grad(net(leaf[None]).log_softmax(1).sum(), leaf)[0]]
    classes = net(x[None]).shape[1]
    maps = [torch.zeros_like(x) for _ in range(classes)]
    for begin in range(0, len(x), patch):
        part = slice(begin, begin + patch)
        without = x.clone()
        without[part] = 0
        fall = (net(x[None]).softmax(1) - net(without[None]).softmax(1))[0].detach()
        for c in range(classes):
            maps[c][part] = fall[c] / len(x[part])
    return maps


def robust_input(net: nn.Module, x: Tensor, start: Tensor, steps: int, length: float) -> Tensor:
    """Ilyas et al. 2019: descent on the distance of features, in steps of one L2 length."""
    at = start.clone()
    for _ in range(steps):
        leaf = at.clone().requires_grad_()
        apart = (net(leaf[None]) - net(x[None])).square().sum()
        (grad,) = torch.autograd.grad(apart, leaf)
        at = (at - length * grad / grad.norm()).clamp(0, 1)
    return at
