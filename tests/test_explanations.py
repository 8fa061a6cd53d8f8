"""What explanations must be: on linear models, by their axioms, and by finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import filled, linear, rand, randn
from torch import Tensor, nn

from foible import attacks, explain
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.rows import Rows
from foible.models import TorchModel, softplus_twin, wrap
from foible.models.twins import SharpSoftplus
from foible.parts.objectives import CrossEntropy
from foible.parts.threats import Linf

ADDITIVE = [explain.integrated_gradients(50), explain.gradient_x_input()]
GRADIENTS = [explain.saliency(), explain.smoothgrad(9, 0.3)]
DIFFERENTIABLE = [*GRADIENTS, explain.integrated_gradients(11), explain.gradient_x_input()]
names = [type(e).__name__ for e in DIFFERENTIABLE]


@pytest.fixture
def flat() -> tuple[TorchModel, Tensor, Tensor]:
    """A linear model in float64, its weights and inputs."""
    weight = randn(4, 10, seed=1, dtype=torch.float64)
    net = linear(weight, randn(4, seed=2, dtype=torch.float64))
    return wrap(net), weight, rand(6, 10, seed=3, dtype=torch.float64)


# --- linear models


@pytest.mark.parametrize("explainer", GRADIENTS)
def test_a_gradient_of_a_linear_model_is_its_weight(explainer, flat) -> None:
    model, weight, x = flat
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(explainer(model, x, target), weight[target], rtol=0, atol=1e-12)
    torch.testing.assert_close(explainer(model, x, 2), weight[2].expand(6, 10), rtol=0, atol=1e-12)


@pytest.mark.parametrize("explainer", ADDITIVE)
def test_attributions_of_a_linear_model_are_weight_times_input(explainer, flat) -> None:
    model, weight, x = flat
    torch.testing.assert_close(explainer(model, x, 1), weight[1] * x, rtol=0, atol=1e-12)


def test_integrated_gradients_are_complete_on_a_linear_model(flat) -> None:
    model, _, x = flat
    for steps, baseline in ((1, 0.0), (7, 0.3), (50, -2.0)):
        explainer = explain.integrated_gradients(steps, baseline)
        maps = explainer(model, x, 2)
        assert explain.completeness(explainer, model, x, 2, maps).max() < 1e-10
        gap = (model(x) - model(torch.full_like(x, baseline)))[:, 2]
        torch.testing.assert_close(maps.sum(1), gap.detach(), rtol=1e-10, atol=1e-12)


# --- the axioms of integrated gradients


def test_completeness_is_a_residual_that_can_be_wrong(mlp: nn.Module, table: Tensor) -> None:
    explainer = explain.integrated_gradients(200)
    maps = explainer(mlp, table, 1)
    right = explain.completeness(explainer, mlp, table, 1, maps)
    wrong = explain.completeness(explainer, mlp, table, 1, maps * 1.5)
    assert right.max() < 0.03 and torch.allclose(wrong, torch.full_like(wrong, 0.5), atol=0.05)


def test_completeness_on_the_softplus_twin(mlp: nn.Module, table: Tensor) -> None:
    """The midpoint rule's own error is all that is missing: it falls with steps^2, in float64."""
    twin = softplus_twin(mlp, 10.0)
    sums, residuals = {}, {}
    for steps in (50, 200, 1000):
        explainer = explain.integrated_gradients(steps)
        maps = explainer(twin, table, 1)
        sums[steps] = maps.sum(1)
        residuals[steps] = explain.completeness(explainer, twin, table, 1, maps)
    assert 12 < residuals[50].median() / residuals[200].median() < 20
    assert 20 < residuals[200].median() / residuals[1000].median() < 30
    assert residuals[200].max() < 2e-4 and residuals[1000].median() < 1e-6
    gap = (twin(table) - twin(0 * table))[:, 1].detach()
    without_it = (25 * sums[1000] - sums[200]) / 24  # Richardson: the error of steps^-2 taken out
    assert ((without_it - gap) / gap).abs().max() < 1e-6


