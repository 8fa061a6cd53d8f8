"""What guided backpropagation and DeepLIFT cannot serve is an error, never a wrong map."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import filled, rand
from test_backward_rules import RULES, rules, written
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible import attacks, explain
from foible.core.errors import AccessError, InputError, ModelError
from foible.models import ensemble, wrap
from foible.parts.threats import Linf


@pytest.fixture
def x() -> Tensor:
    return rand(7, 2, 6, 6, seed=2, dtype=torch.float64)


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 0, 1, 2, 1])


# --- what a rule cannot serve


class Odd(nn.Module):
    def __init__(self, odd: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.head, self.odd = nn.Linear(10, 6), nn.Linear(6, 3), odd

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.odd(self.one(x)))


class Mine(torch.autograd.Function):
    """A ReLU of one's own, which no override sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (ctx.saved_tensors[0] > 0)


def written_through_a_view(x: Tensor) -> Tensor:
    room = torch.zeros(x.shape, dtype=x.dtype)
    room[:].copy_(x)
    return torch.relu(room)


HIDDEN = {
    "maximum": lambda x: torch.maximum(x, torch.zeros((), dtype=x.dtype)),
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "max": lambda x: torch.max(x, 0 * x),
    "autograd.Function": Mine.apply,
    "beside itself": lambda x: Mine.apply(x) + torch.relu(x),
    "a view": written_through_a_view,
}
NONLINEAR = {
    "softmax": lambda x: torch.softmax(x, 1),
    "gate": lambda x: x * torch.sigmoid(x),
    "square": lambda x: x * x,
    "glu": lambda x: torch.cat([F.glu(x, 1)] * 2, 1),
    "mask": lambda x: x * (x > 0),
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "division": lambda x: x / (1 + x.abs().sum(1, keepdim=True)),
    "largest": lambda x: x + x.amax(1, keepdim=True),
    "detached": lambda x: x + torch.relu(x).detach(),
    "value": lambda x: x * float(x.detach().abs().max()),
    "branch": lambda x: torch.relu(x) if bool((x > 0).any()) else x,
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0],
}


@pytest.mark.parametrize("odd", HIDDEN)
@rules
def test_a_hidden_relu_is_no_wrong_map(rule: Any, odd: str, table: Tensor) -> None:
    net = filled(Odd(HIDDEN[odd]), 1, 2.0).double()
    before = everything_about(net)
    with pytest.raises(ModelError, match=r"has no rule for|cannot see into"):
        rule(net, table, 1)
    assert all(same(v, everything_about(net)[k]) for k, v in before.items())


def test_a_scripted_part_is_no_wrong_map(table: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = torch.jit.trace(nn.ReLU(), torch.zeros(2, 6).double())
    net = filled(Odd(inner), 1, 2.0).double()
    for rule in RULES:
        with pytest.raises(ModelError, match="cannot see into"):
            rule(net, table, 1)


@pytest.mark.parametrize("odd", NONLINEAR)
def test_deep_lift_refuses_what_it_has_no_rule_for(odd: str, table: Tensor) -> None:
    net = filled(Odd(NONLINEAR[odd]), 1, 2.0).double()
    with pytest.raises(ModelError, match=r"DeepLIFT has no rule for"):
        explain.deep_lift()(net, table, 1)


LINEAR_PARTS = {
    "batch norm": nn.BatchNorm1d(6),
    "arithmetic": lambda x: (2 * x - 1) / 3 + torch.ones(6).double() - (-x),
    "shapes": lambda x: torch.stack([x.view(-1, 2, 3).transpose(1, 2).flatten(1), x]).mean(0),
    "products": lambda x: torch.einsum("bi,ij->bj", x, torch.eye(6).double().roll(1, 0)),
    "pieces": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1) + x[:, [5, 4, 3, 2, 1, 0]],
    "assigned": lambda x: _assigned(x),
    "fixed mask": lambda x: torch.where(torch.arange(6) > 2, x, 0.5),
    "elementwise": lambda x: torch.exp(-x.square()) + x.abs().sqrt() + 1 / (2 + x.sin()) + x**3,
}


def _assigned(x: Tensor) -> Tensor:
    room = torch.zeros(x.shape, dtype=x.dtype)
    room[:, :3] = x[:, 3:]
    room += x
    return room


