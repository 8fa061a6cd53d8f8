"""Shapley values: brute force, shap, captum, the axioms, and how fast a sample gets there."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from captum.attr import KernelShap as CaptumKernelShap
from conftest import Counter, filled, rand, randn
from test_removal import rows_of
from test_surrogate import mlp
from torch import Tensor, nn

from foible import explain
from foible.core.errors import InputError
from foible.core.randomness import Rng
from foible.explain.removal import EveryFeature, LabelMap, Superpixels
from foible.explain.shapley import coalitions
from foible.models import wrap


def brute_force(
    net: nn.Module, x: Tensor, c: int, label: np.ndarray, baseline: float
) -> np.ndarray:
    """Shapley 1953, one set at a time: label (D,) is the player of each feature of x (*shape)."""
    players = range(label.max() + 1)

    def worth(present: frozenset[int]) -> float:
        at = x.clone().flatten()
        for i in range(at.numel()):
            if label[i] not in present:
                at[i] = baseline
        with torch.no_grad():
            return float(net(at.view_as(x)[None])[0, c])

    held: dict[frozenset[int], float] = {}
    for size in range(len(players) + 1):
        for some in combinations(players, size):
            held[frozenset(some)] = worth(frozenset(some))
    values = np.zeros(len(players))
    for i in players:
        for present in held:
            if i not in present:
                s, m = len(present), len(players)
                weight = math.factorial(s) * math.factorial(m - s - 1) / math.factorial(m)
                values[i] += weight * (held[present | {i}] - held[present])
    return values


@pytest.mark.parametrize("players", [1, 2, 3, 6, 9, 10])
def test_all_coalitions_give_the_values_of_brute_force(players: int) -> None:
    net, x = mlp(10), rand(2, 10, seed=4, dtype=torch.float64)
    label = np.arange(10) % players
    kind = LabelMap(tuple(label.tolist()))
    full = explain.kernel_shap(2**players if players > 1 else 4, kind, 0.3)
    exact = explain.exact_shapley(kind, 0.3)
    for i in range(2):
        expected = brute_force(net, x[i], 1, label, 0.3)
        for method in (full, exact):
            found = method.fit(net, x[i : i + 1], 1)
            assert np.abs(found.weights[0].numpy() - expected).max() < 1e-6
            spread = method(net, x[i : i + 1], 1)[0].numpy()
            assert np.abs(np.bincount(label, spread) - expected).max() < 1e-6


def logit(net: nn.Module, table: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net(torch.from_numpy(table))[:, 2].numpy()


def test_shaps_regression_agrees_on_all_coalitions() -> None:
    import shap

    net, x = mlp(8), rand(3, 8, seed=4, dtype=torch.float64)
    found = explain.kernel_shap(256)(net, x, 2)
    kernel = shap.KernelExplainer(lambda table: logit(net, table), np.zeros((1, 8)))
    theirs = kernel.shap_values(x.numpy(), nsamples=2**8, l1_reg=False, silent=True)
    assert np.abs(found.numpy() - theirs).max() < 1e-5


@pytest.mark.slow  # it compiles for most of a minute
def test_shaps_exact_explainer_agrees() -> None:
    import shap

    net, x = mlp(8), rand(3, 8, seed=4, dtype=torch.float64)
    masker = shap.maskers.Independent(np.zeros((1, 8)), max_samples=1)
    exact = shap.explainers.Exact(lambda table: logit(net, table), masker)(x.numpy()).values
    for method in (explain.kernel_shap(256), explain.exact_shapley()):
        assert np.abs(method(net, x, 2).numpy() - exact).max() < 1e-5


@pytest.mark.parametrize(("players", "samples"), [(8, 256), (12, 200), (20, 300)])
def test_captum_agrees_on_the_same_coalitions(players: int, samples: int) -> None:
    """captum's regression, fed with our coalitions and their weights, ends at 1e7 for its 1e6."""
    net, x = mlp(players), rand(1, players, seed=4, dtype=torch.float64)
    method = explain.kernel_shap(samples)
    found = method(net, x, 2)
    half, weight = coalitions(players, samples, Rng(0).split(5).at(torch.arange(1)))
    keep = torch.cat([half[0], ~half[0]]).double()
    masks = [torch.ones(1, players).double(), torch.zeros(1, players).double(), *keep[:, None]]
    weights = [1e7, 1e7, *torch.cat([weight, weight]).mul(len(weight)).tolist()]
    theirs = CaptumKernelShap(net)
    turn, order = iter(masks), iter(weights)
    theirs.perturb_func = lambda *args, **kw: next(turn)
    theirs.similarity_func = lambda *args, **kw: torch.tensor([next(order)], dtype=torch.float64)
    expected = theirs.attribute(x, target=2, n_samples=len(masks))
    assert float((found - expected).abs().max()) < 1e-5


# --- axioms


@pytest.mark.parametrize("samples", [8, 30, 60, 64, 500])
def test_the_sum_always_comes_out(samples: int) -> None:
    """Even with fewer samples than segments."""
    net, x = mlp(36), rand(3, 1, 6, 6, seed=4, dtype=torch.float64)
    for kind in (2, EveryFeature(), Superpixels(1.0, 3.0, 1.0)):
        method = explain.kernel_shap(samples, kind, 0.2)
        fit = method.fit(net, x, 0)
        with torch.no_grad():
            gap = (net(x) - net(0 * x + 0.2))[:, 0]
        torch.testing.assert_close(fit.weights.sum(1), gap, rtol=0, atol=1e-6)
        torch.testing.assert_close(method(net, x, 0).flatten(1).sum(1), gap, rtol=0, atol=1e-6)
        assert bool((fit.r2 <= 1 + 1e-9).all())


