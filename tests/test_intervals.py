"""Interval bounds: never left, exact where they can be, and refused where there is no rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import Own, images, seeded
from torch import Tensor, nn

import foible
from foible import defend
from foible.core.errors import InputError, KindError, ModelError
from foible.defend.certify import bounds, certified


class Written(nn.Module):
    """Functions, methods, in-place steps, a skip, a constant, a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.weight = nn.Parameter(torch.randn(48, 5) / 7)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(2 * x - 1))
        h = torch.relu_(h) - 0.5 * torch.tanh(h)
        h = torch.cat([h[:, :1], -h[:, 1:]], 1)
        more = 1 - h.clamp(min=0)
        h = h.clone()
        h += more
        h = F.max_pool2d(F.pad(h, (1, 1, 1, 1)), 3, 2)
        h = self.dropout(h)[..., 1:, 1:].reshape(len(x), -1)
        gathered = torch.zeros_like(h)
        gathered += h - h.mean(1, keepdim=True)
        gathered += h.new_ones(1)
        return gathered @ self.weight[: h.shape[1]] / 3


def moved_norms(net: nn.Module) -> nn.Module:
    """Running statistics and signs of scale that are not those of the start."""
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.uniform_(-1, 1)
                m.running_var.uniform_(0.5, 2)
                m.weight.uniform_(-1, 1)
    return net


NETS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.ELU(), nn.Linear(32, 5)
    ),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 2, groups=2),
        nn.LeakyReLU(0.2), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(4, 5),
    ),
    "norms": lambda: moved_norms(nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(),
        nn.MaxPool2d(2), nn.ConvTranspose2d(4, 3, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(12, 5),
    )),
    "own": lambda: moved_norms(Own(5)),
    "written": lambda: moved_norms(Written()),
    "softened": lambda: defend.softplus(Own(5), 3.0),
}  # fmt: skip


def case(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    net = seeded(NETS[name]).to(dtype).eval()
    return net, images(5).to(dtype)


def within(x: Tensor, eps: float, count: int) -> Tensor:
    """Random points of the ball, (count, B, *shape); half of them corners."""
    g = torch.Generator().manual_seed(7)
    noise = torch.rand(count, *x.shape, generator=g, dtype=x.dtype) * 2 - 1
    noise[::2] = noise[::2].sign()
    return (x + eps * noise).clamp(0, 1)


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("name", NETS)
def test_no_point_of_the_ball_leaves_the_bounds(name: str, eps: float) -> None:
    net, x = case(name)
    lower, upper = bounds(net, x, eps)
    assert lower.shape == upper.shape == (5, 5) and not lower.requires_grad
    scores = torch.stack([net(p) for p in within(x, eps, 60)]).detach()
    assert bool((scores >= lower - 1e-9).all() and (scores <= upper + 1e-9).all())
    # The extreme of each logit that a search finds stays inside too.
    for k in range(5):
        for sign, edge in ((1, upper), (-1, lower)):
            one = Logit(net, k, sign)
            y = torch.zeros(5, dtype=torch.int64)
            at = foible.attacks.pgd(foible.Linf(eps), steps=10)(one, x, y).x
            assert bool((sign * (net(at)[:, k] - edge[:, k]) <= 1e-9).all())


class Logit(nn.Module):
    """Two scores whose margin is one logit, upwards or downwards."""

    def __init__(self, net: nn.Module, k: int, sign: int) -> None:
        super().__init__()
        self.net, self.k, self.sign = net, k, sign

    def forward(self, x: Tensor) -> Tensor:
        # The first class is always the larger, so that the search climbs all the way.
        out = self.sign * self.net(x)[:, self.k]
        return torch.stack([torch.full_like(out, 100.0), out], 1)


@pytest.mark.parametrize("name", NETS)
def test_at_eps_0_the_bounds_are_the_scores(name: str) -> None:
    net, x = case(name)
    lower, upper = bounds(net, x, 0.0)
    torch.testing.assert_close(lower, net(x).detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(upper, net(x).detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NETS)
def test_the_net_and_the_random_state_stay_as_they_were(name: str) -> None:
    net, x = case(name)
    net.train()
    before, held = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    kept = x.clone()
    bounds(net, x, 0.1)
    assert torch.equal(held, torch.get_rng_state()) and torch.equal(x, kept) and net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_on_a_linear_model_the_bounds_are_reached() -> None:
    net, x = case("linear")
    lower, upper = bounds(net, x, 0.05)
    weight, bias = net[1].weight, net[1].bias
    low, high = (x - 0.05).clamp(0, 1).flatten(1), (x + 0.05).clamp(0, 1).flatten(1)
    for k in range(5):
        top = torch.where(weight[k] > 0, high, low)
        torch.testing.assert_close(upper[:, k], top @ weight[k] + bias[k])
        bottom = torch.where(weight[k] > 0, low, high)
        torch.testing.assert_close(lower[:, k], bottom @ weight[k] + bias[k])


def test_what_is_certified_of_a_linear_model_is_the_closed_form() -> None:
    net = seeded(NETS["linear"]).double()
    x = 0.3 + 0.4 * images(20).double()  # far from the box
    with torch.no_grad():
        scores = net(x)
    y = scores.argmax(1)
    weight = net[1].weight.detach()
    gap = scores.gather(1, y[:, None]) - scores
    size = (weight[y][:, None] - weight[None]).abs().sum(2)
    smallest = torch.where(gap == 0, torch.inf, gap / size).min(1).values
    assert float(smallest.min()) > 0 and float(smallest.max()) < 0.3
    assert bool(certified(net, x, y, 0.999 * smallest).all())
    assert not bool(certified(net, x, y, 1.001 * smallest).any())
    # Two bounds apart are looser than one of the difference.
    lower, upper = bounds(net, x, 0.999 * smallest)
    worst = upper.scatter(1, y[:, None], -torch.inf).max(1).values
    assert bool((lower.gather(1, y[:, None])[:, 0] < worst).any())
    wrong = (y + 1) % 5
    assert not bool(certified(net, x, wrong, 0.0).any())


def test_two_layers_are_the_formula_written_slowly() -> None:
    net, x = case("mlp")
    eps = 0.03
    low, high = (x - eps).clamp(0, 1).flatten(1), (x + eps).clamp(0, 1).flatten(1)
    for layer, act in ((net[1], torch.tanh), (net[3], F.elu), (net[5], torch.clone)):
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        low, high = (
            act(low @ up.T + high @ down.T + layer.bias),
            act(high @ up.T + low @ down.T + layer.bias),
        )
    lower, upper = bounds(net, x, eps)
    torch.testing.assert_close(lower, low.detach())
    torch.testing.assert_close(upper, high.detach())


@pytest.mark.parametrize("name", ["mlp", "conv", "own"])
def test_nothing_that_is_certified_is_broken(name: str) -> None:
    net, x = case(name)
    y = net(x).argmax(1)
    sure = torch.zeros(5, dtype=torch.bool)
    for eps in (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3):
        sure = certified(net, x, y, eps)
        broken = foible.attacks.pgd(foible.Linf(eps), objective="margin")(net, x, y).success
        assert not bool((sure & broken).any())
        if not sure.all():
            break
    assert not bool(sure.all())  # the last eps was large enough to matter
    assert bool(certified(net, x, y, 1e-6).all())


def test_preprocessing_outputs_and_the_box_belong_to_the_model() -> None:
    net, x = case("conv")
    mean, std = [0.3], [0.5]
    held = foible.wrap(net, preprocess=(mean, std))
    bare = nn.Sequential(Normalised(0.3, 0.5), net)
    for a, b in zip(bounds(held, x, 0.1), bounds(bare, x, 0.1), strict=True):
        torch.testing.assert_close(a, b)
    wide = bounds(foible.wrap(net, bounds=(-5, 5)), x, 0.3)
    cut = bounds(net, x, 0.3)
    assert bool((wide[0] < cut[0]).all() and (wide[1] > cut[1]).all())
    all_of_it = bounds(net, x, 1.0)  # the whole box, whatever x was
    torch.testing.assert_close(all_of_it[0][0], all_of_it[0][1])
    logit = foible.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).double(), outputs="logit")
    lower, upper = bounds(logit, x, 0.1)
    assert lower[:, 0].eq(0).all() and upper[:, 0].eq(0).all() and (lower < upper)[:, 1].all()


