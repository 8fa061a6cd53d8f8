"""LIME: the authors' own coefficients, R^2, selection, recall on planted models, tables."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from conftest import Counter, filled, rand
from lime.lime_base import LimeBase
from test_removal import rows_of
from torch import Tensor, nn

from foible import explain
from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.randomness import Rng
from foible.explain.removal import EveryFeature, LabelMap, Superpixels
from foible.explain.surrogate import Lime, TabularLime
from foible.models import wrap
from foible.parts.objectives import Logit


def kernel_of(d: np.ndarray, width: float) -> np.ndarray:
    return np.sqrt(np.exp(-(d**2) / width**2))


def authors(data: np.ndarray, values: np.ndarray, far: np.ndarray, width: float, most: int):
    """Intercept, coefficients and R^2 of lime's own code on these samples."""
    method = "none" if most >= data.shape[1] else "highest_weights"
    base = LimeBase(partial(kernel_of, width=width), random_state=0)
    intercept, pairs, r2, _ = base.explain_instance_with_data(
        data, values[:, None], far, 0, most, feature_selection=method
    )
    weights = np.zeros(data.shape[1])
    for place, weight in pairs:
        weights[place] = weight
    return float(intercept), weights, float(r2)


class Seen(nn.Module):
    """A net that remembers its inputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.inputs, self.outputs = net, [], []

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        self.inputs.append(x.detach().clone())
        self.outputs.append(out.detach())
        return out


def mlp(size: int, seed: int = 1) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, 3))
    return filled(net, seed, 2.0).double()


@pytest.mark.parametrize("most", [36, 4])
def test_masked_lime_has_the_authors_coefficients(most: int) -> None:
    net, x = Seen(mlp(36)), 0.2 + rand(2, 1, 6, 6, seed=2, dtype=torch.float64)
    fit = explain.lime(80, EveryFeature(), most=most).fit(net, x, 1)
    inputs, values = torch.cat(net.inputs[-1:]), torch.cat(net.outputs[-1:])[:, 1]
    for i in range(2):
        data = (inputs[80 * i : 80 * i + 80] == x[i]).flatten(1).double().numpy()
        far = 1 - np.sqrt(data.mean(1))  # cosine distance to the whole
        here = values[80 * i : 80 * i + 80].numpy()
        intercept, weights, r2 = authors(data, here, far, 0.25, most)
        assert np.abs(weights - fit.weights[i].numpy()).max() < 1e-5
        assert abs(intercept - float(fit.intercept[i])) < 1e-5
        assert abs(r2 - float(fit.r2[i])) < 1e-5
        assert int((fit.weights[i] != 0).sum()) == most


def test_tabular_lime_has_the_authors_coefficients() -> None:
    net, x, scale = (
        Seen(mlp(7)),
        rand(2, 7, seed=2, dtype=torch.float64),
        tuple(0.1 * i for i in range(1, 8)),
    )
    fit = explain.tabular_lime(120, scale).fit(net, x, 2)
    for i in range(2):
        some = slice(120 * i, 120 * i + 120)
        z = ((net.inputs[-1][some] - x[i]) / torch.tensor(scale)).numpy()
        far = np.linalg.norm(z, axis=1)
        expected = authors(z, net.outputs[-1][some, 2].numpy(), far, 0.75 * 7**0.5, 7)
        assert np.abs(expected[1] - fit.weights[i].numpy()).max() < 1e-5
        assert abs(expected[2] - float(fit.r2[i])) < 1e-5
    map_ = explain.tabular_lime(120, scale)(net, x, 2)
    torch.testing.assert_close(map_, fit.weights)


def test_the_fit_is_the_map_its_intercept_and_an_honest_r2() -> None:
    x = 0.2 + rand(3, 1, 6, 6, seed=3, dtype=torch.float64)
    lime = explain.lime(100, 2)
    fit, net = lime.fit(mlp(36), x, 0, seed=5), mlp(36)
    assert torch.equal(fit.map((1, 6, 6)), lime(net, x, 0, seed=5))
    assert bool((fit.r2 > 0.3).all()) and bool((fit.r2 < 1).all())
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, 3).double())
    straight = Lime(100, 2, ridge=1e-6).fit(linear, x, 0)
    assert bool((straight.r2 > 1 - 1e-6).all())
    nothing = explain.lime(50, 2).fit(nn.Sequential(nn.Flatten(), _Constant()), x, 0)
    assert float(nothing.weights.abs().max()) < 1e-20 and bool((nothing.r2 == 1).all())


class _Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 2, dtype=x.dtype)


def test_what_is_linear_in_maskings_is_recovered() -> None:
    """The catalogue's bar: relative 1e-2 at ridge 1e-3."""
    net = nn.Sequential(nn.Flatten(), filled(nn.Linear(36, 2), 1).double())
    x = 0.5 + rand(4, 1, 6, 6, seed=2, dtype=torch.float64)
    fit = Lime(300, EveryFeature(), ridge=1e-3).fit(net, x, 1)
    worth = net[1].weight[1].detach() * x.flatten(1)
    assert float(((fit.weights - worth).norm(dim=1) / worth.norm(dim=1)).max()) < 1e-2
    torch.testing.assert_close(fit.intercept, net[1].bias[1].expand(4).detach(), rtol=0, atol=1e-2)


