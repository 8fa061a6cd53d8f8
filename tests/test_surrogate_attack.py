"""The local-surrogate attack beside the linear optimum, its counter, forests and masked nets."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Counter, rand, randn
from torch import Tensor, nn

import foible
from foible import attacks, explain
from foible.core.errors import InputError, KindError
from foible.models import estimator, wrap
from foible.parts.threats import L1, L2, Features, Linf, Spatial
from foible.zoo.weak import DetachedSoftmax


def linear_case() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A plane, points, their labels, and the difference of the classes' weights (12,)."""
    net, x = nn.Linear(12, 2).double(), rand(10, 12, seed=1, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(randn(2, 12, seed=2, dtype=torch.float64))
        net.bias.zero_()
        net.bias[0] = -(x @ (net.weight[0] - net.weight[1])).mean()
    return net, x, net(x).argmax(1), (net.weight[1] - net.weight[0]).detach()


def gap(net: nn.Module, x: Tensor) -> Tensor:
    scores = net(x).detach()
    return (scores[:, 0] - scores[:, 1]).abs()


EXPLAINERS = {
    "tabular_lime": explain.tabular_lime(),
    "lemna": explain.lemna(components=1, fused=0, noise=0.3),
    "lemna, every feature": explain.lemna(components=1, fused=0, noise=(0.3,) * 12),
}


@pytest.mark.parametrize("name", EXPLAINERS)
@pytest.mark.parametrize("ball", [L2, Linf, L1])
def test_on_a_plane_it_reaches_the_optimum_and_no_more(name: str, ball: type) -> None:
    net, x, y, w = linear_case()
    dual = {L2: w.norm(), Linf: w.abs().sum(), L1: w.abs().max()}[ball]
    least, wide = gap(net, x) / dual, wrap(net, bounds=(-99.0, 99.0))
    explainer = EXPLAINERS[name]
    if name == "lemna" and ball is not Linf:
        return  # segments of an input without a picture are its features: the same as the third
    over = attacks.surrogate_attack(ball(1.05 * least), explainer, 300)(wide, x, y)
    assert bool(over.success.all()) and int(over.backwards.sum()) == 0
    under = attacks.surrogate_attack(ball(0.95 * least), explainer, 300)(wide, x, y)
    assert not bool(under.success.any())


def test_costs_are_the_threats() -> None:
    """With a unit a feature, the best step is along the largest weight times unit."""
    net, x, y, w = linear_case()
    units = tuple((0.2 + rand(12, seed=5, dtype=torch.float64)).tolist())
    dual = (w.abs() * torch.tensor(units).double()).max()
    assert int((w.abs() * torch.tensor(units).double()).argmax()) != int(w.abs().argmax())
    least, wide = gap(net, x) / dual, wrap(net, bounds=(-99.0, 99.0))
    lime = explain.tabular_lime()
    for eps, wanted in ((1.05 * least, True), (0.95 * least, False)):
        threat = Features(eps, units=units)
        found = attacks.surrogate_attack(threat, lime, 300)(wide, x, y)
        assert bool((found.success == wanted).all())
        # A direction is by x and the search moves z: without the units this would be another step.
        follow, plain = (attacks.fgsm(threat, d)(wide, x, y) for d in (explain.saliency(), None))
        assert torch.equal(follow.success, plain.success)
        torch.testing.assert_close(follow.x, plain.x)


@pytest.mark.parametrize(("queries", "steps", "refit"), [(60, 4, 2), (61, 5, 2), (100, 7, 10)])
def test_no_sample_costs_more_than_its_queries(queries: int, steps: int, refit: int) -> None:
    net, x, y, _ = linear_case()
    for stop in ("never", "success"):
        counted = Counter(wrap(net, bounds=(-99.0, 99.0)), at_most=17)
        attack = attacks.surrogate_attack(
            Linf(1e-3), explain.tabular_lime(scale=0.1), queries, steps, refit, stop=stop
        )
        found = attack(counted, x, y)
        assert counted.forwards == int(found.forwards.sum()) and counted.backwards == 0
        assert int(found.forwards.max()) <= queries
        fits = math.ceil(steps / refit)
        assert int(found.forwards.min()) > queries - fits - 1  # and they are spent


def test_one_surrogate_is_followed_until_the_next() -> None:
    """Nothing is fitted in between: moves are parallel, and a success asks for no more samples."""
    net, x, y, _ = linear_case()
    bent = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 2)).double()
    lime = explain.tabular_lime(scale=0.5)
    straight = attacks.surrogate_attack(L2(2.0), lime, 300, 4, 4, stop="never")
    once = attacks.surrogate_attack(L2(2.0), lime, 300 - 3, 1, 1, stop="never")
    wide = wrap(bent, bounds=(-99.0, 99.0))
    y = wide(x).argmax(1)
    one, four = once(wide, x, y, seed=3), straight(wide, x, y, seed=3)
    assert one.x.shape == x.shape
    length = (four.x - x).norm(dim=1)
    share = (length / 0.5).round() * 0.5
    torch.testing.assert_close(length, share, rtol=0, atol=1e-6)
    assert once.direction == straight.direction  # the same samples, so the same way
    way = nn.functional.cosine_similarity(four.x - x, one.x - x)[length > 0.1]
    torch.testing.assert_close(way, torch.ones_like(way), rtol=0, atol=1e-9)

    # Fallen after one move: the clean look, one fit, two verdicts, and no second fit.
    easy = attacks.surrogate_attack(L2(50.0), lime, 300, 10, 1)
    found = easy(wrap(net, bounds=(-99.0, 99.0)), x, net(x).argmax(1))
    assert bool(found.success.all())
    assert found.forwards.unique().tolist() == [1 + (1 + easy.direction.samples) + 1 + 1]


