"""Guided backpropagation and DeepLIFT: whichever way a net is written, or a clear error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import filled, predicted, rand
from replicas import explanations as slow
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible import attacks, explain
from foible.models import softplus_twin, wrap
from foible.parts.threats import Linf

RULES = [explain.guided_backprop(), explain.deep_lift(0.2)]
rules = pytest.mark.parametrize("rule", RULES, ids=["guided", "deep_lift"])


class Written(nn.Module):
    """One function, its activations written in the ways that nets are written."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.three, self.head = nn.Linear(4 * 9, 6), nn.Linear(6, 3)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        first = self.act(self.one(x))
        second = self.act(self.two(first) + first)
        pooled = F.max_pool2d(self.two(second), 2)
        return self.head(self.act(self.three(pooled.flatten(1))))


def discarded(x: Tensor) -> Tensor:
    x.relu_()  # what it returns is not used: the change must be in x itself
    return x


def through_a_view(x: Tensor) -> Tensor:
    x.flatten(1).relu_()
    return x


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "relu_": lambda x: torch.relu_(x),
    "discarded": discarded,
    "through a view": through_a_view,
    "clamp": lambda x: x.clamp(min=0),
    "clamp, place": lambda x: torch.clamp(x, 0.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_": lambda x: x.clamp_(min=0),
    "clip": lambda x: torch.clip(x, min=torch.tensor(0.0)),
    "threshold": nn.Threshold(0.0, 0.0),
}


class Cut(nn.Module):
    """The module ReLU, a fresh one each time, as captum's hooks need it."""

    def __init__(self, net: Written) -> None:
        super().__init__()
        self.one, self.two, self.three, self.head = net.one, net.two, net.three, net.head
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.acts[0](self.one(x))
        second = self.acts[1](self.two(first) + first)
        return self.head(self.acts[2](self.three(self.pool(self.two(second)).flatten(1))))


def written(way: str) -> nn.Module:
    return filled(Written(WAYS[way]), 3, 2.0).double().eval()


@pytest.fixture
def x() -> Tensor:
    return rand(7, 2, 6, 6, seed=2, dtype=torch.float64)


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 0, 1, 2, 1])


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum speaks of its hooks
        yield


# --- against captum, and against the paper


def test_deep_lift_is_captums(x: Tensor, y: Tensor, quiet: None) -> None:
    """Where a pool does not follow an activation: captum 0.9 hooks both on one tensor there."""
    from captum.attr import DeepLift

    net = written("module")
    for baseline in (0.0, 0.3):
        wanted = DeepLift(Cut(net)).attribute(x, torch.full_like(x, baseline), target=y)
        found = explain.deep_lift(baseline)(net, x, y)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
        assert wanted.abs().max() > 0.1


@pytest.mark.parametrize("act", [nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.LeakyReLU])
def test_other_activations_are_captums(act: type[nn.Module], x, y, quiet: None) -> None:
    from captum.attr import DeepLift

    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), act(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4, 5), act(), nn.Linear(5, 3),
    )  # fmt: skip
    net = filled(net, 3, 2.0).double()
    wanted = DeepLift(net).attribute(x, torch.zeros_like(x), target=y)
    torch.testing.assert_close(explain.deep_lift()(net, x, y), wanted, rtol=0, atol=1e-9)


def test_guided_backpropagation_is_captums(x: Tensor, y: Tensor, quiet: None) -> None:
    from captum.attr import GuidedBackprop

    net = written("module")
    wanted = GuidedBackprop(Cut(net)).attribute(x, target=y)
    found = explain.guided_backprop()(net, x, y)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert not torch.allclose(found, explain.saliency()(net, x, y))