class Game(nn.Module):
    """Players 0 and 1 count alike, 2 counts by itself, 3 and 4 not at all."""

    def forward(self, x: Tensor) -> Tensor:
        together = torch.tanh(x[:, 0] + x[:, 1]) * (1 + x[:, 2] ** 2)
        return torch.stack([together, 0 * together], 1)


@pytest.mark.parametrize("method", [explain.kernel_shap(32), explain.exact_shapley()], ids=str)
def test_symmetry_and_dummy(method) -> None:
    x = torch.tensor([[0.7, 0.7, 0.4, 0.9, 0.1]], dtype=torch.float64)
    values = method(Game(), x, 0)[0]
    assert abs(float(values[0] - values[1])) < 1e-10 and float(values[0]) > 0.1
    assert float(values[3:].abs().max()) < 1e-10 and float(values[2]) > 0.01


def test_the_error_falls_with_samples_and_a_linear_model_has_none() -> None:
    net, x = mlp(12, 3), rand(8, 12, seed=4, dtype=torch.float64)
    exact = explain.exact_shapley()(net, x, 1)
    errors = []
    for samples in (30, 120, 480, 1920):
        maps = [explain.kernel_shap(samples)(net, x, 1, seed=s) for s in range(3)]
        errors.append(float((torch.stack(maps) - exact).square().mean().sqrt()))
    assert all(a > 1.5 * b for a, b in pairwise(errors)), errors
    straight = filled(nn.Linear(12, 2), 1).double()
    maps = explain.kernel_shap(40)(straight, x, 1)
    torch.testing.assert_close(maps, straight.weight[1].detach() * x, rtol=0, atol=1e-10)


# --- coalitions


def test_whole_sizes_come_first_and_weights_are_the_kernels() -> None:
    draw = Rng(1).at(torch.arange(3))
    half, weight = coalitions(10, 400, draw)
    assert half.shape == (3, 199, 10) and torch.equal(half[0, :55], half[2, :55])
    assert half[0, :10].sum(1).tolist() == [1] * 10 and half[0, 10:55].sum(1).tolist() == [2] * 45
    assert not torch.equal(half[0, 55:], half[1, 55:])
    assert bool((half[:, 55:].sum(2) >= 3).all()) and bool((half[:, 55:].sum(2) <= 5).all())
    torch.testing.assert_close(weight.sum(), torch.tensor(1.0).double())
    kernel = {s: 9 / (math.comb(10, s) * s * (10 - s)) for s in range(1, 10)}
    assert abs(float(weight[0] / weight[10]) - kernel[1] / kernel[2]) < 1e-12


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
def test_with_room_for_all_nothing_is_drawn(count: int) -> None:
    half, weight = coalitions(count, 2**count, Rng(1).at(torch.arange(3)))
    assert half.shape == (1, 2 ** (count - 1) - 1, count)
    seen = {tuple(z) for z in torch.cat([half[0], ~half[0]]).tolist()}
    assert len(seen) == 2**count - 2
    size = half[0].sum(1)
    kernel = torch.tensor([1 / (math.comb(count, s) * s * (count - s)) for s in size.tolist()])
    torch.testing.assert_close(weight / weight.sum(), (kernel / kernel.sum()).double())


def test_sizes_are_drawn_by_their_mass() -> None:
    half, _ = coalitions(30, 20_002, Rng(2).at(torch.arange(1)))
    drawn = half[0, 30 + 435 :].sum(1)
    assert drawn.min() == 3  # sizes 1 and 2 are whole
    share = torch.bincount(drawn, minlength=16)[3:].double() / len(drawn)
    mass = [(1 if s == 15 else 2) / (s * (30 - s)) for s in range(3, 16)]
    assert float((share - torch.tensor(mass) / sum(mass)).abs().max()) < 0.02
    each = half[0, 30 + 435 :].double().mean(0)
    assert float((each / each.mean() - 1).abs().max()) < 0.15  # every segment comes equally often


# --- cost


def test_cost_and_width() -> None:
    x = rand(5, 1, 6, 6, seed=2, dtype=torch.float64)
    wanted = [(explain.kernel_shap(40, 2), 40), (explain.kernel_shap(41, 1), 40)]
    wanted += [(explain.exact_shapley(3), 16), (explain.kernel_shap(1000, 3), 16)]
    for method, cost in wanted:
        model = Counter(wrap(mlp(36)), at_most=16)
        method(model, x, 1)
        assert model.forwards == 5 * cost + 1 and max(model.sizes) <= 16


def test_superpixels_of_several_counts_get_the_values_of_each_alone() -> None:
    x = torch.zeros(3, 1, 12, 12, dtype=torch.float64)
    x[0, :, :, 6:] = 1.0
    x[1, :, :6, :6] = 1.0
    x[1, :, 6:, 6:] = 0.7
    x[2, :, 4:] = 0.5
    net, kind = mlp(144), Superpixels(1.0, 8.0, 1.0)
    fit = explain.kernel_shap(1024, kind).fit(net, x, 0)
    parts = kind.of(rows_of(x))
    assert len(parts.present.sum(1).unique()) > 1
    for i in range(3):
        alone = brute_force(net, x[i], 0, parts.label[i].flatten().numpy(), 0.0)
        assert np.abs(fit.weights[i, : len(alone)].numpy() - alone).max() < 1e-6
        assert bool((fit.weights[i, len(alone) :] == 0).all())


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(InputError, match="at least 4"):
        explain.kernel_shap(3)
    with pytest.raises(InputError, match=r"36 segments have 2 \*\* 36"):
        explain.exact_shapley(1)(mlp(36), randn(1, 1, 6, 6, seed=1).double(), 0)