def test_superpixels_of_several_counts_share_a_batch() -> None:
    x = torch.zeros(2, 1, 12, 12, dtype=torch.float64)
    x[0, :, :, 6:] = 1.0
    x[1, :, :6, :6] = 1.0
    x[1, :, 6:, 6:] = 0.7
    net, kind = mlp(144), Superpixels(1.0, 8.0, 1.0)
    fit = explain.lime(200, kind).fit(net, x, 0)
    counts = kind.of(rows_of(x)).present.sum(1)
    assert counts[0] < counts[1] and fit.weights.shape[1] == counts[1]
    assert bool((fit.weights[0, counts[0] :] == 0).all())
    tight = Counter(wrap(net), at_most=3)  # a group, and a forward, holds a row or less
    torch.testing.assert_close(explain.lime(200, kind)(tight, x, 0), fit.map((1, 12, 12)))
    alone = explain.lime(200, LabelMap(tuple(map(tuple, kind.of(rows_of(x)).label[0, 0].tolist()))))
    rows = rows_of(x[:1])
    field = Field(Oracle(wrap(net), 1), Logit(), 100)
    found = alone.local(field, rows, Rng(0).split(5).at(rows.id)).weights
    one = explain.lime(200, kind).fit(net, x[:1], 0).weights
    torch.testing.assert_close(one, found, rtol=0, atol=1e-9)


# --- planted models: the features that count are known


def planted(count: int, seed: int) -> tuple[nn.Module, set[int]]:
    """A sparse logistic regression on 30 features, of which `count` count."""
    which = torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:count]
    net = nn.Linear(30, 2).double()
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
        sign = torch.where(rand(count, seed=seed) < 0.5, -1.0, 1.0).double()
        net.weight[1, which] = sign * (0.5 + rand(count, seed=seed + 1).double())
    return nn.Sequential(net, nn.LogSoftmax(1)), set(which.tolist())


class Tree(nn.Module):
    """Nested questions `feature shown?` of depth 3; the leaves hold scores."""

    def __init__(self, features: list[int], leaves: Tensor) -> None:
        super().__init__()
        self.features, self.leaves = features, leaves

    def forward(self, x: Tensor) -> Tensor:
        node = torch.zeros(len(x), dtype=torch.int64)
        for _ in range(3):
            asked = torch.tensor(self.features)[node]
            node = 2 * node + 1 + (x.gather(1, asked[:, None]).squeeze(1) > 0.5).long()
        score = self.leaves[node - 7]
        return torch.stack([-score, score], 1)


def planted_tree(seed: int) -> tuple[nn.Module, set[int]]:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:7].tolist()
    worth = torch.tensor([[0.0, 1.0][i % 2] + i for i in range(8)], dtype=torch.float64)
    return Tree(order, worth), {order[0], order[2], order[6]}  # the path of a row of ones


@pytest.mark.parametrize(
    "method", [explain.lime(600), explain.kernel_shap(600)], ids=["lime", "shap"]
)
def test_planted_features_are_recalled(method) -> None:
    recalled = wanted = 0
    for seed in range(12):
        net, truth = planted(3 + seed % 8, seed) if seed < 8 else planted_tree(seed)
        found = method(net, torch.ones(1, 30, dtype=torch.float64), 1)[0]
        recalled += len(truth & set(found.abs().topk(len(truth)).indices.tolist()))
        wanted += len(truth)
    assert recalled / wanted >= 0.9, (recalled, wanted)


@pytest.mark.parametrize("recipe", [explain.lime, explain.kernel_shap])
def test_seeds_agree_more_as_samples_grow(recipe) -> None:
    net, x = mlp(36, 3), 0.2 + rand(4, 1, 6, 6, seed=2, dtype=torch.float64)
    overlap = []
    for samples in (60, 250, 1000):
        maps = [recipe(samples, EveryFeature())(net, x, 1, seed=s) for s in range(4)]
        pairs = [explain.topk_intersection(a, b, 8) for i, a in enumerate(maps) for b in maps[:i]]
        overlap.append(float(torch.stack(pairs).mean()))
    assert overlap == sorted(overlap) and overlap[2] > overlap[0] + 0.1


def test_lime_costs_its_samples_and_never_widens_a_forward() -> None:
    x = rand(5, 1, 6, 6, seed=2, dtype=torch.float64)
    for method, cost in ((explain.lime(33, 2), 33), (explain.tabular_lime(21), 21)):
        model = Counter(wrap(mlp(36)), at_most=16)
        method(model, x, 1)
        # one forward more, of one row, asks how many classes there are
        assert model.forwards == 5 * cost + 1 and max(model.sizes) <= 16


def test_settings_with_which_nothing_can_be_fitted_are_refused() -> None:
    for wrong in ({"samples": 1}, {"ridge": 0.0}, {"width": 0.0}, {"most": 0}):
        with pytest.raises(InputError):
            Lime(**wrong)
        with pytest.raises(InputError):
            TabularLime(**wrong)
    with pytest.raises(InputError, match="above 0"):
        explain.tabular_lime(20, (0.1, 0.0))
    with pytest.raises(InputError, match="2 values and an input 3"):
        explain.tabular_lime(20, (0.1, 0.2))(nn.Linear(3, 2), rand(2, 3, seed=1))
    with pytest.raises(InputError, match="no sample"):
        explain.lime().fit(nn.Linear(3, 2), torch.zeros(0, 3))
