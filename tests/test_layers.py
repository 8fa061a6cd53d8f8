"""Looking into a layer: by name, before what follows changes it in place, and without a trace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import Counter, SmallNet, filled, linear, rand
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import AccessError, InputError, KindError, ModelError
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.rows import Rows
from foible.models import bpda, ensemble, layers_of, wrap
from foible.parts.objectives import CrossEntropy, Logit


def rows_of(x: Tensor, y: int = 1) -> Rows:
    index = torch.arange(len(x))
    return Rows(index, index, x, torch.full_like(index, y))


def oracle_of(model, x: Tensor, access: Access = Access.INTERNALS) -> Oracle:
    return Oracle(model if hasattr(model, "access") else wrap(model), len(x), access)


class Odd(nn.Module):
    """Layers of every kind that cannot be looked into, beside one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn = nn.Conv2d(1, 2, 3), nn.GRU(4, 3, batch_first=True)
        self.unused, self.direct, self.head = nn.Linear(2, 2), nn.Linear(4, 4), nn.Linear(3, 2)
        self.turned = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.direct.forward(F.relu(self.conv(x), inplace=True).mean(1))
        self.turned(maps.transpose(0, 1))
        return self.head(self.rnn(maps)[0][:, -1])


def test_the_names_and_shapes_are_those_of_the_net(net: nn.Module, images: Tensor) -> None:
    found = layers_of(net, images)
    assert list(found) == [
        "conv", "norm", "act#1", "again#1", "act#2", "again#2", "act#3", "drop", "head",
    ]  # fmt: skip
    assert found["conv"] == (3, 6, 6) and found["head"] == (4,)
    assert list(layers_of(Odd(), images)) == ["conv", "head"]


def test_a_tap_gives_what_the_layer_gave(net: nn.Module, images: Tensor) -> None:
    """Also where the next module works in place on it, and in every run of a reused module."""
    net = net.double().eval()
    x = images.double()
    conv = net.conv(x)
    norm = net.norm(conv)
    first = torch.relu(norm)
    second = torch.relu(net.again(first))
    third = net.again(second)
    wanted = {
        "conv": conv, "norm": norm, "act#1": first, "act#2": second, "again#2": third,
        None: torch.relu(third),
    }  # fmt: skip
    oracle = oracle_of(net, x)
    with oracle.session():
        for layer, right in wanted.items():
            scores, got = oracle.tap(x, rows_of(x), layer)
            assert torch.equal(got, right) and torch.equal(scores, net(x)), layer
    assert oracle.meter.forwards.tolist() == [len(wanted)] * len(x)


def test_scores_are_differentiable_by_the_activation(net: nn.Module, images: Tensor) -> None:
    net, x = net.double(), images.double()
    oracle = oracle_of(net, x)
    with oracle.session(), torch.enable_grad():
        scores, act = oracle.tap(x, rows_of(x), "act#2")
        (grad,) = oracle.grad(scores[:, 2], (act,), rows_of(x))
        leaf = act.detach().requires_grad_()
        rest = net.head(torch.relu(net.again(leaf)).flatten(1))
        (wanted,) = torch.autograd.grad(rest[:, 2].sum(), leaf)
        assert torch.equal(rest, scores) and torch.equal(grad, wanted)
        on_graph = x.clone().requires_grad_()
        scores, act = oracle.tap(on_graph, rows_of(x), "conv")
        assert torch.autograd.grad(act.sum(), on_graph)[0].abs().sum() > 0
    with oracle.session():
        assert not oracle.tap(x, rows_of(x), "conv")[1].requires_grad or torch.is_grad_enabled()


def test_a_field_has_a_gradient_at_a_layer(net: nn.Module, images: Tensor) -> None:
    x = images.double()
    oracle = oracle_of(net.double(), x)
    rows = rows_of(x, 3)
    for score in (Logit(), CrossEntropy()):
        field = Field(oracle, score, 4)
        with oracle.session():
            value, _, grad = field.at_layer(x, rows, "head")
            scores = net.double()(x)
        share = scores.softmax(1)
        right = -share + F.one_hot(rows.y, 4)
        wanted = F.one_hot(rows.y, 4).double() if isinstance(score, Logit) else -right
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)
        assert value.shape == (9,) and not value.requires_grad
    assert oracle.meter.backwards.tolist() == [2] * 9


