"""Every map that says it is differentiable is: central differences in float64, one sweep."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import filled, rand, randn
from givens import GIVEN
from torch import Tensor, nn

from foible.core.explainer import Explainer

PARTS = {name: make() for name, make in GIVEN.items()}
NAMES = [n for n, p in PARTS.items() if isinstance(p, Explainer) and p.differentiable]
STEP = 1e-5


class Smooth(nn.Module):
    """What every explainer serves: smooth units, module and function; the mean, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)
        self.act: nn.Module = nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = F.softplus(self.again(x)) + x
        return self.head(self.act(self.again(x)).mean((2, 3)))


class Modules(nn.Module):
    """The same with a module for every layer, for layer-wise relevance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Softplus(),
            nn.Conv2d(3, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Kinked(Smooth):
    """The same with ReLUs, module and function, for what puts softplus in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = F.relu(self.again(x)) + x
        return self.head(self.act(self.again(x)).mean((2, 3)))


NETS = {"lrp": Modules, "smoothed": Kinked}
# Maps that are differentiable by x and not by the parameters, and say so.
BY_X_ONLY = {"lrp", "masking_model"}


def test_the_sweep_is_not_empty() -> None:
    assert len(NAMES) >= 9


@pytest.mark.parametrize("name", NAMES)
def test_a_map_has_the_derivative_that_it_says(name: str) -> None:
    explainer = PARTS[name]
    net = filled(NETS.get(name, Smooth)(), 4, 2.0).double().eval()
    x, mix = rand(3, 1, 6, 6, seed=1, dtype=torch.float64), randn(3, 1, 6, 6, seed=2).double()
    y = torch.tensor([1, 0, 3])
    leaf = x.clone().requires_grad_()
    map_ = explainer(net, leaf, y, seed=3, create_graph=True)
    torch.testing.assert_close(map_.detach(), explainer(net, x, y, seed=3), rtol=0, atol=1e-12)
    weights = [p for p in net.parameters() if p.dim() > 1]
    if name in BY_X_ONLY:
        weights = []
    by_x, *by_weights = torch.autograd.grad((map_ * mix).sum(), [leaf, *weights])

    def of(at: Tensor) -> float:
        return float((explainer(net, at, y, seed=3) * mix).sum())

    for seed in (5, 6):
        way = randn(*x.shape, seed=seed, dtype=torch.float64)
        slope = (of(x + STEP * way) - of(x - STEP * way)) / (2 * STEP)
        wanted = float((by_x * way).sum())
        assert abs(slope - wanted) <= 1e-6 * max(1.0, abs(wanted)), (slope, wanted)
    assert by_x.abs().max() > 1e-5
    assert all(p.grad is None for p in net.parameters())
    if not weights:
        return
    ways = [randn(*p.shape, seed=7, dtype=torch.float64) for p in weights]
    values = []
    for sign in (1, -1):
        _move(weights, ways, sign * STEP)
        values.append(of(x))
        _move(weights, ways, -sign * STEP)
    slope = (values[0] - values[1]) / (2 * STEP)
    wanted = sum(float((g * way).sum()) for g, way in zip(by_weights, ways, strict=True))
    assert abs(slope - wanted) <= 1e-6 * max(1.0, abs(wanted)), (slope, wanted)


def _move(weights: list[Tensor], ways: list[Tensor], step: float) -> None:
    with torch.no_grad():
        for weight, way in zip(weights, ways, strict=True):
            weight += step * way
