"""Comparing maps: the figures against their literal versions, and the random control."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import filled, predicted, rand, randn
from scipy.stats import spearmanr
from torch import Tensor, nn

from foible import attacks, explain
from foible.core.errors import InputError
from foible.core.randomness import Rng
from foible.parts.statistics import pearson, ranks, spearman, wilson


def small(seed: int) -> nn.Module:
    body = nn.Sequential(nn.Linear(10, 8), nn.Softplus(), nn.Linear(8, 3))
    return filled(body, seed, 2.0).double()


def test_topk_intersection_is_the_literal_one() -> None:
    a, b = randn(6, 3, 5, seed=1), randn(6, 3, 5, seed=2)
    for k in (1, 4, 15):
        for row in range(6):
            size = [m[row].flatten().abs() for m in (a, b)]
            top = [set(sorted(range(15), key=lambda i, v=v: -float(v[i]))[:k]) for v in size]
            found = float(explain.topk_intersection(a, b, k)[row])
            assert found == pytest.approx(len(top[0] & top[1]) / k)
    for k in (0, 16, -1):
        with pytest.raises(InputError, match="choose 1 to 15"):
            explain.topk_intersection(a, b, k)


def test_rank_correlation_is_spearmans_with_ties() -> None:
    a = randn(5, 40, seed=1, dtype=torch.float64)
    b = a + randn(5, 40, seed=2, dtype=torch.float64)
    coarse = ((a * 2).round(), (b * 2).round())  # many ties
    for one, two in ((a, b), coarse, (a, coarse[1])):
        found = explain.rank_correlation(one, two)
        for row in range(5):
            expected = spearmanr(one[row].abs().numpy(), two[row].abs().numpy()).statistic
            assert float(found[row]) == pytest.approx(expected, abs=1e-12)
    assert float(explain.rank_correlation(a, -a).min()) == pytest.approx(1.0)
    assert torch.isnan(explain.rank_correlation(a, torch.ones_like(a))).all()


def test_statistics_are_the_literal_ones() -> None:
    values = np.array([[3.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert ranks(values).tolist() == [[2.5, 0.0, 2.5, 1.0], [1.5] * 4]
    a, b = np.random.default_rng(0).normal(size=(2, 3, 20))
    for row in range(3):
        assert pearson(a, b)[row] == pytest.approx(np.corrcoef(a[row], b[row])[0, 1])
        assert spearman(a, b)[row] == pytest.approx(spearmanr(a[row], b[row]).statistic)
    assert wilson(0, 0) is None
    low, high = wilson(7, 20)
    for p in (low, high):  # the ends solve (p - 7/20)^2 = z^2 p (1 - p) / 20
        assert (p - 0.35) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / 20)
    assert wilson(20, 20)[1] == 1.0 and wilson(0, 20)[0] == 0.0


def test_stability_compares_the_same_draws(mlp: nn.Module, table: Tensor) -> None:
    still = explain.stability(explain.smoothgrad(5, 0.3), mlp, (table, table), torch.tensor(1), 3)
    assert (still["topk"] == 1).all() and torch.allclose(still["rank"], torch.ones(11).double())
    moved = explain.stability(explain.saliency(), mlp, (table, table.flip(0)), torch.tensor(1), k=3)
    assert moved["rank"].mean() < 0.999 and (moved["topk"] <= 1).all()


def test_the_random_map_is_noise_that_knows_nothing(mlp: nn.Module, table: Tensor) -> None:
    control = explain.random_map()
    maps = control(mlp, table.repeat(40, 1), 1)
    assert abs(float(maps.mean())) < 0.05 and abs(float(maps.std()) - 1) < 0.05
    assert torch.equal(maps[:11], control(small(1), table * 0, 2))
    assert torch.equal(maps[:1], Rng(0).split(5).at(torch.tensor([0])).normal((10,), table.dtype))
    saliency = explain.saliency()(mlp, table.repeat(40, 1), 1)
    assert abs(float(explain.rank_correlation(maps, saliency).mean())) < 0.05


def test_maps_beat_the_random_map_at_deletion(mlp: nn.Module) -> None:
    x = 0.2 + 0.8 * rand(60, 10, seed=8, dtype=torch.float64)
    y = predicted(mlp, x)
    counts = {}
    for name, explainer in (("ig", None), ("random", explain.random_map())):
        result = attacks.ig_deletion(explainer)(mlp, x, y)
        counts[name] = torch.where(result.success, result.distance, 11.0).mean()
    assert counts["ig"] < counts["random"]
