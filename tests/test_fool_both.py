"""Prediction and map attacked together: what the user sees, checked again by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import filled, predicted, rand
from torch import Tensor, nn

import foible
from foible import attacks, explain
from foible.attacks.fooling_both import AsWanted, FooledAsWanted
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.rows import Rows
from foible.models import wrap
from foible.parts.threats import Linf

K = 6


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 16), nn.ReLU(),
        nn.Linear(16, 4),
    )  # fmt: skip
    net = filled(net.double(), 3, 1.5).double()
    x = rand(6, 2, 8, 8, seed=1, dtype=torch.float64)
    with torch.no_grad():  # so that labels differ
        net[5].bias -= net(x).mean(0)
    return net, x, predicted(net, x)


def gradient(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(net(leaf).gather(1, labels[:, None]).sum(), leaf)[0]


def test_the_figures_are_those_of_the_class_that_is_seen(small) -> None:
    """The map of the predicted class at x_adv, against that of the predicted class at x."""
    net, x, y = small
    found = attacks.fool_both(Linf(0.15), explain.saliency(), K, 15)(net, x, y)
    now = predicted(net, found.x)
    assert found.attacked.all() and found.success.double().mean() > 0.6
    assert torch.equal(found.label, now) and torch.equal(found.success, now != y)
    assert (found.x - x).abs().max() <= 0.15 + 1e-7 and 0 <= found.x.min() <= found.x.max() <= 1
    clean, seen = gradient(net, x, y), gradient(net, found.x, now)
    torch.testing.assert_close(found.clean_map, clean)
    torch.testing.assert_close(found.map, seen)
    sums = [m.abs().sum(1).flatten(1) for m in (clean, seen)]
    torch.testing.assert_close(found.similarity, F.cosine_similarity(*sums))
    tops = [[set(m.topk(K).indices.tolist()) for m in both] for both in sums]
    by_hand = [len(a & b) / K for a, b in zip(*tops, strict=True)]
    assert found.topk.tolist() == pytest.approx(by_hand)
    # What did not fall comes back as it was.
    assert torch.equal(found.x[~found.success], x[~found.success])


class Recorder(nn.Module):
    """Keeps what it is asked; its copies, of which the twin is one, do not."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.asked = net, []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return self.net(x)


def test_of_all_points_that_fool_the_true_net_the_likest_is_returned(small) -> None:
    """The twin is soft: neither its classes nor its maps are the net's."""
    net, x, y = small
    recorder = Recorder(net)
    found = attacks.fool_both(Linf(0.25), explain.saliency(), K, 12, beta=1.0)(recorder, x, y)
    seen = torch.stack([asked for asked in recorder.asked if len(asked) == len(x)])
    assert len({tuple(point.flatten().tolist()) for point in seen}) > 12
    wanted, best = gradient(net, x, y).abs().sum(1).flatten(1), torch.zeros(len(x)).double()
    for point in seen:
        label = predicted(net, point)
        like = F.cosine_similarity(gradient(net, point, label).abs().sum(1).flatten(1), wanted)
        best = torch.maximum(best, like * (label != y))
    assert found.success.any()
    torch.testing.assert_close(found.similarity[found.success], best[found.success])


def test_the_map_is_kept_better_than_by_an_attack_on_the_label_alone() -> None:
    net, x = foible.zoo.load("standard"), foible.zoo.sample()[0][:12]
    y = net(x).argmax(1)
    both = attacks.fool_both(Linf(0.1), explain.saliency(), steps=20)(net, x, y)
    label = attacks.pgd(Linf(0.1), 20)(net, x, y)
    now = net(label.x).argmax(1)
    maps = explain.saliency()(net, x, y), explain.saliency()(net, label.x, now)
    alone = explain.topk_intersection(*maps)
    assert both.success.all() and label.success.all()
    assert both.topk.mean() > alone.mean() + 0.15


def test_a_target_and_a_map_to_order(small) -> None:
    net, x, y = small
    scores = net(x).detach()
    target = scores.topk(2, 1).indices[:, 1]
    target[0] = y[0]  # reached from the start
    order = explain.saliency()(net, x, y).roll(1, 0)
    attack = attacks.fool_both(Linf(0.2), explain.saliency(), K, 20)
    found = attack(net, x, y, order, target=target)
    assert not found.attacked[0] and found.success[0] and torch.equal(found.x[0], x[0])
    assert found.success[1:].any()
    assert torch.equal(found.success, predicted(net, found.x) == target)
    torch.testing.assert_close(found.clean_map, gradient(net, x, y))  # of y, not of the target
    free = attack(net, x, y, target=target)
    fell = found.success & free.success & found.attacked
    like = [
        F.cosine_similarity(m.abs().sum(1).flatten(1), order.abs().sum(1).flatten(1))[fell].mean()
        for m in (found.map, free.map)
    ]
    assert like[0] > like[1]