def test_one_surrogate_can_cross_the_ball() -> None:
    """Ten steps of two surrogates go twice as far as eps; with more moves than steps, once."""
    lime = explain.tabular_lime()
    for steps, refit, share in ((10, 5, 0.2), (4, 9, 0.25)):
        attack = attacks.surrogate_attack(L2(1.0), lime, 300, steps, refit)
        assert (attack.search.share, attack.search.steps) == (share, steps)


def test_a_forest_falls_to_it_where_random_directions_fail() -> None:
    sets = pytest.importorskip("sklearn.datasets")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.preprocessing import StandardScaler

    table = sets.load_breast_cancer()
    rows, sick = StandardScaler().fit_transform(table.data), 1 - table.target
    forest = RandomForestClassifier(15, random_state=0).fit(rows[:400], sick[:400])
    held = estimator(forest, bounds=(-99.0, 99.0))
    x, y = torch.from_numpy(rows[400:]).float(), torch.from_numpy(sick[400:])
    seen = (y == 1) & (held(x).argmax(1) == 1)
    x, y = x[seen][:20], y[seen][:20]
    attack = attacks.surrogate_attack(
        L2(5.0), explain.tabular_lime(), 500, objective="cross_entropy"
    )
    found = attack(held, x, y)
    chance = attacks.random_noise(L2(5.0))(held, x, y)
    assert found.success_rate >= chance.success_rate + 0.4
    assert int(found.forwards.max()) <= 500


def test_a_masked_gradient_does_not_hide_the_way() -> None:
    x, y = (part[:16] for part in foible.zoo.sample())
    masked = DetachedSoftmax(foible.zoo.load("standard"))
    blind = attacks.fgsm(Linf(0.1))(masked, x, y)
    assert blind.success_rate == 0
    found = attacks.surrogate_attack(Linf(0.1), explain.lime(), 400)(masked, x, y)
    assert found.success_rate >= 0.4


def test_what_cannot_be_followed_is_refused() -> None:
    for wrong in (explain.saliency(), explain.occlusion(), explain.exact_shapley(4)):
        with pytest.raises(KindError, match="fits no linear model"):
            attacks.surrogate_attack(Linf(0.1), wrong)
    lime = explain.lime()
    with pytest.raises(InputError, match="allow more queries"):
        attacks.surrogate_attack(Linf(0.1), lime, 20)
    with pytest.raises(InputError, match="at least 1"):
        attacks.surrogate_attack(Linf(0.1), lime, refit=0)
    with pytest.raises(InputError, match="needs one"):
        attacks.surrogate_attack(Linf(), lime)
    with pytest.raises(KindError, match="moves a few parameters"):
        attacks.surrogate_attack(Spatial(10.0, 1.0), lime)
