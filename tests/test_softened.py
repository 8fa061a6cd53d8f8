"""Maps of the softplus twin: a defence of maps, itself an explainer; and what bending keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import filled, rand
from torch import Tensor, nn

import foible
from foible import attacks, explain
from foible.attacks.explanations import KeptWithin, MapSimilarity
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.rows import Rows
from foible.models import softplus_twin, wrap
from foible.parts.threats import Linf


class Both(nn.Module):
    """A ReLU that is a module, used twice, and one that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Linear(10, 8), nn.Linear(8, 8), nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.two(self.act(self.one(x))))
        return self.head(F.relu(x - 0.1))


@pytest.fixture
def net() -> nn.Module:
    return filled(Both(), 4, 2.0).double()


@pytest.fixture
def x() -> Tensor:
    return rand(6, 10, seed=2, dtype=torch.float64)


def by_hand(net: Both, x: Tensor, beta: float) -> Tensor:
    def soft(z: Tensor) -> Tensor:
        return torch.log1p(torch.exp(beta * z)) / beta

    h = soft(net.two(soft(net.one(x))))
    return net.head(soft(h - 0.1))


@pytest.mark.parametrize("beta", [0.5, 2.0, 8.0])
def test_it_is_the_gradient_of_the_softplus_net(net: Both, x: Tensor, beta: float) -> None:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(by_hand(net, leaf, beta)[:, 1].sum(), leaf)
    torch.testing.assert_close(explain.smoothed(explain.saliency(), beta)(net, x, 1), grad)


@pytest.mark.parametrize(
    "inner",
    [explain.saliency(), explain.integrated_gradients(5), explain.smoothgrad(3, 0.1)],
    ids=lambda e: type(e).__name__,
)
def test_it_is_the_explainer_on_the_twin(net: Both, x: Tensor, inner) -> None:
    found = explain.smoothed(inner, 3.0)(net, x, 1, seed=5)
    torch.testing.assert_close(found, inner(softplus_twin(net, 3.0), x, 1, seed=5))
    sharp = explain.smoothed(inner, 1e5)(net, x, 1, seed=5)
    torch.testing.assert_close(sharp, inner(net, x, 1, seed=5), rtol=1e-3, atol=1e-5)


def test_on_a_twin_it_sets_the_sharpness_and_puts_it_back(net: Both, x: Tensor) -> None:
    twin, soft = softplus_twin(net, 20.0), explain.smoothed(explain.saliency(), 2.0)
    before = twin.scores(x)
    torch.testing.assert_close(soft(twin, x, 1), soft(net, x, 1))
    assert torch.equal(twin.scores(x), before) and twin.beta == 20.0
    with pytest.raises(RuntimeError), twin.at(1.0):
        raise RuntimeError
    assert torch.equal(twin.scores(x), before)


def test_it_says_what_its_explainer_says() -> None:
    soft = explain.smoothed(explain.grad_cam(), 2.0)
    assert (soft.signed, soft.verb, soft.differentiable) == (False, "delete", True)
    assert not explain.smoothed(explain.integrated_gradients(7)).additive
    assert explain.smoothed(explain.integrated_gradients(7)).samples == 7
    assert not explain.smoothed(explain.lime()).differentiable
    assert soft.access == Access.INTERNALS


def test_its_maps_add_up_in_the_twin_and_not_in_the_model(net: Both, x: Tensor) -> None:
    soft = explain.smoothed(explain.integrated_gradients(200), 2.0)
    maps, twin = soft(net, x, 1), softplus_twin(net, 2.0)
    gap = (twin.scores(x) - twin.scores(torch.zeros_like(x)))[:, 1]
    torch.testing.assert_close(maps.sum(1), gap, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="not additive"):
        explain.completeness(soft, net, x, 1, maps)


def test_what_cannot_be_smoothed_is_refused(net: Both, x: Tensor) -> None:
    soft = explain.smoothed(explain.saliency())
    with pytest.raises(InputError, match="no ReLU was found"):
        soft(nn.Linear(10, 3).double(), x, 1)
    with pytest.raises(InputError, match="above 0"):
        explain.smoothed(explain.saliency(), 0.0)
    with pytest.raises(InputError, match="leaky"):
        soft(nn.Sequential(nn.Linear(10, 3), nn.LeakyReLU()).double(), x, 1)
    for ruled in (explain.guided_backprop(), explain.deep_lift(), explain.lrp()):
        with pytest.raises(KindError, match="rules of its own"):
            explain.smoothed(ruled)


