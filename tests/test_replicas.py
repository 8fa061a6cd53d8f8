"""The fast methods equal their slow, paper-shaped replicas: 1e-10 in float64, 1e-6 in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import filled, rand
from replicas import attacks as slow
from replicas import explanations as slow_maps
from torch import Tensor, nn

from foible import attacks, explain
from foible.core.randomness import Draw, Rng
from foible.models import TorchModel, wrap
from foible.parts.threats import L2, Linf

EPS, ROWS = 0.07, 5


class Net(nn.Module):
    """A small convolutional net of smooth units: a kink would tell float32 from float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(1))


@pytest.fixture(params=[torch.float64, torch.float32], ids=["f64", "f32"])
def given(request: pytest.FixtureRequest) -> tuple[TorchModel, Tensor, Tensor, float]:
    net = filled(Net(), 1, 2.0).to(request.param)
    x = rand(ROWS, 2, 5, 5, seed=2, dtype=request.param)
    with torch.no_grad():
        net.head.bias -= net(x).mean(0)  # so that several classes are predicted
        y = net(x).argmax(1)
    assert len(y.unique()) > 1
    return wrap(net), x, y, 1e-10 if request.param == torch.float64 else 1e-6


def draws(seed: int, *streams: int, rows: int = ROWS) -> Draw:
    rng = Rng(seed)
    for stream in streams:
        rng = rng.split(stream)
    return rng.at(torch.arange(rows))


def compare(found: Any, model: TorchModel, x: Tensor, y: Tensor, visited: Any, tol: float) -> None:
    """The attack returns the strongest point that the replica visits."""
    expected = [
        slow.strongest(model.net, clean, visited(clean, int(c), i), int(c))
        for i, (clean, c) in enumerate(zip(x, y, strict=True))
    ]
    torch.testing.assert_close(found.x, torch.stack(expected), rtol=0, atol=tol)
    assert (found.x != x).flatten(1).any(1).all()
    with torch.no_grad():
        assert torch.equal(found.success, model.net(found.x).argmax(1) != y)


def test_fgsm(given) -> None:
    model, x, y, tol = given
    f = model.net
    found = attacks.fgsm(Linf(EPS))(model, x, y)
    compare(found, model, x, y, lambda a, c, i: slow.fgsm(f, a, c, EPS), tol)


def test_fgsm_towards_a_target(given) -> None:
    model, x, y, tol = given
    target = (y + 1) % 4
    found = attacks.fgsm(Linf(EPS))(model, x, y, target=target)
    for i in range(ROWS):
        points = [x[i], *slow.fgsm_targeted(model.net, x[i], int(target[i]), EPS)]
        with torch.no_grad():
            losses = [float(slow.loss(model.net, p, int(target[i]))) for p in points]
        best = points[losses.index(min(losses))]
        torch.testing.assert_close(found.x[i], best, rtol=0, atol=tol)


def test_r_fgsm(given) -> None:
    model, x, y, tol = given
    found = attacks.r_fgsm(Linf(EPS), 0.25)(model, x, y, seed=3)
    noise = draws(3, 0, 3).normal(tuple(x.shape[1:]), x.dtype)
    compare(
        found, model, x, y,
        lambda a, c, i: slow.r_fgsm(model.net, a, c, EPS, 0.25 * EPS, noise[i]), tol,
    )  # fmt: skip


@pytest.mark.parametrize("step", [None, 0.03])
def test_bim(given, step: float | None) -> None:
    model, x, y, tol = given
    found = attacks.bim(Linf(EPS), 6, step)(model, x, y)
    size = 1.25 * EPS / 6 if step is None else step
    compare(found, model, x, y, lambda a, c, i: slow.bim(model.net, a, c, EPS, size, 6), tol)


def test_least_likely(given) -> None:
    model, x, y, tol = given
    found = attacks.least_likely(Linf(EPS), 6)(model, x, y)
    with torch.no_grad():
        least = model.net(x).argmin(1)
    for i in range(ROWS):
        at, seen = x[i], []
        for _ in range(6):
            at = at - 1.25 * EPS / 6 * slow.gradient(model.net, at, int(least[i])).sign()
            at = torch.maximum(torch.minimum(at, x[i] + EPS), x[i] - EPS).clip(0, 1)
            seen.append(at)
        with torch.no_grad():
            losses = [float(slow.loss(model.net, p, int(least[i]))) for p in seen]
        best = seen[losses.index(min(losses))]
        torch.testing.assert_close(found.x[i], best, rtol=0, atol=tol)


def test_pgd(given) -> None:
    model, x, y, tol = given
    found = attacks.pgd(Linf(EPS), 6)(model, x, y, seed=4)
    u = draws(4, 0, 3).uniform(tuple(x.shape[1:]), x.dtype)
    start = (x + (2 * u - 1) * EPS).clip(0, 1)
    size = 2.5 * EPS / 6
    compare(
        found, model, x, y,
        lambda a, c, i: slow.pgd(model.net, a, c, EPS, size, start[i], 6), tol,
    )  # fmt: skip


