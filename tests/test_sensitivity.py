"""Worst-case sensitivity: a closed form, the figures again by hand, and the cost."""

from __future__ import annotations

import pytest
import torch
from conftest import Counter, filled, linear, predicted, rand, randn, softened
from torch import Tensor, nn

import foible
from foible import explain
from foible.core.errors import InputError
from foible.models import softplus_twin, wrap


@pytest.fixture(scope="module")
def relu() -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(216, 12), nn.ReLU(),
        nn.Linear(12, 3),
    )  # fmt: skip
    net = filled(net, 2, 1.5)
    x = rand(7, 1, 6, 6, seed=1)
    return net, x, predicted(net, x)


def test_a_linear_model_has_a_closed_form() -> None:
    """Of w * x within Linf r the map moves by r |w| at most: the attack finds exactly that."""
    weight = randn(3, 12, seed=1, dtype=torch.float64)
    net = linear(weight, torch.zeros(3, dtype=torch.float64))
    x = 0.3 + 0.4 * rand(5, 12, seed=2, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 0, 1])
    explainer = explain.gradient_x_input()
    wanted = 0.1 * weight[target].norm(dim=1) / (weight[target] * x).norm(dim=1)
    found = explain.sensitivity(explainer, 0.1, 40, beta=None)(net, x, target)
    torch.testing.assert_close(found.values, wanted)
    tried = explain.sensitivity(explainer, 0.1, 40, "random")(net, x, target)
    assert (tried.values < 0.9 * wanted).all()
    corners = explain.sensitivity(explainer, 0.1, 40, "corners")(net, x, target)
    torch.testing.assert_close(corners.values, wanted)  # here every corner is a worst one
    # The plain gradient of a linear model does not move at all.
    still = explain.sensitivity(explain.saliency(), 0.1, 40, beta=None)(net, x, target)
    assert not still.values.any() and torch.equal(still.x, x)


@pytest.mark.parametrize("how", ["attack", "random", "corners"])
def test_the_value_is_what_the_true_model_says_of_the_point(how: str, relu) -> None:
    net, x, y = relu
    explainer = explain.saliency()
    found = explain.sensitivity(explainer, 0.05, 40, how)(net, x, y)
    clean, there = (explainer(net, at, y).flatten(1).double() for at in (x, found.x))
    by_hand = (there - clean).norm(dim=1) / clean.norm(dim=1)
    torch.testing.assert_close(found.values, by_hand, rtol=1e-4, atol=1e-6)
    assert (found.x - x).abs().max() <= 0.05 + 1e-6 and 0 <= found.x.min() <= found.x.max() <= 1
    assert found.values.min() > 0 and found.mean is not None


def test_random_tries_every_point_that_it_pays_for(relu) -> None:
    """More points of the same seed hold the fewer, and the largest is kept."""
    net, x, y = relu
    few, many = (
        explain.sensitivity(explain.saliency(), 0.05, n, "random")(net, x, y).values
        for n in (20, 60)
    )
    assert (many >= few).all() and (many > few).any()


def test_the_attack_finds_more_at_no_more_cost() -> None:
    net, (x, y) = foible.zoo.load("standard"), foible.zoo.sample()
    found = {
        how: explain.sensitivity(explain.saliency(), 0.02, 50, how)(net, x[:8], y[:8])
        for how in ("attack", "random", "corners")
    }
    spent = {how: int((f.forwards + f.backwards).max()) for how, f in found.items()}
    assert all(90 <= calls <= 100 for calls in spent.values()), spent
    for other in ("random", "corners"):
        ratio = found["attack"].values / found[other].values
        assert ratio.min() >= 1 and ratio.median() > 1.4


def test_the_climb_begins_at_the_best_corner() -> None:
    """At the clean input itself the distance has no slope: nothing could be climbed from there."""
    net, x = softened(), rand(4, 10, seed=4, dtype=torch.float64)
    saliency = explain.saliency()
    found = explain.sensitivity(saliency, 0.1, 200, beta=None)(net, x)
    corners = explain.sensitivity(saliency, 0.1, 23, "corners")(net, x)  # the same twenty
    higher = found.values / corners.values
    assert higher.min() >= 1 and higher.median() > 1.1


def test_the_cost_is_counted(relu, monkeypatch) -> None:
    from foible.explain import moving

    net, x, y = relu
    true, soft = Counter(wrap(net)), Counter(softplus_twin(net, 100.0))
    monkeypatch.setattr(moving, "softplus_twin", lambda model, beta: soft)
    found = explain.sensitivity(explain.saliency(), 0.05, 30)(true, x, y)
    assert int(found.forwards.sum()) == true.forwards + soft.forwards
    steps = (2 * 30 - 12 - 2 * 3 - 5) // 5
    # The counter sees backwards that begin at the scores; one a step begins at the map.
    assert int(found.backwards.sum()) == true.backwards + soft.backwards + steps * len(x)


def test_predicted_labels_and_maps_without_gradients(relu) -> None:
    net, x, y = relu
    some = explain.sensitivity(explain.saliency(), 0.05, 30)
    torch.testing.assert_close(some(net, x).values, some(net, x, y).values)
    lime = explain.sensitivity(explain.lime(12, 3), 0.05, 20, "random")
    assert lime(net, x[:2], y[:2]).values.min() >= 0
    with pytest.raises(InputError, match="not differentiable"):
        explain.sensitivity(explain.lime(12, 3))
    assert "0.05 in Linf, among random points" in lime.definition


def test_a_map_that_is_nothing_has_no_sensitivity() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.zero_(), net[0].bias.fill_(-1.0)
    found = explain.sensitivity(explain.saliency(), 0.1, 20, "random")(net, rand(2, 4, seed=1))
    assert found.values.tolist() == [0.0, 0.0]


def test_inputs_that_lie_in_no_ball_are_refused(relu) -> None:
    """They would be told a sensitivity of 0, as if their maps held."""
    net, x, y = relu
    for how in ("attack", "random"):
        some = explain.sensitivity(explain.saliency(), 0.05, 30, how)
        with pytest.raises(InputError, match="bounds are"):
            some(net, 2 * x, y)
        with pytest.raises(InputError, match="x is empty"):
            some(net, x[:0], y[:0])
        assert some(wrap(net, bounds=(0.0, 2.0)), 2 * x, y).values.min() > 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"how": "grid"}, "attack or random or corners"),
        ({"radius": 0.0}, "positive radius"),
        ({"budget": 10}, "at least 20"),
    ],
)
def test_what_does_not_fit_is_said(settings, says: str) -> None:
    with pytest.raises(InputError, match=says):
        explain.sensitivity(explain.saliency(), **settings)