@pytest.mark.parametrize("act", [torch.relu, torch.sigmoid, F.softplus])
def test_deep_lift_is_the_papers(act: Callable[[Tensor], Tensor]) -> None:
    first, second = filled(nn.Linear(6, 5), 1, 2.0), filled(nn.Linear(5, 4), 2, 2.0)
    parts = [first.double(), act, second.double(), act, filled(nn.Linear(4, 2), 3).double()]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(p for p in parts if isinstance(p, nn.Module))

        def forward(self, x: Tensor) -> Tensor:
            for part in parts:
                x = part(x)
            return x

    x = rand(4, 6, seed=8, dtype=torch.float64)
    for baseline in (0.0, 0.7):
        found = explain.deep_lift(baseline)(Net(), x, 1)
        for row, one in zip(found, x, strict=True):
            with torch.no_grad():
                wanted = slow.deep_lift_mlp(parts, one, torch.full_like(one, baseline), 1)
            torch.testing.assert_close(row, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("way", ["F.relu", "relu_", "clamp"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_deep_lift_is_complete(way: str, kernel: int, x: Tensor, y: Tensor) -> None:
    """Also for a pool right behind an activation, and for one whose windows overlap."""
    inner = written(way)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = inner, filled(nn.Linear(4 * (6 - kernel + 1) ** 2, 3), 4)
            self.head.double()

        def forward(self, x: Tensor) -> Tensor:
            maps = inner.act(inner.two(inner.act(inner.one(x))))
            return self.head(F.max_pool2d(maps, kernel, stride=1).flatten(1))

    net = Net()
    for one in (inner, net):
        for baseline in (0.0, 0.4):
            explainer = explain.deep_lift(baseline)
            maps = explainer(one, x, y)
            gap = (one(x) - one(torch.full_like(x, baseline))).gather(1, y[:, None]).squeeze(1)
            torch.testing.assert_close(maps.flatten(1).sum(1), gap, rtol=0, atol=1e-9)
            assert explain.completeness(explainer, one, x, y, maps).max() < 1e-7


def test_near_the_baseline_deep_lift_is_the_gradient(x: Tensor) -> None:
    """A smooth function's quotient is worth nothing there: also in float32."""
    net = filled(nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 2)), 1)
    base = 0.3
    for dtype, near, tol in ((torch.float32, 1e-6, 1e-4), (torch.float64, 1e-9, 1e-8)):
        net = net.to(dtype)
        close = (base + near * x).to(dtype)
        maps = explain.deep_lift(base)(net, close, 1)
        wanted = (close - base) * explain.saliency()(net, close, 1)
        assert (maps - wanted).abs().max() <= tol * wanted.abs().max()


# --- whichever way it is written


@pytest.mark.parametrize("way", WAYS)
@rules
def test_a_relu_is_a_relu(rule: Any, way: str, x: Tensor, y: Tensor) -> None:
    net, kept = written(way), x.clone()
    wanted = rule(written("module"), x, y)
    before = everything_about(net)
    torch.testing.assert_close(rule(net, x, y), wanted, rtol=0, atol=1e-12)
    assert torch.equal(x, kept)
    assert all(same(v, everything_about(net)[k]) for k, v in before.items())


@pytest.mark.parametrize("way", WAYS)
def test_the_twin_softens_every_relu(way: str, x: Tensor, y: Tensor) -> None:
    by_module, twin = softplus_twin(written("module"), 5.0), softplus_twin(written(way), 5.0)
    assert torch.equal(twin(x), by_module(x))
    assert not torch.allclose(twin(x), written("module")(x), atol=1e-3)
    for rule in (*RULES, explain.saliency()):
        torch.testing.assert_close(rule(twin, x, y), rule(by_module, x, y), rtol=0, atol=1e-12)


def test_a_map_of_a_functional_net_can_be_bent(x: Tensor) -> None:
    for explainer in (explain.guided_backprop(), explain.deep_lift(), explain.grad_cam("two#2")):
        net = written("F.relu")
        y = predicted(net, x)
        order = explainer(net, x, y).roll(1, 0)
        bent = attacks.bend(Linf(0.1), explainer, steps=10)(net, x, y, order)
        assert (bent.similarity >= bent.before).all() and bent.similarity.isfinite().all()
        assert (bent.similarity > bent.before).double().mean() > 0.5


@rules
def test_a_map_does_not_depend_on_the_chunk(rule, x, y, monkeypatch) -> None:
    net = wrap(written("F.relu in place"))
    whole = rule(net, x, y)
    for width in (1, 3):
        monkeypatch.setattr(type(net), "chunk", lambda self, x, width=width: width)
        torch.testing.assert_close(rule(net, x, y), whole, rtol=0, atol=1e-12)
