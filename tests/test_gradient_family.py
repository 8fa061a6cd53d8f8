"""VarGrad and expected gradients, and what the whole family owes to algebra and to captum."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import filled, linear, rand, randn
from replicas import explanations as slow
from torch import Tensor, nn

from foible import explain
from foible.core.errors import InputError
from foible.core.randomness import Draw, Rng
from foible.models import TorchModel, wrap


@pytest.fixture
def flat() -> tuple[TorchModel, Tensor, Tensor]:
    weight = randn(4, 10, seed=1, dtype=torch.float64)
    return wrap(linear(weight, randn(4, seed=2).double())), weight, rand(6, 10, seed=3).double()


def draws(seed: int, rows: int) -> Draw:
    return Rng(seed).split(5).at(torch.arange(rows))


class Conv(nn.Module):
    """Functional and in-place units, and a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(x), inplace=True), 2)
        return self.head(F.relu(self.two(x)).flatten(1))


@pytest.fixture
def conv() -> nn.Module:
    return filled(Conv(), 3, 2.0).double()


@pytest.fixture
def x() -> Tensor:
    return rand(5, 2, 8, 8, seed=2, dtype=torch.float64)


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 1, 0])


# --- the replicas


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_vargrad_is_the_papers(chunk: int, conv, x, y, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchModel, "chunk", lambda self, x: chunk)
    found = explain.vargrad(7, 0.2)(conv, x, y, seed=8)
    noise = draws(8, 5).normal((7, 2, 8, 8), torch.float64) * 0.2
    for i in range(5):
        wanted = slow.vargrad(conv, x[i], int(y[i]), noise[i])
        torch.testing.assert_close(found[i], wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("given", [True, False])
def test_expected_gradients_are_the_papers(given: bool, chunk: int, conv, x, y, monkeypatch):
    monkeypatch.setattr(TorchModel, "chunk", lambda self, x: chunk)
    background = rand(4, 2, 8, 8, seed=5, dtype=torch.float64) if given else None
    found = explain.expected_gradients(6, background)(conv, x, y, seed=8)
    draw = draws(8, 5)
    if background is None:
        bases = draw.uniform((6, 2, 8, 8), torch.float64)
    else:
        which = (draw.uniform((6,), torch.float64) * 4).long()
        assert len(which.unique()) == 4
        bases = background[which]
    at = draw.split(1).uniform((6,), torch.float64)
    for i in range(5):
        wanted = slow.expected_gradients(conv, x[i], int(y[i]), bases[i], at[i])
        torch.testing.assert_close(found[i], wanted, rtol=0, atol=1e-10)


# --- laws


def test_vargrad_and_smoothgrad_are_two_moments_of_one_draw(conv, x, y) -> None:
    mean = explain.smoothgrad(9, 0.3)(conv, x, y, seed=1)
    spread = explain.vargrad(9, 0.3)(conv, x, y, seed=1)
    noise = draws(1, 5).normal((9, 2, 8, 8), torch.float64) * 0.3
    square = sum(explain.saliency()(conv, x + noise[:, k], y) ** 2 for k in range(9)) / 9
    torch.testing.assert_close(spread, square - mean**2, rtol=0, atol=1e-12)
    assert (spread >= 0).all() and not explain.vargrad().signed


def test_vargrad_keeps_the_digits_of_a_small_variance() -> None:
    """A gradient of 1,000 that varies by 1e-3: a difference of squares has none left in float32."""

    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([1000 * x + 5e-4 * x**2, 0 * x], 1)

    spread = explain.vargrad(400, 0.5)(wrap(Steep()), torch.zeros(1, 1), 0)
    noise = draws(0, 1).normal((400, 1), torch.float32) * 0.5
    wanted = float((1e-3 * noise.double()).var(correction=0))
    assert abs(float(spread) - wanted) < 0.15 * wanted  # each gradient has 6e-5 of rounding


def test_linear_models(flat) -> None:
    model, weight, x = flat
    background = rand(3, 10, seed=4, dtype=torch.float64)
    same = explain.expected_gradients(5, background[:1])(model, x, 2)
    torch.testing.assert_close(same, weight[2] * (x - background[0]), rtol=0, atol=1e-12)
    assert explain.vargrad(5)(model, x, 2).abs().max() < 1e-25
    lifted = explain.deep_lift(0.3)(model, x, 2)
    torch.testing.assert_close(lifted, weight[2] * (x - 0.3), rtol=0, atol=1e-12)
    guided = explain.guided_backprop()(model, x, 2)
    torch.testing.assert_close(guided, weight[2].expand(6, 10), rtol=0, atol=1e-12)


def test_expected_gradients_sum_to_the_gap_in_expectation(mlp: nn.Module, table: Tensor) -> None:
    background = rand(20, 10, seed=9, dtype=torch.float64)
    gap = (mlp(table) - mlp(background).mean(0))[:, 1].detach()
    misses = []
    for samples in (50, 800):
        sums = explain.expected_gradients(samples, background)(mlp, table, 1).sum(1)
        misses.append(float((sums - gap).pow(2).mean().sqrt()))
    assert misses[1] < misses[0] / 2 and misses[1] < 0.1 * float(gap.std())


def test_a_row_has_its_own_draws(conv: nn.Module, x: Tensor) -> None:
    for explainer in (explain.vargrad(4), explain.expected_gradients(4)):
        whole = explainer(conv, x, 1, seed=3)
        torch.testing.assert_close(explainer(conv, x[:2], 1, seed=3), whole[:2])


def test_what_does_nothing_gets_nothing(mlp: nn.Module, table: Tensor) -> None:
    with torch.no_grad():
        mlp[0].weight[:, 4] = 0
    family = [
        explain.deep_lift(), explain.expected_gradients(5), explain.guided_backprop(),
        explain.integrated_gradients(9), explain.vargrad(5),
    ]  # fmt: skip
    for explainer in family:
        maps = explainer(mlp, table, 0)
        assert (maps[:, 4] == 0).all() and (maps[:, :4] != 0).any()


def test_bad_settings(conv: nn.Module, x: Tensor) -> None:
    for make in (explain.vargrad, explain.expected_gradients):
        with pytest.raises(InputError, match="at least 1"):
            make(0)
    with pytest.raises(InputError, match=r"\(2, 3\) and an input \(2, 8, 8\)"):
        explain.expected_gradients(3, torch.zeros(2, 3))(conv, x, 1)
    unbounded = wrap(conv, bounds=(float("-inf"), float("inf")))
    with pytest.raises(InputError, match="give background="):
        explain.expected_gradients(3)(unbounded, x, 1)
    assert explain.expected_gradients(3, x)(unbounded, x, 1).isfinite().all()


# --- against central differences and captum


@pytest.mark.parametrize(("dtype", "step", "tol"), [(torch.float64, 1e-6, 1e-5),
                                                   (torch.float32, 1e-3, 1e-2)])  # fmt: skip
def test_saliency_is_the_slope(dtype: torch.dtype, step: float, tol: float) -> None:
    """B1: on 50 random pixels, of a smooth net, where a step of float32 can be afforded."""
    net = filled(nn.Sequential(nn.Flatten(), nn.Linear(144, 9), nn.Tanh(), nn.Linear(9, 3)), 1)
    net = net.to(dtype)
    x = rand(1, 1, 12, 12, seed=3, dtype=dtype)
    found = explain.saliency()(net, x, 2).flatten()
    size = float(found.abs().max())
    for place in torch.randperm(144, generator=torch.Generator().manual_seed(4))[:50].tolist():
        d = torch.zeros(144, dtype=dtype)
        d[place] = step
        with torch.no_grad():
            up, down = (net(x + s * d.view_as(x))[0, 2] for s in (1, -1))
        assert abs(float(up - down) / (2 * step) - float(found[place])) <= tol * size


def test_integrated_gradients_are_captums(conv: nn.Module, x: Tensor, y: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import IntegratedGradients

        for steps, baseline in ((20, 0.0), (7, 0.4)):
            wanted = IntegratedGradients(conv).attribute(
                x, torch.full_like(x, baseline), y, n_steps=steps, method="riemann_middle"
            )
            found = explain.integrated_gradients(steps, baseline)(conv, x, y)
            # captum rounds the places on the way to float32.
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)