class Normalised(nn.Module):
    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def test_eps_a_sample_and_parts_of_a_batch() -> None:
    net = foible.zoo.networks.small_cnn(width=4).eval()
    x = torch.rand(300, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    eps = torch.linspace(0, 0.1, 300)
    lower, upper = bounds(net, x, eps)
    for i in (0, 150, 299):
        one = bounds(net, x[i : i + 1], float(eps[i]))
        torch.testing.assert_close(lower[i : i + 1], one[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(upper[i : i + 1], one[1], atol=1e-5, rtol=1e-5)
    assert bounds(net, x[:0] + 0, 0.1)[0].shape == (0, 10)


class Odd(nn.Module):
    def __init__(self, step: Any) -> None:
        super().__init__()
        self.first, self.step, self.last = nn.Linear(4, 4), step, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.first(x)))


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def through_a_view(h: Tensor) -> Tensor:
    h.view(-1).mul_(-3)
    return h


def through_a_base(h: Tensor) -> Tensor:
    seen = h.view(-1, 2, 2)
    h.mul_(-3)
    return seen.flatten(1)


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (nn.GELU(), "'gelu'"),
        (nn.Softmax(1), "'softmax'"),
        (nn.LayerNorm(4), "'layer_norm'"),
        (lambda h: h * h, "'mul'"),
        (lambda h: 1 / (2 + h), "'rtruediv'|'rdiv'|'reciprocal'|'div'"),
        (lambda h: h.detach(), "'detach'"),
        (lambda h: h.data, "'data'"),
        (lambda h: h.sort(1).values, "'sort'"),
        (lambda h: F.leaky_relu(h, -0.5), "'leaky_relu'"),
        (lambda h: torch.add(h, h, alpha=-1), "'add'"),
        (lambda h: F.dropout(h, 0.5, True), "'dropout'"),
        (lambda h: F.linear(torch.eye(4), h[:1].expand(4, 4)), "'linear'"),
        (through_a_view, "in place"),
        (through_a_base, "in place"),
        (Hidden.apply, "cannot see into"),
        (lambda h: torch.ones(len(h), 4), "do not depend"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(step: Any, match: str) -> None:
    net = seeded(lambda: Odd(step)).eval()
    with pytest.raises(ModelError, match=match):
        bounds(net, torch.rand(3, 4), 0.1)


def test_bad_input() -> None:
    net, x = case("linear")
    y = torch.zeros(5, dtype=torch.int64)
    for eps in (-0.1, float("nan"), torch.ones(3)):
        with pytest.raises(InputError, match="eps"):
            bounds(net, x, eps)
    with pytest.raises(InputError, match="bounds are"):
        bounds(net, x + 1, 0.1)
    with pytest.raises(InputError, match="int64"):
        certified(net, x, y.float(), 0.1)
    with pytest.raises(KindError, match="torch module"):
        bounds(foible.models.ensemble([net, net]), x, 0.1)