def test_a_feature_that_does_nothing_gets_nothing(mlp: nn.Module, table: Tensor) -> None:
    with torch.no_grad():
        mlp[0].weight[:, 4] = 0
    maps = explain.integrated_gradients(30)(mlp, table, 0)
    assert (maps[:, 4] == 0).all() and (maps[:, :4] != 0).any()
    same = table.clone()
    same[:, 2] = 0.25  # no difference from the baseline, no attribution
    assert (explain.integrated_gradients(30, 0.25)(mlp, same, 0)[:, 2] == 0).all()


class Sum(nn.Module):
    def __init__(self, parts: list[nn.Module], weights: list[float]) -> None:
        super().__init__()
        self.parts, self.weights = nn.ModuleList(parts), weights

    def forward(self, x: Tensor) -> Tensor:
        return sum(w * part(x) for w, part in zip(self.weights, self.parts, strict=True))


def small(seed: int) -> nn.Module:
    body = nn.Sequential(nn.Linear(10, 8), nn.Softplus(), nn.Linear(8, 3))
    return filled(body, seed, 2.0).double()


@pytest.mark.parametrize("explainer", DIFFERENTIABLE, ids=names)
def test_linearity_in_two_models(explainer, table: Tensor) -> None:
    f, g = small(1), small(2)
    both = explainer(Sum([f, g], [2.0, -0.5]), table, 1, seed=4)
    apart = 2 * explainer(f, table, 1, seed=4) - 0.5 * explainer(g, table, 1, seed=4)
    torch.testing.assert_close(both, apart, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("explainer", DIFFERENTIABLE, ids=names)
def test_two_nets_of_one_function_get_one_map(explainer, table: Tensor) -> None:
    """Implementation invariance: units permuted, a layer folded out, weights rescaled."""
    f = small(1)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    g = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 8), nn.Softplus(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        g[0].weight.copy_(2 * torch.eye(10))
        g[0].bias.fill_(1.0)
        g[1].weight.copy_(f[0].weight[order] / 2)
        g[1].bias.copy_(f[0].bias[order] - g[1].weight.sum(1))
        g[3].weight.copy_(f[2].weight[:, order])
        g[3].bias.copy_(f[2].bias)
    torch.testing.assert_close(f(table), g(table))
    torch.testing.assert_close(explainer(f, table, 2), explainer(g, table, 2), rtol=0, atol=1e-12)


class Saturating(nn.Module):
    """Survey Fig. 4: class 1 scores 1 - relu(1 - x), flat from x = 1 on; class 0 scores a half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x, 0.5), 1 - torch.relu(1 - x)], 1)


def test_gradients_saturate_and_path_integration_does_not() -> None:
    model = wrap(Saturating(), bounds=(0, 3))
    x, y = torch.tensor([[1.5], [2.0], [2.9]]), torch.ones(3, dtype=torch.int64)
    assert torch.equal(explain.saliency()(model, x, y), torch.zeros(3, 1))
    assert torch.equal(explain.gradient_x_input()(model, x, y), torch.zeros(3, 1))
    for steps in (100, 1000):  # sensitivity: f(x) - f(0) = 1, all of it the one feature's
        maps = explain.integrated_gradients(steps)(model, x, y)
        assert ((maps - 1).abs() <= 1.5 * x / steps).all()
    stuck = attacks.fgsm(Linf(2.0))(model, x, y)
    assert not stuck.success.any() and torch.equal(stuck.x, x)
    deleted = attacks.ig_deletion(explain.integrated_gradients(100))(model, x, y)
    assert deleted.success.all() and deleted.distance.tolist() == [1, 1, 1]
    by_gradient = attacks.ig_deletion(explain.saliency())(model, x, y)
    assert not by_gradient.success.any()
    pushed = attacks.fgsm(Linf(2.0), explain.integrated_gradients(100))(model, x[:2], y[:2])
    assert pushed.success.all()


# --- the survey's thesis: a map is a direction


def test_minus_the_gradient_of_the_loss_is_the_weight_of_the_local_model() -> None:
    """Survey Eq. 10: -grad J(c') is proportional to w_c' of Eq. 6, for every class c'."""
    net = filled(nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5)), 8, 2.0)
    for dtype in (torch.float32, torch.float64):
        net = net.to(dtype)
        x = rand(20, 12, seed=9, dtype=dtype)
        probability = wrap(net, outputs=_softmax)
        oracle = Oracle(wrap(net), len(x))
        index = torch.arange(len(x))
        for c in range(5):
            target = torch.full((len(x),), c)
            w = explain.saliency()(probability, x, target)
            rows = Rows(index, index, x, target)
            _, grad = oracle.value_and_grad(_loss(oracle, rows), x, rows)
            assert (F.cosine_similarity(-grad, w) > 1 - 1e-5).all()
            # And w is the slope: f_c'(x + d) - f_c'(x) = w . d to first order.
            d = 1e-5 * randn(20, 12, seed=c, dtype=torch.float64)
            if dtype == torch.float64:
                with torch.no_grad():
                    rise = (probability(x + d) - probability(x))[:, c]
                torch.testing.assert_close(rise, (w * d).sum(1), rtol=1e-2, atol=1e-9)


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, 1)