# --- bending


def rows_of(x: Tensor, y: Tensor, scores: Tensor) -> Rows:
    index = torch.arange(len(x))
    return Rows(index, index, x, y, scores=scores, extra={"target_map": x.flip(0)})


def test_kept_within_is_label_and_probability(net: Both, x: Tensor) -> None:
    clean, at = net(x).detach(), (x + 0.05).detach()
    y, now = clean.argmax(1), net(at).detach().softmax(1)
    gap = (now.gather(1, y[:, None]) - clean.softmax(1).gather(1, y[:, None])).squeeze(1).abs()
    view = View(Oracle(wrap(net), 6), rows_of(x, y, clean), at)
    for tolerance in (float(gap.median()), 1e-9, 1.0):
        want = (gap <= tolerance) & (now.argmax(1) == y)
        assert torch.equal(KeptWithin(tolerance)(view), want)
    assert torch.equal(KeptWithin()(view), now.argmax(1) == y)


def test_bending_is_judged_by_probability_too(net: Both, x: Tensor) -> None:
    """The penalty alone mostly keeps it; the goal is what promises it."""
    oracle, wish = Oracle(wrap(net), 6), MapSimilarity(explain.saliency(), 0.02)
    for tolerance in (0.02, None):
        bend = attacks.bend(Linf(0.1), explain.saliency(), tolerance=tolerance)
        assert bend.posed(oracle, oracle, bend.threat, wish).goal == KeptWithin(tolerance)


def test_the_similarity_pays_for_probability_beyond_half_the_tolerance(net: Both, x: Tensor):
    clean, at = net(x).detach(), (x + 0.05).detach()
    y = clean.argmax(1)
    view = View(Oracle(wrap(net), 6), rows_of(x, y, clean), at)
    saliency = explain.saliency()
    plain = MapSimilarity(saliency)(view)
    maps = saliency(net, at, y)
    torch.testing.assert_close(plain, F.cosine_similarity(maps.abs(), x.flip(0).abs()))
    now, then = (s.softmax(1).gather(1, y[:, None]).squeeze(1) for s in (net(at), clean))
    gap = (now - then).abs().detach()
    for tolerance in (float(gap.median()), 1.0):
        want = plain - (gap - tolerance / 2).clamp(min=0) / (tolerance / 2)
        torch.testing.assert_close(MapSimilarity(saliency, tolerance)(view), want)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = (t.abs().flatten(1) - t.abs().flatten(1).mean(1, keepdim=True) for t in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def test_the_map_bends_the_prediction_stays_and_the_smoothed_map_stays_too() -> None:
    net, plain = foible.zoo.load("standard"), explain.saliency()
    x = foible.zoo.sample()[0][:8]
    y = net(x).argmax(1)
    clean = plain(net, x, y)
    order = clean.roll(1, 0)
    bent = attacks.bend(Linf(0.1), plain, 40)(net, x, y, order)
    now, then = (net(z).detach().softmax(1).gather(1, y[:, None]) for z in (bent.x, x))
    assert bool(bent.kept.all()) and float((now - then).abs().max()) <= 0.05
    assert float((bent.x - x).abs().max()) <= 0.1 + 1e-6
    found = plain(net, bent.x, y)
    assert float((pearson(found, order) - pearson(clean, order)).mean()) >= 0.25
    soft = explain.smoothed(plain, 2.0)
    stays = pearson(soft(net, bent.x, y), soft(net, x, y)).mean()
    assert float(stays - pearson(found, clean).mean()) >= 0.2
    with pytest.raises(InputError, match="tolerance"):
        attacks.bend(Linf(0.1), plain, tolerance=0.0)


def test_the_smoothed_map_can_be_attacked_itself() -> None:
    net, soft = foible.zoo.load("standard"), explain.smoothed(explain.saliency(), 2.0)
    x = foible.zoo.sample()[0][:4]
    y = net(x).argmax(1)
    order = soft(net, x, y).roll(1, 0)
    results = [attacks.bend(Linf(0.1), soft, 15, beta)(net, x, y, order) for beta in (30.0, None)]
    for bent in results:
        rise = bent.similarity - bent.before
        assert bool(bent.kept.all()) and bool((rise >= 0).all()) and float(rise.mean()) > 0.05
        now = F.cosine_similarity(soft(net, bent.x, y).abs().flatten(1), order.abs().flatten(1))
        torch.testing.assert_close(bent.similarity, now, rtol=1e-4, atol=1e-5)