def test_pgd_in_l2(given) -> None:
    model, x, y, tol = given
    search = attacks.pgd(L2(0.5), 6).search
    clean = attacks.Attack("pgd", L2(0.5), type(search)(6, None, 2.5 / 6))(model, x, y)
    compare(
        clean, model, x, y,
        lambda a, c, i: slow.l2_pgd(model.net, a, c, 0.5, 2.5 * 0.5 / 6, a, 6), 5 * tol,
    )  # fmt: skip


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_mim(given, decay: float) -> None:
    model, x, y, tol = given
    found = attacks.mim(Linf(EPS), 6, decay=decay)(model, x, y)
    compare(
        found, model, x, y,
        lambda a, c, i: slow.mim(model.net, a, c, EPS, EPS / 6, 6, decay), tol,
    )  # fmt: skip


def test_the_smoothgrad_attack(given) -> None:
    model, x, y, tol = given
    found = attacks.smoothgrad_attack(Linf(EPS), samples=5, sigma=0.2)(model, x, y, seed=6)
    noise = draws(6, 0, 7).normal((5, *x.shape[1:]), x.dtype) * 0.2
    compare(
        found, model, x, y,
        lambda a, c, i: slow.smoothgrad_attack(model.net, a, c, EPS, noise[i]), tol,
    )  # fmt: skip


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_the_deletion_attack(given, baseline: float) -> None:
    model, x, y, _ = given
    x = torch.where(x < 0.2, baseline, x)  # entries that equal the baseline cost nothing
    with torch.no_grad():
        y = model.net(x).argmax(1)
    explainer = explain.integrated_gradients(20, baseline)
    found = attacks.ig_deletion(explainer, baseline)(model, x, y)
    maps = explainer(model, x, y)
    fell = 0
    for i in range(ROWS):
        at, count = slow.deletion(model.net, x[i], int(y[i]), maps[i], baseline)
        assert bool(found.success[i]) == (count > 0)
        if count > 0:
            fell += 1
            assert torch.equal(found.x[i], at) and int(found.distance[i]) == count
    assert fell >= 2


# --- explanations


def each(model: TorchModel, x: Tensor, y: Tensor, one: Any) -> Tensor:
    maps = [one(model.net, a, int(c), i) for i, (a, c) in enumerate(zip(x, y, strict=True))]
    return torch.stack(maps)


def test_saliency_and_gradient_times_input(given) -> None:
    model, x, y, tol = given
    found = explain.saliency()(model, x, y)
    expected = each(model, x, y, lambda f, a, c, i: slow_maps.saliency(f, a, c))
    torch.testing.assert_close(found, expected, rtol=tol, atol=tol)
    found = explain.gradient_x_input()(model, x, y)
    expected = each(model, x, y, lambda f, a, c, i: slow_maps.gradient_x_input(f, a, c))
    torch.testing.assert_close(found, expected, rtol=tol, atol=tol)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_smoothgrad(given, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchModel, "chunk", lambda self, x: chunk)
    model, x, y, tol = given
    found = explain.smoothgrad(7, 0.2)(model, x, y, seed=8)
    noise = draws(8, 5).normal((7, *x.shape[1:]), x.dtype) * 0.2
    expected = each(model, x, y, lambda f, a, c, i: slow_maps.smoothgrad(f, a, c, noise[i]))
    torch.testing.assert_close(found, expected, rtol=10 * tol, atol=10 * tol)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_integrated_gradients(
    given, baseline: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchModel, "chunk", lambda self, x: chunk)
    model, x, y, tol = given
    found = explain.integrated_gradients(9, baseline)(model, x, y)
    expected = each(
        model, x, y, lambda f, a, c, i: slow_maps.integrated_gradients(f, a, c, 9, baseline)
    )
    torch.testing.assert_close(found, expected, rtol=10 * tol, atol=10 * tol)


@pytest.mark.parametrize("chunk", [1, 70, 1000])
def test_lime(given, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchModel, "chunk", lambda self, x: chunk)
    model, x, y, tol = given
    found = explain.lime(samples=60, segments=2)(model, x, y, seed=9)
    segment = slow_maps.cells(2, 5, 5, 2)
    shown = draws(9, 5).uniform((60, int(segment.max()) + 1), x.dtype) < 0.5
    shown[:, 0] = True
    for i in range(ROWS):
        expected = slow_maps.lime(
            model.net, x[i], int(y[i]), shown[i].double().numpy(), segment, 0.25
        )
        maps = found[i].flatten().double()
        torch.testing.assert_close(maps, torch.from_numpy(expected), rtol=0, atol=100 * tol)
    assert len(found[0].unique()) > 5