@pytest.mark.parametrize("part", LINEAR_PARTS)
def test_deep_lift_is_complete_with(part: str, table: Tensor) -> None:
    act = LINEAR_PARTS[part]
    net = filled(Odd(lambda x: torch.relu(act(torch.tanh(x)))), 1, 2.0)
    if isinstance(act, nn.Module):
        net.act = act.eval()
    net = net.double()
    maps = explain.deep_lift(0.1)(net, table, 1)
    gap = (net(table) - net(torch.full_like(table, 0.1)))[:, 1]
    torch.testing.assert_close(maps.sum(1), gap, rtol=0, atol=1e-9)


def test_guided_keeps_the_slope_of_what_is_no_relu(table: Tensor) -> None:
    """Softmax, gates and norms have their own gradient; a net without any ReLU is refused."""
    net = filled(Odd(lambda x: torch.softmax(torch.relu(x), 1)), 1, 2.0).double()
    assert explain.guided_backprop()(net, table, 1).abs().sum() > 0
    smooth = filled(Odd(torch.tanh), 1, 2.0).double()
    with pytest.raises(ModelError, match="other activations only"):
        explain.guided_backprop()(smooth, table, 1)
    flat = filled(nn.Linear(10, 3), 1).double()
    assert torch.equal(
        explain.guided_backprop()(flat, table, 1), explain.saliency()(flat, table, 1)
    )
    with pytest.raises(ModelError, match="guided backpropagation has no rule for 'softmax'"):
        leaf = table.clone().requires_grad_()
        explain.guided_backprop()(net, leaf, 1, create_graph=True)


def test_guided_on_clipped_and_leaky_units(x: Tensor, y: Tensor) -> None:
    """ReLU6 is guided; a leaky ReLU beside it keeps its slope."""
    part = filled(nn.Linear(72, 9), 1, 9.0).double()
    head = filled(nn.Linear(9, 3), 2, 2.0).double()
    net = nn.Sequential(nn.Flatten(), part, nn.ReLU6(), nn.LeakyReLU(), head)
    at = part(x.flatten(1))
    inside = (at > 0) & (at < 6)
    wanted = (head.weight[y].clamp(min=0) * inside) @ part.weight
    found = explain.guided_backprop()(net, x, y).flatten(1)
    torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=1e-12)
    assert inside.any() and (at > 6).any()


class Moody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.head, self.calls = nn.Linear(10, 6), nn.Linear(6, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.one(x)
        return self.head(torch.relu(x) if self.calls % 2 else torch.relu(torch.relu(x)))


def test_a_net_of_changing_course_is_found_out(table: Tensor) -> None:
    with pytest.raises(ModelError, match="did not take the same course"):
        explain.deep_lift()(Moody().double(), table, 1)


def test_models_and_objectives(x: Tensor, y: Tensor) -> None:
    one, two = written("F.relu"), written("clamp_")
    both = ensemble([one, two])
    for rule in RULES:
        wanted = (rule(one, x, y) + rule(two, x, y)) / 2
        torch.testing.assert_close(rule(both, x, y), wanted, rtol=0, atol=1e-9)
    assert attacks.fgsm(Linf(0.1), RULES[1])(one, x, y).x.isfinite().all()
    eot = attacks.eot(attacks.bim(Linf(0.1), 2), 2)
    assert eot(one, x, y).x.isfinite().all()
    less = wrap(one)
    less.access = type(less.access).GRADIENTS
    with pytest.raises(AccessError, match="INTERNALS"):
        RULES[0](less, x, y)


def test_a_map_on_a_graph_belongs_to_one_point(x: Tensor, y: Tensor) -> None:
    from foible.attacks.wrappers import Averaged
    from foible.core.explainer import Field
    from foible.core.oracle import Oracle
    from foible.core.randomness import Rng
    from foible.core.rows import Rows
    from foible.parts.objectives import CrossEntropy

    index = torch.arange(len(x))
    oracle = Oracle(wrap(written("F.relu")), len(x), explain.deep_lift().access)
    field = Field(oracle, Averaged(CrossEntropy(), 2), 8)
    rows, draw = Rows(index, index, x, y), Rng(0).at(index)
    with oracle.session():
        for part in (*RULES, explain.grad_cam("one")):
            with pytest.raises(InputError, match="averages over draws"):
                part.attribute(field, rows, draw, create_graph=True)
