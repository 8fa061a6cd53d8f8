"""A net of a few units, its images, and gradients of features, for the tests of detectors."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from small_nets import seeded
from torch import Tensor, nn

from foible.core.oracle import Oracle
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.models import wrap


def tiny() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8),
        nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def pictures(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three blurred shapes under noise, (N, 1, 8, 8) in [0, 1]."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    shapes = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    return (0.3 + 0.4 * shapes[y] + 0.15 * torch.randn(n, 1, 8, 8, generator=rng)).clamp(0, 1), y


@cache
def trained() -> nn.Module:
    net, (x, y) = seeded(tiny), pictures(300, 7)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval().requires_grad_(False)


def sharp() -> nn.Module:
    """An untrained net in float64 whose probabilities are no constants."""
    net = seeded(tiny).double()
    with torch.no_grad():
        net[-1].weight *= 8
    return net


def random_images(n: int = 4) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradient(net: nn.Module, one: Tensor) -> Tensor:
    """The input gradient (1, 1, 8, 8) of the largest logit of one image."""
    leaf = one[None].clone().requires_grad_()
    net(leaf)[0].max().backward()
    assert leaf.grad is not None
    return leaf.grad


def asked(net: nn.Module, x: Tensor, feature, state=None) -> tuple[Tensor, Tensor]:
    """A feature on the graph of x, and x."""
    leaf = x.clone().requires_grad_()
    y, index = net(x).argmax(1), torch.arange(len(x))
    oracle = Oracle(wrap(net), len(x), feature.access)
    with oracle.session():
        rows = Rows(index, index, leaf, y)
        found = feature(oracle, rows, state or {}, Rng(0).at(index), create_graph=True)
    return found, leaf


def slope_is_right(net: nn.Module, x: Tensor, feature, state=None) -> None:
    """The gradient of a random sum of the feature is that of finite differences."""
    found, leaf = asked(net, x, feature, state)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(5)).to(found)
    (found * weight).sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0
    away = torch.randn(x.shape, generator=torch.Generator().manual_seed(6)).to(x)
    ends = [(asked(net, x + s * 1e-6 * away, feature, state)[0] * weight).sum() for s in (1, -1)]
    got = float((leaf.grad * away).sum())
    assert got == pytest.approx(float((ends[0] - ends[1]).detach() / 2e-6), rel=1e-4, abs=1e-7)
