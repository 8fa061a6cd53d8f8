"""Layer-wise relevance: conserved, zennit's own on nets that it suits, a clear error on others."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import zennit_here  # noqa: F401 - so that zennit can be imported
from conftest import PlainNet, filled, rand
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible import attacks, explain
from foible.core.errors import AccessError, InputError, KindError, MissingExtra, ModelError
from foible.explain.relevance import RULES
from foible.models import bpda, ensemble, wrap
from foible.parts.threats import Linf


def stacked(act: Callable[[], nn.Module], bias: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=bias), act(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2, bias=bias), act(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5, bias=bias), act(),
        nn.Linear(5, 3, bias=bias),
    )  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    return rand(5, 2, 10, 10, seed=1, dtype=torch.float64)


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("rule", RULES)
def test_relevance_is_conserved(rule: str, x: Tensor, y: Tensor) -> None:
    """On a net without biases the map sums to the logit; with a ReLU that is in place, shared."""
    act = nn.ReLU(inplace=True)
    net = filled(stacked(lambda: act), 3, 2.0).double()
    maps = explain.lrp(rule, 1e-12)(net, x, y)
    logit = net(x).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(maps.flatten(1).sum(1), logit, rtol=0, atol=1e-9)
    assert logit.abs().max() > 0.1


def test_epsilon_alone_is_gradient_times_input(x: Tensor, y: Tensor) -> None:
    """Ancona et al. 2018: on ReLU nets without biases, epsilon going to zero."""
    net = filled(stacked(nn.ReLU), 3, 2.0).double()
    wanted = explain.gradient_x_input()(net, x, y)
    torch.testing.assert_close(explain.lrp("epsilon", 1e-12)(net, x, y), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", ["epsilon_plus", "alpha2_beta1"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.Sigmoid])
def test_it_is_zennits_own(rule: str, act: type[nn.Module], x: Tensor, y: Tensor) -> None:
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonAlpha2Beta1, EpsilonPlus

    net = filled(stacked(act, bias=True), 3, 2.0).double()
    kind = {"epsilon_plus": EpsilonPlus, "alpha2_beta1": EpsilonAlpha2Beta1}[rule]
    with Gradient(net, kind(epsilon=1e-6)) as attributor:
        wanted = torch.cat([
            attributor(one[None], lambda out, c=c: out * F.one_hot(c[None], 3))[1]
            for one, c in zip(x.clone(), y, strict=True)
        ])  # fmt: skip
    torch.testing.assert_close(explain.lrp(rule)(net, x, y), wanted.detach(), rtol=0, atol=1e-10)


def test_a_batch_norm_is_merged(x: Tensor, y: Tensor) -> None:
    def made(norm: bool) -> nn.Sequential:
        between = [nn.BatchNorm2d(4)] if norm else []
        return nn.Sequential(nn.Conv2d(2, 4, 3), *between, nn.ReLU(), nn.Flatten(),
                             nn.Linear(256, 3))  # fmt: skip

    net, plain = filled(made(True), 3, 2.0).double().eval(), made(False).double()
    norm = net[1]
    norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0, 3.0]))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    with torch.no_grad():
        plain[0].weight.copy_(net[0].weight * scale[:, None, None, None])
        plain[0].bias.copy_((net[0].bias - norm.running_mean) * scale + norm.bias)
        plain[3].weight.copy_(net[4].weight)
        plain[3].bias.copy_(net[4].bias)
    before = everything_about(net)
    for rule in ("epsilon", "epsilon_plus"):
        found, wanted = (explain.lrp(rule)(one, x, y) for one in (net, plain))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
        assert wanted.abs().max() > 0.01
    assert all(same(v, everything_about(net)[k]) for k, v in before.items())


def test_a_preprocessing_keeps_its_place(x: Tensor, y: Tensor) -> None:
    """Relevance is of what the net is given: a division by std would not conserve it."""
    net = filled(stacked(nn.ReLU), 3, 2.0).double()
    held = wrap(net, preprocess=([0.3, 0.4], [0.2, 0.5]))
    inner = (x - torch.tensor([0.3, 0.4]).view(2, 1, 1)) / torch.tensor([0.2, 0.5]).view(2, 1, 1)
    torch.testing.assert_close(explain.lrp()(held, x, y), explain.lrp()(net, inner, y))
    cut = wrap(net, preprocess=lambda x: x[:, :, :9])
    with pytest.raises(ModelError, match="changes the shape"):
        explain.lrp()(cut, x, y)


class Around(nn.Module):
    def __init__(self, around: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.around = nn.Conv2d(2, 4, 3), nn.Linear(256, 3), around
        self.deep, self.inner = nn.Conv2d(4, 4, 3, padding=1), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.around(self, self.conv(x)).flatten(1))


FINE = {
    "F.relu": lambda net, x: F.relu(x),
    "relu_": lambda net, x: x.relu_(),
    "shapes": lambda net, x: torch.relu(x.permute(0, 2, 3, 1).reshape(len(x), -1)),
    "pieces": lambda net, x: torch.cat([torch.relu(x[:, 2:]), torch.relu(x[:, :2])], 1),
}
WRONG = {
    "mean": lambda net, x: x.relu().mean(1, keepdim=True).expand(-1, 4, -1, -1),
    "avg_pool2d": lambda net, x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2),
    "add": lambda net, x: x + net.deep(x),
    "tanh": lambda net, x: torch.tanh(x),
    "relu6": lambda net, x: F.relu6(x),
    "mul": lambda net, x: x * 2,
    "conv2d": lambda net, x: F.conv2d(x, net.deep.weight, padding=1),
    "layer_norm": lambda net, x: net.inner(x),
    "softmax": lambda net, x: torch.softmax(x, 1),
}


@pytest.mark.parametrize("way", FINE)
def test_functions_that_only_move_values_are_fine(way: str, x: Tensor, y: Tensor) -> None:
    net = filled(Around(FINE[way]), 3, 2.0).double()
    net.conv.bias = net.head.bias = None
    maps = explain.lrp("epsilon", 1e-12)(net, x, y)
    torch.testing.assert_close(maps, explain.gradient_x_input()(net, x, y), rtol=0, atol=1e-9)


@pytest.mark.parametrize("way", WRONG)
def test_other_functions_are_refused(way: str, x: Tensor) -> None:
    net = filled(Around(WRONG[way]), 3, 2.0).double()
    before = everything_about(net)
    with pytest.raises(ModelError, match=f"no rule for the function '{way}'"):
        explain.lrp()(net, x, 1)
    assert all(same(v, everything_about(net)[k]) for k, v in before.items())


def test_modules_that_cannot_have_a_rule(x: Tensor) -> None:
    twice = filled(Around(lambda net, x: net.deep(net.deep(x))), 3).double()
    with pytest.raises(ModelError, match="'deep' runs several times"):
        explain.lrp()(twice, x, 1)
    late = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(),
                         nn.Linear(256, 3)).double()  # fmt: skip
    late[2].running_mean.fill_(1.0)
    with pytest.raises(ModelError, match="does not follow a linear layer"):
        explain.lrp()(late.eval(), x, 1)
    with pytest.raises(ModelError, match="cannot be merged"):
        bare = nn.BatchNorm2d(4, affine=False)
        explain.lrp()(nn.Sequential(late[0], bare, *late[3:]).double(), x, 1)

    class Crossed(PlainNet):
        """Its norm is defined behind the first convolution and runs behind the second."""

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.conv(x))
            return self.head(F.max_pool2d(self.act(self.norm2(self.again(x))), 2).flatten(1))

    crossed = Crossed().double()
    crossed.again, crossed.norm2 = nn.Conv2d(3, 3, 3).double(), crossed.norm
    crossed.head = nn.Linear(12, 4).double()
    crossed = filled(crossed, 3, 2.0).eval()
    crossed.norm.running_mean.fill_(0.7)
    crossed.norm.weight.data.fill_(3.0)
    with pytest.raises(ModelError, match="changed the scores"):
        explain.lrp()(crossed, x[:, :1, :6, :6], 1)


def test_models_that_it_does_not_suit(x: Tensor, y: Tensor) -> None:
    net = filled(stacked(nn.ReLU), 3, 2.0).double()
    with pytest.raises(AccessError, match="Ensemble holds no torch module"):
        explain.lrp()(ensemble([net, net]), x, y)
    with pytest.raises(KindError, match="would undo bpda"):
        explain.lrp()(bpda(net, at="2", backward=lambda a: F.max_pool2d(a, 2)), x, y)
    soft = wrap(nn.Sequential(net, nn.Softmax(1)), outputs="probabilities")
    with pytest.raises(ModelError, match="no rule for the function 'softmax'"):
        explain.lrp()(soft, x, y)
    for bad in ({"rule": "z"}, {"epsilon": 0.0}):
        with pytest.raises(InputError, match="choose epsilon, zplus"):
            explain.lrp(**bad)


def test_without_zennit_it_says_what_to_install(x, y, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "zennit"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"pip install 'foible\[zennit\]'"):
        explain.lrp()(filled(stacked(nn.ReLU), 3).double(), x, y)


def test_it_is_a_direction(x: Tensor, y: Tensor) -> None:
    net = filled(stacked(nn.ReLU, bias=True), 3, 2.0).double()
    attack = attacks.fgsm(Linf(0.1), direction=explain.lrp())
    result = attack(net, x, y)
    assert (result.x - x).abs().max() <= 0.1 + 1e-9 and not torch.equal(result.x, x)