def test_an_edit_replaces_what_the_layer_gives(net: nn.Module, images: Tensor) -> None:
    net, x = net.double().eval(), images.double()
    oracle, rows = oracle_of(net, x), rows_of(images)

    def silence(act: Tensor) -> Tensor:
        act[:, 1] = 0.0  # in place, on the output of an in-place ReLU
        return act

    first = torch.relu(net.norm(net.conv(x)))
    cut = first * torch.tensor([1.0, 0.0, 1.0]).double().view(1, 3, 1, 1)
    wanted = net.head(torch.relu(net.again(torch.relu(net.again(cut)))).flatten(1))
    with oracle.session():
        assert torch.equal(oracle.scores_with(x, rows, "act#1", silence), wanted)
        swapped = oracle.scores_with(x, rows, "conv", lambda act: act.roll(1, 0))
        assert torch.equal(swapped, net(x).roll(1, 0))
        mean = first.mean(0, keepdim=True).requires_grad_()
        by_mean = oracle.scores_with(x, rows, "act#1", lambda act: mean.expand_as(act))
        assert torch.autograd.grad(by_mean.sum(), mean)[0].abs().sum() > 0
        with pytest.raises(InputError, match=r"gives \(9, 3\) and the layer \(9, 3, 6, 6\)"):
            oracle.scores_with(x, rows, "act#1", lambda act: act.mean((2, 3)))
    assert oracle.meter.forwards.tolist() == [4] * 9


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("act", r"runs 3 times in one forward: say 'act#1', 'act#2', 'act#3'"),
        ("act#4", r"'act' runs 3 times"),
        ("act#0", r"'act' runs 3 times"),
        ("nothing", r"no module of SmallNet: choose from conv \(3, 6, 6\), norm"),
        ("act#x", r"no module of SmallNet"),
        ("", r"no module of SmallNet"),
    ],
)
def test_a_wrong_name_is_refused_before_it_costs(layer, message, net, images: Tensor) -> None:
    oracle = oracle_of(net, images)
    with oracle.session(), pytest.raises(InputError, match=message):
        oracle.tap(images, rows_of(images), layer)
    assert oracle.meter.forwards.sum() == 0


def test_what_cannot_be_looked_into_says_so(images: Tensor) -> None:
    odd = Odd()
    oracle = oracle_of(odd, images)
    with oracle.session():
        for layer in ("rnn", "turned"):
            with pytest.raises(InputError, match="one tensor with the batch first"):
                oracle.tap(images, rows_of(images), layer)
        for layer in ("unused", "direct"):
            with pytest.raises(InputError, match="does not run in the forward"):
                oracle.tap(images, rows_of(images), layer)
    flat = linear(rand(3, 36, seed=1), rand(3, seed=2))
    table = oracle_of(flat, images)
    with table.session(), pytest.raises(InputError, match="no module of the net gives maps"):
        table.tap(images, rows_of(images), None)


def test_one_module_under_two_names(table: Tensor) -> None:
    act = nn.ReLU()
    net = nn.Sequential(nn.Linear(10, 5), act, nn.Linear(5, 5), act, nn.Linear(5, 3)).double()
    assert list(layers_of(net, table)) == ["0", "1#1", "2", "1#2", "4"]
    oracle = oracle_of(net, table)
    with oracle.session():
        got = oracle.tap(table, rows_of(table), "3#2")[1]
    assert torch.equal(got, net[:4](table))


def test_models_without_layers_and_without_access(net: nn.Module, images: Tensor) -> None:
    two = ensemble([net, filled(SmallNet(), 9)])
    oracle = oracle_of(two, images)
    with oracle.session(), pytest.raises(AccessError, match="Ensemble has no layers"):
        oracle.tap(images, rows_of(images))
    with pytest.raises(KindError, match="no layers"):
        layers_of(two, images)
    few = oracle_of(net, images, Access.GRADIENTS)
    with few.session(), pytest.raises(AccessError, match="INTERNALS"):
        few.tap(images, rows_of(images))
    held = bpda(net, at="drop")
    oracle = oracle_of(held, images)
    with oracle.session():
        assert oracle.tap(images, rows_of(images), "drop")[1].shape == (9, 108)


class Moody(nn.Module):
    """Another course for another batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.many, self.head = nn.Linear(10, 4), nn.Linear(10, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.one if len(x) == 1 else self.many)(x))


def test_a_net_that_changes_its_course_is_found_out(table: Tensor) -> None:
    oracle = oracle_of(Moody().double(), table)
    with oracle.session():
        for call in (
            lambda: oracle.tap(table, rows_of(table), "one"),
            lambda: oracle.scores_with(table, rows_of(table), "one", lambda act: act),
        ):
            with pytest.raises(ModelError, match="course depends on its input"):
                call()


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("edited", [False, True])
def test_no_hook_stays(error, edited: bool, net: nn.Module, images: Tensor) -> None:
    before = everything_about(net)
    model = Counter(wrap(net), broken_at=None if error is None else 1, error=error or ValueError)
    oracle, rows = oracle_of(model, images), rows_of(images)

    def failing(act: Tensor) -> Tensor:
        raise error("the edit broke") if error else ValueError("fine")

    try:
        with oracle.session():
            if edited:
                oracle.scores_with(images, rows, "conv", failing)
            else:
                oracle.tap(images, rows, "conv")
    except (RuntimeError, KeyboardInterrupt, ValueError):
        pass
    after = everything_about(net)
    assert [k for k in before if not same(before[k], after[k])] == []
