"""Neurons taken out one at a time, and the causal model that predicts it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import Counter, SmallNet, filled, rand, randn
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible import explain
from foible.core.errors import AccessError, InputError, KindError
from foible.models import ensemble, wrap


def cnn(seed: int = 3) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(45, 3),
    )  # fmt: skip
    return filled(net, seed, 2.0).double().eval()


def dead(net: nn.Sequential, unit: int) -> nn.Sequential:
    with torch.no_grad():
        net[0].weight[unit] = 0
        net[0].bias[unit] = -1.0
    return net


def inputs(n: int = 7) -> Tensor:
    return rand(n, 1, 6, 6, seed=6, dtype=torch.float64)


def by_hand(net: nn.Sequential, x: Tensor, cut: int, unit: int, put: str) -> Tensor:
    """The logits of a net cut open after module `cut`, one unit replaced."""
    with torch.no_grad():
        act = net[: cut + 1](x).clone()
        act[:, unit] = act[:, unit].mean(0) if put == "mean" else 0
        return net[cut + 1 :](act)


# --- one unit at a time


@pytest.mark.parametrize("put", ["zero", "mean"])
@pytest.mark.parametrize(("layer", "units"), [("1", 4), ("3", 5), ("4", 45)])
def test_an_effect_is_the_net_cut_open(layer: str, units: int, put: str) -> None:
    net, x = cnn(), inputs()
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    found = explain.neuron_effect(Counter(wrap(net), at_most=4), x, y, layer, put)
    whole = net(x).detach()
    assert found.layer == layer and torch.equal(found.right, whole.argmax(1) == y)
    for unit in range(units):
        after = by_hand(net, x, int(layer), unit, put)
        fall = (whole - after).gather(1, y[:, None]).squeeze(1)
        rise = F.cross_entropy(after, y, reduction="none") - F.cross_entropy(
            whole, y, reduction="none"
        )
        torch.testing.assert_close(found.logit[:, unit], fall, rtol=0, atol=1e-10)
        torch.testing.assert_close(found.loss[:, unit], rise, rtol=0, atol=1e-10)
        assert torch.equal(found.still[:, unit], after.argmax(1) == y)
    assert found.logit.abs().max() > 0.01


def test_a_linear_model_loses_weight_times_input() -> None:
    head = filled(nn.Linear(6, 3), 4).double()
    net = nn.Sequential(nn.Identity(), head)
    x = randn(5, 6, seed=5, dtype=torch.float64)
    found = explain.neuron_effect(net, x, 2, "0")
    torch.testing.assert_close(found.logit, x * head.weight[2].detach(), rtol=0, atol=1e-12)


def test_a_dead_unit_does_exactly_nothing_and_costs_nothing() -> None:
    x = inputs()
    found = explain.neuron_effect(dead(cnn(), 2).float(), x.float(), None, "1")
    for values in (found.logit, found.loss):
        assert torch.equal(values[:, 2], torch.zeros(7, dtype=torch.float64))
    assert found.accuracy_drop[2] == 0 and found.loss_rise[2] == 0
    assert bool((found.logit[:, [0, 1, 3]] != 0).any(0).all())


def test_what_it_costs_and_that_it_leaves_no_trace() -> None:
    net = dead(cnn(), 2).train()
    before, model = everything_about(net), Counter(wrap(net), at_most=5)
    explain.neuron_effect(model, inputs(), None, "1")
    # One for the activations, one more for each unit that is not dead.
    assert model.forwards <= 7 * (1 + 3) and max(model.sizes) <= 5
    broken = Counter(wrap(net), at_most=5, broken_at=4)
    with pytest.raises(RuntimeError, match="broke"):
        explain.neuron_effect(broken, inputs(), None, "1")
    after = everything_about(net)
    assert [k for k in before if not same(before[k], after[k])] == []


def test_reused_and_in_place_layers_are_right() -> None:
    net, x = filled(SmallNet(), 5, 2.0).double().eval(), inputs()
    found = explain.neuron_effect(net, x, 1, "act#2")
    with torch.no_grad():
        act = torch.relu(net.again(torch.relu(net.norm(net.conv(x)))))
        act[:, 1] = 0
        after = net.head(torch.relu(net.again(act)).flatten(1))
        torch.testing.assert_close(found.logit[:, 1], (net(x) - after)[:, 1])
    last, named = (explain.neuron_effect(net, x, 1, k) for k in (None, "act#3"))
    assert torch.equal(last.logit, named.logit) and not torch.equal(last.logit, found.logit)


# --- several together


def test_several_units_of_several_layers_go_together() -> None:
    net, x = cnn(), inputs(40)
    y = net(x).argmax(1)
    y[::3] = (y[::3] + 1) % 3
    units = {"1": torch.tensor([0, 2]), "3": torch.tensor([4])}
    with torch.no_grad():
        first = net[:2](x)
        first[:, [0, 2]] = 0
        second = net[2:4](first)
        second[:, 4] = 0
        wanted = (net[4:](second).argmax(1) == y).double().mean()
    assert explain.accuracy_without(net, x, y, units) == float(wanted)
    whole = explain.neuron_effect(net, x, y, "1")
    assert explain.accuracy_without(net, x, y, {}) == whole.accuracy
    one = explain.accuracy_without(net, x, y, {"1": torch.tensor([3])})
    assert whole.accuracy - one == pytest.approx(float(whole.accuracy_drop[3]), abs=1e-12)


# --- the causal model


def test_the_causal_model_of_a_linear_net_is_the_net() -> None:
    """Scalar units, no activation: the equations are the weights, the effect is do(unit = 0)."""
    net = filled(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)), 4).double()
    x = randn(60, 6, seed=5, dtype=torch.float64) + 0.5
    found = explain.causal_model(net, x)
    assert found.layers == ("0", "1")
    first, second = (m.weight.detach().T for m in (net[1], net[2]))
    torch.testing.assert_close(found.weights[0], first, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.weights[1], second, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.importance("0", scaled=False), first.abs().sum(1))
    spread = net[0](x).detach().std(0)
    torch.testing.assert_close(found.importance("0"), first.abs().sum(1) * spread)
    for k in range(3):
        done = explain.neuron_effect(net, x, k, "0").logit.mean(0)
        torch.testing.assert_close(found.effect("0")[:, k], -done, rtol=0, atol=1e-9)
    for values in found.fit(net, x[:20]).values():
        torch.testing.assert_close(values, torch.ones_like(values))


@pytest.mark.parametrize("summary", ["norm", "binary"])
def test_the_equations_are_least_squares(summary: str) -> None:
    net, x = cnn(), inputs(50)
    found = explain.causal_model(net, x, ("1", "3"), summary)
    with torch.no_grad():
        acts = [net[:2](x), net[:4](x)]
    nodes = []
    for act in acts:
        flat = act.flatten(2)
        high = (flat > flat.mean((0, 2), keepdim=True)).double()
        nodes.append(flat.norm(dim=2) if summary == "norm" else high.var(2, correction=0))
    nodes.append(net(x).detach())
    for parent, child, weight in zip(nodes[:-1], nodes[1:], found.weights, strict=True):
        design = torch.cat([parent, torch.ones(50, 1, dtype=torch.float64)], 1)
        wanted = torch.linalg.lstsq(design, child, driver="gelsd").solution[:-1]
        torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-8)
    with torch.no_grad():
        predicted = (nodes[0] - nodes[0].mean(0)) @ found.weights[0] + nodes[1].mean(0)
    left = (nodes[1] - predicted).square().sum(0) / (nodes[1] - nodes[1].mean(0)).square().sum(0)
    live = nodes[1].std(0) > 0
    torch.testing.assert_close(found.fit(net, x)["1"][live], (1 - left)[live])


@pytest.mark.parametrize("summary", ["norm", "binary"])
def test_a_dead_unit_causes_exactly_nothing(summary: str) -> None:
    found = explain.causal_model(dead(cnn(), 2), inputs(50), ("1", "3"), summary)
    assert found.importance("1")[2] == 0 and found.importance("1", scaled=False)[2] == 0
    assert torch.equal(found.effect("1")[2].abs(), torch.zeros(3, dtype=torch.float64))
    assert bool((found.importance("1")[[0, 1, 3]] > 0).all())


def test_the_layers_it_finds_are_the_activations() -> None:
    x = inputs(50)
    assert explain.causal_model(cnn(), x).layers == ("1", "3")
    assert explain.causal_model(filled(SmallNet(), 5, 2.0).double(), x).layers[-1] == "act#3"


# --- what cannot be


def test_what_cannot_be_is_refused() -> None:
    net, x = cnn(), inputs(10)
    with pytest.raises(InputError, match="put='one'"):
        explain.neuron_effect(net, x, 0, "1", "one")
    with pytest.raises(InputError, match="class 7"):
        explain.neuron_effect(net, x, 7, "1")
    with pytest.raises(InputError, match="is no module"):
        explain.neuron_effect(net, x, 0, "conv9")
    with pytest.raises(InputError, match="empty"):
        explain.neuron_effect(net, x[:0], 0, "1")
    with pytest.raises(InputError, match=r"units 0\.\.3"):
        explain.accuracy_without(net, x, net(x).argmax(1), {"1": torch.tensor([4])})
    both = ensemble([net, cnn(4)])
    with pytest.raises(AccessError):
        explain.neuron_effect(both, x, 0, "1")
    with pytest.raises(KindError, match="no neurons"):
        explain.causal_model(both, x)
    with pytest.raises(KindError, match="no neurons"):
        explain.accuracy_without(both, x, net(x).argmax(1), {})
    with pytest.raises(InputError, match="fit no regression"):
        explain.causal_model(net, x[:5])
    with pytest.raises(InputError, match="summary='mean'"):
        explain.causal_model(net, x, None, "mean")
    with pytest.raises(InputError, match="not in the model"):
        explain.causal_model(net, x, ("1",)).importance("3")
