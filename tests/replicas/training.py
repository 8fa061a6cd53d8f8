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
