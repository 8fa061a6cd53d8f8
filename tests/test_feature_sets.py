"""Data sets of features: robust ones, and those that only a net sees."""

from __future__ import annotations

import pytest
import torch
from conftest import SmallNet, filled, rand
from replicas import training as slow
from torch import Tensor, nn

from foible import attacks, defend
from foible.core.errors import InputError, KindError
from foible.defend.feature_sets import penultimate
from foible.models import ensemble, wrap
from foible.parts.threats import L2


def centred(net: nn.Module, head: nn.Linear, x: Tensor) -> nn.Module:
    """Give a net as many predictions of each class, roughly: its scores have mean 0 on x."""
    with torch.no_grad():
        head.bias -= net.eval()(x).mean(0)
    return net


def features_net() -> nn.Module:
    net = filled(nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3)), 7, 2.0).double()
    return centred(net, net[2], rand(60, 10, seed=2, dtype=torch.float64))


def test_robust_features_are_the_papers_descent() -> None:
    net, x = features_net(), rand(6, 10, seed=2, dtype=torch.float64)
    y = torch.arange(6) % 3
    made, labels = defend.robust_features(net, x, y, steps=9, step=0.05, seed=3)
    assert torch.equal(labels, y)
    body, near = net[:2], 0
    for row, one in zip(made, x, strict=True):
        options = [slow.robust_input(body, one, start, 9, 0.05) for start in x]
        near += any(torch.allclose(row, other, atol=1e-9) for other in options)
    assert near == 6


def test_robust_features_approach_the_features_and_not_the_image() -> None:
    net, x = features_net(), rand(20, 10, seed=2, dtype=torch.float64)
    y = torch.arange(20) % 3
    made, _ = defend.robust_features(net, x, y, steps=150, step=0.02)
    with torch.no_grad():
        apart = (net[:2](made) - net[:2](x)).norm(dim=1)
    assert float(apart.median()) < 0.05
    assert float((made - x).norm(dim=1).median()) > 0.3
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    again, _ = defend.robust_features(net, x, y, steps=150, step=0.02)
    other, _ = defend.robust_features(net, x, y, steps=150, step=0.02, seed=1)
    assert torch.equal(made, again) and not torch.equal(made, other)
    named, _ = defend.robust_features(net, x, y, layer="1", steps=150, step=0.02)
    assert torch.equal(made, named)


def test_features_are_taken_before_a_relu() -> None:
    x = rand(3, 5, seed=1)
    relu = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    assert penultimate(wrap(relu), x) == "0"
    tanh = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 2))
    assert penultimate(wrap(tanh), x) == "2"


def test_robust_features_leave_the_model_and_refuse_nonsense() -> None:
    net = filled(SmallNet(), 5, 2.0).train()
    x, y = rand(4, 1, 6, 6, seed=6), torch.arange(4)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    made, _ = defend.robust_features(net, x, y, steps=2)
    assert made.shape == x.shape and net.training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    with pytest.raises(KindError, match="holds no torch module"):
        defend.robust_features(ensemble([net, net]), x, y)
    with pytest.raises(InputError, match="no layer"):
        defend.robust_features(nn.Linear(3, 2), rand(2, 3, seed=1), torch.arange(2))
    with pytest.raises(InputError, match="at least one"):
        defend.robust_features(net, x, y, steps=0)
    with pytest.raises(InputError, match="is no module"):
        defend.robust_features(net, x, y, layer="nowhere")


@pytest.mark.parametrize("labels", ["random", "next"])
def test_non_robust_features_are_labelled_as_what_they_fool_to(labels: str) -> None:
    net, x = features_net(), rand(60, 10, seed=2, dtype=torch.float64)
    y = torch.arange(60) % 3
    attack = attacks.pgd(L2(1.5), 20)
    made, target = defend.non_robust_features(net, x, y, attack, labels, seed=4)
    assert float((made - x).norm(dim=1).max()) <= 1.5 + 1e-6
    assert float((net(made).argmax(1) == target).double().mean()) > 0.8
    if labels == "next":
        assert torch.equal(target, (y + 1) % 3)
    else:
        counts = torch.bincount(target, minlength=3)
        assert int(counts.min()) >= 10  # of 20 expected
        again = defend.non_robust_features(net, x, y, attack, seed=5)[1]
        assert not torch.equal(target, again)
    with pytest.raises(InputError, match="'random' or 'next'"):
        defend.non_robust_features(net, x, y, attack, "some")