def _loss(oracle: Oracle, rows: Rows):
    return lambda leaf: CrossEntropy()(View(oracle, rows, leaf))


# --- SmoothGrad


def test_smoothgrad_without_noise_is_the_gradient(mlp: nn.Module, table: Tensor) -> None:
    smooth, plain = explain.smoothgrad(50, 0.0), explain.saliency()
    assert torch.equal(smooth(mlp, table, 1), plain(mlp, table, 1))


def test_smoothgrad_settles_as_samples_grow(mlp: nn.Module, table: Tensor) -> None:
    """The spread over seeds falls with the root of n, and the rank agreement rises."""
    spread, agreement = [], []
    for n in (5, 20, 80):
        maps = torch.stack([explain.smoothgrad(n, 0.3)(mlp, table, 1, seed=s) for s in range(8)])
        spread.append(float(maps.std(0).mean()))
        agreement.append(float(explain.rank_correlation(maps[0], maps[1]).mean()))
    assert 1.6 < spread[0] / spread[1] < 2.5 and 1.6 < spread[1] / spread[2] < 2.5
    assert agreement == sorted(agreement)


def test_the_noise_is_a_share_of_the_range(flat, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    net = filled(nn.Linear(10, 3), 1)
    x = torch.full((4, 10), 100.0)
    x[:, 0] = 120.0
    for bounds, range_ in (((0, 255), 255.0), ((float("-inf"), float("inf")), 20.0)):
        model = wrap(net, bounds=bounds)
        monkeypatch.setattr(
            model, "scores", lambda x, m=model: (seen.append(x), TorchModel.scores(m, x))[1]
        )
        explain.smoothgrad(400, 0.1)(model, x, 0)
        noise = torch.cat(seen[1:]).detach().view(-1, 10)[:, 1:] - 100.0
        assert abs(float(noise.std()) / (0.1 * range_) - 1) < 0.05
        seen.clear()


# --- second derivatives


@pytest.mark.parametrize("explainer", DIFFERENTIABLE, ids=names)
def test_maps_are_differentiable(explainer, table: Tensor) -> None:
    """d(sum of c * map) / dx and / dw against central differences, on a softplus net, float64."""
    net = small(6)
    model, x = wrap(net), table[:2].clone().requires_grad_()
    mix = randn(2, 10, seed=1, dtype=torch.float64)

    def of(at: Tensor) -> float:
        return float((explainer(model, at.detach(), 1, seed=3) * mix).sum())

    map_ = explainer(model, x, 1, seed=3, create_graph=True)
    assert torch.equal(map_.detach(), explainer(model, x.detach(), 1, seed=3))
    wanted = torch.autograd.grad((map_ * mix).sum(), [x, net[0].weight])
    step = 1e-5
    for i in range(10):
        d = torch.zeros_like(table[:2])
        d[1, i] = step
        slope = (of(x.detach() + d) - of(x.detach() - d)) / (2 * step)
        assert abs(slope - float(wanted[0][1, i])) < 1e-6
    for i, j in ((0, 0), (3, 7)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                net[0].weight[i, j] += sign * step
            values.append(of(x))
            with torch.no_grad():
                net[0].weight[i, j] -= sign * step
        assert abs((values[0] - values[1]) / (2 * step) - float(wanted[1][i, j])) < 1e-6
    assert wanted[0].abs().max() > 1e-3


def test_maps_are_off_the_graph_unless_asked(table: Tensor) -> None:
    net, x = small(6), table[:2].clone().requires_grad_()
    for explainer in DIFFERENTIABLE:
        assert not explainer(net, x, 1).requires_grad
    assert x.grad is None and all(p.grad is None for p in net.parameters())


# --- the softplus twin


def test_the_twin_is_close_smooth_and_a_copy(mlp: nn.Module, table: Tensor) -> None:
    gaps = [
        float((softplus_twin(mlp, b)(table) - mlp(table)).detach().abs().max())
        for b in (10.0, 100.0, 1e4)
    ]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-3
    twin = softplus_twin(wrap(mlp, bounds=(-2, 2)))
    assert twin.bounds == (-2, 2) and twin.net is not mlp
    assert not any(isinstance(m, nn.ReLU) for m in twin.net.modules())
    assert sum(isinstance(m, nn.ReLU) for m in mlp.modules()) == 2
    act = SharpSoftplus(7.0)
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    torch.testing.assert_close(act(x), F.softplus(x, beta=7.0, threshold=1e9))


def test_a_relu_that_is_used_twice_is_replaced_twice(table: Tensor) -> None:
    act = nn.ReLU()
    net = nn.Sequential(nn.Linear(10, 5), act, nn.Linear(5, 5), act, nn.Linear(5, 3)).double()
    twin = softplus_twin(net)
    assert [type(m).__name__ for m in twin.net][1::2] == ["SharpSoftplus", "SharpSoftplus"]
    with pytest.raises(InputError, match="no ReLU was found"):
        softplus_twin(nn.Linear(10, 2).double())(table)


# --- LIME


class OfMasks(nn.Module):
    """A function that is linear in which 2x2 cells are shown."""

    def __init__(self, worth: Tensor) -> None:
        super().__init__()
        self.worth = worth

    def forward(self, x: Tensor) -> Tensor:
        shown = F.max_pool2d(x.abs(), 2).flatten(1).gt(0).to(x)
        return torch.stack([shown @ self.worth, 0 * shown[:, 0]], 1)


def test_lime_recovers_a_function_that_is_linear_in_masks() -> None:
    worth = randn(9, seed=1, dtype=torch.float64)
    x = 0.1 + rand(3, 1, 6, 6, seed=2, dtype=torch.float64)
    lime = explain.Lime(samples=400, segments=2, ridge=1e-6)
    cells = F.avg_pool2d(lime(OfMasks(worth), x, 0), 2).flatten(1)
    torch.testing.assert_close(cells, worth.expand(3, 9), rtol=1e-5, atol=1e-6)
    usual = explain.lime(400, 2)(OfMasks(worth), x, 0)
    assert (F.cosine_similarity(F.avg_pool2d(usual, 2).flatten(1), worth[None]) > 0.99).all()
    blocks = usual.unfold(2, 2, 2).unfold(3, 2, 2).reshape(3, 9, 4)
    assert torch.equal(blocks, blocks[:, :, :1].expand(3, 9, 4))  # a cell has one value


def test_lime_on_a_table_finds_the_features_that_count() -> None:
    weight = torch.zeros(2, 30, dtype=torch.float64)
    weight[0, [3, 11, 25]] = torch.tensor([2.0, -3.0, 1.5], dtype=torch.float64)
    net = linear(weight, torch.zeros(2, dtype=torch.float64))
    x = 0.5 + rand(4, 30, seed=1, dtype=torch.float64)
    maps = explain.lime(500)(net, x, 0)
    assert {tuple(sorted(m.abs().topk(3).indices.tolist())) for m in maps} == {(3, 11, 25)}
    assert torch.equal(maps.sign()[:, [3, 11, 25]], torch.tensor([[1.0, -1, 1]] * 4).double())
