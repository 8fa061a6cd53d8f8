"""Ghorbani et al. 2019, *Interpretation of Neural Networks Is Fragile*, one image at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def share(net: nn.Module, x: Tensor, label: int, graph: bool = False) -> Tensor:
    """|gradient of the logit|, summed over channels, at sum 1, as a line."""
    (grad,) = torch.autograd.grad(net(x[None])[0, label], x, create_graph=graph)
    size = grad.abs().sum(0).flatten()
    return size / size.sum()


def share_on_top(net: nn.Module, clean: Tensor, x: Tensor, label: int, k: int) -> float:
    """The share of the map's mass on the k strongest positions of the clean map."""
    top = share(net, clean.clone().requires_grad_(), label).topk(k).indices
    return float(share(net, x.clone().requires_grad_(), label)[top].sum())


def moved_by_hand(
    nets: tuple[nn.Module, nn.Module], clean: Tensor, label: int, eps: float, k: int, steps: int
) -> Tensor:
    """Steps of half of eps along the sign of a running mean of gradients; the best iterate."""
    net, twin = nets
    top = share(net, clean.clone().requires_grad_(), label).topk(k).indices
    best, least = clean, share_on_top(net, clean, clean, label, k)
    x, velocity = clean.clone(), torch.zeros_like(clean)
    for step in range(steps + 1):
        if int(net(x[None]).argmax()) == label:
            left = share_on_top(net, clean, x, label, k)
            if left < least:
                best, least = x.clone(), left
        if step == steps:
            return best
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(-share(twin, leaf, label, graph=True)[top].sum(), leaf)
        velocity = 0.9 * velocity + grad / grad.abs().mean()
        x = x + 0.5 * eps * velocity.sign()
        x = (clean + (x - clean).clamp(-eps, eps)).clamp(0, 1)
    return best