def test_a_sample_that_is_wrong_is_left_alone(small) -> None:
    net, x, y = small
    wrong = y.clone()
    wrong[3] = (y[3] + 1) % 4
    found = attacks.fool_both(Linf(0.15), explain.saliency(), K, 6)(net, x, wrong)
    assert found.attacked.tolist() == [i != 3 for i in range(6)]
    assert found.success[3] and found.label[3] == y[3] and torch.equal(found.x[3], x[3])


def test_above_the_safe_margin_the_map_alone_is_left(small) -> None:
    """The objective by hand, and its slope: none of the margin once it is safe."""
    net, x, y = small
    oracle = Oracle(wrap(net), 6)
    index = torch.arange(6)
    scores = net(x).detach()
    rows = Rows(index, index, x, y, None, scores=scores)
    rows.extra["map"] = gradient(net, x, y)
    wish = AsWanted(explain.saliency())
    with oracle.session():
        for target in (scores.argmax(1), scores.argmin(1)):
            view = View(oracle, Rows(index, index, x, y, target, None, scores, rows.extra), x)
            value = FooledAsWanted(wish, 0.25, 2.0)(view)
            margin = scores.gather(1, target[:, None])[:, 0]
            margin = margin - scores.scatter(1, target[:, None], -1e9).amax(1)
            two = scores.topk(2, 1).values
            share = (margin / (two[:, 0] - two[:, 1])).clamp(max=0.25)
            torch.testing.assert_close(value, 2.0 * share + wish(view))
            if torch.equal(target, y):  # the clean margin is 1 in its own unit: it is cut
                assert share.tolist() == [0.25] * 6


@pytest.mark.parametrize(
    "explainer",
    [explain.grad_cam(), explain.integrated_gradients(4)],
    ids=lambda e: type(e).__name__,
)
def test_other_explainers(explainer, small) -> None:
    net, x, y = small
    found = attacks.fool_both(Linf(0.15), explainer, K, 6)(net, x, y)
    torch.testing.assert_close(found.map, explainer(net, found.x, found.label))
    assert torch.equal(found.success, predicted(net, found.x) != y)


def test_a_step_costs_two_maps_and_two_looks(small) -> None:
    """As `foible show` says; the slope of a map is one backward more."""
    net, x, y = small
    both = {n: attacks.fool_both(Linf(0.1), explain.saliency(), K, n)(net, x, y) for n in (3, 8)}
    assert (both[8].forwards - both[3].forwards).tolist() == [5 * 4] * 6
    assert (both[8].backwards - both[3].backwards).tolist() == [5 * 3] * 6
    recorders = {n: Recorder(net) for n in (3, 8)}
    for steps, recorder in recorders.items():
        attacks.bend(Linf(0.1), explain.saliency(), steps, tolerance=0.05)(recorder, x, y, x)
    # The true net's share: a verdict with the probability, and a map. The twin's is the same.
    asked = [sum(map(len, recorder.asked)) for recorder in recorders.values()]
    assert asked[1] - asked[0] == 5 * 2 * len(x)


def test_what_does_not_fit_is_said(small) -> None:
    net, x, y = small
    with pytest.raises(InputError, match="has no eps"):
        attacks.fool_both(Linf(), explain.saliency())
    with pytest.raises(InputError, match="positive weight"):
        attacks.fool_both(Linf(0.1), explain.saliency(), weight=0.0)
    with pytest.raises(InputError, match="k=100 of 64"):
        attacks.fool_both(Linf(0.1), explain.saliency())(net, x, y)
    with pytest.raises(InputError, match="target_map has shape"):
        attacks.fool_both(Linf(0.1), explain.saliency(), K)(net, x, y, x[:2])
    with pytest.raises(InputError, match="one class"):
        attacks.fool_both(Linf(0.1), explain.saliency(), K)(net, x, y, target=y[:2])
    for wrong, says in (
        (y.double(), "has dtype"),
        (y - 5, "counted from 0"),
        (y[:2], "y has shape"),
    ):
        with pytest.raises(InputError, match=says):
            attacks.fool_both(Linf(0.1), explain.saliency(), K)(net, x, wrong)
    with pytest.raises(InputError, match="y has dtype"):
        attacks.bend(Linf(0.1), explain.saliency())(net, x, y.double(), x)
    with pytest.raises(KindError, match="target is list"):
        attacks.fool_both(Linf(0.1), explain.saliency(), K)(net, x, y, target=y.tolist())
    with pytest.raises(InputError, match="target holds -"):
        attacks.fool_both(Linf(0.1), explain.saliency(), K)(net, x, y, target=y - 5)
    with pytest.raises(InputError, match="target holds class"):
        attacks.fool_both(Linf(0.1), explain.saliency(), K)(net, x, y, target=y + 4)
    one = nn.Sequential(net, nn.Linear(4, 1).double())
    with pytest.raises(InputError, match="1 score"):
        attacks.fool_both(Linf(0.1), explain.saliency(), K)(one, x, 0 * y)
