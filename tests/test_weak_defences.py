"""Weak defences: plain PGD is deceived by each, and the advised attack is not."""

from __future__ import annotations

import pytest
import torch
from conftest import SmallNet, filled, rand
from torch import Tensor, nn

import foible
from foible.attacks import Attack, eot, pgd
from foible.core.errors import InputError
from foible.models import bpda, wrap
from foible.parts.threats import Linf
from foible.zoo import weak

EPS, STEPS, N = 0.1, 10, 48


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    x, y = foible.zoo.sample()
    return x[:N], y[:N]


def left(net: nn.Module, x: Tensor, y: Tensor, draws: int = 1) -> float:
    """The accuracy on x, over fresh draws of the model's own randomness."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.default_generator.manual_seed(7)
        hits = [(net(x).argmax(1) == y).double().mean() for _ in range(draws)]
    return float(torch.stack(hits).mean())


def plain(eps: float = EPS, objective: str = "cross_entropy") -> Attack:
    return pgd(Linf(eps), STEPS, objective=objective)


def stubborn(eps: float) -> Attack:
    return pgd(Linf(eps), STEPS, restarts=8, objective="margin", stop="success")


BARE = foible.zoo.load("standard")
# A defence, the model and the attack that are advised against it, and the size they are shown at.
CASES = {
    "quantised": (weak.Quantised(BARE), lambda d: bpda(d, "defence"), stubborn(0.3), 0.3),
    "four_levels": (weak.Quantised(BARE, 4), lambda d: bpda(d, "defence"), plain(0.3), 0.3),
    "detached": (
        weak.DetachedSoftmax(BARE), lambda d: bpda(d, "defence", nn.LogSoftmax(1)), plain(), EPS,
    ),
    "min_max": (weak.MinMaxLogits(BARE), lambda d: d, plain(EPS, "margin"), EPS),
    "min_max_dlr": (weak.MinMaxLogits(BARE), lambda d: d, plain(EPS, "dlr"), EPS),
    "temperature": (weak.Temperature(BARE), lambda d: d, plain(EPS, "margin"), EPS),
    "temperature_dlr": (weak.Temperature(BARE), lambda d: d, plain(EPS, "dlr"), EPS),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_masked_gradient_deceives_pgd_and_not_the_advised_attack(name, data) -> None:
    defence, seen, advised, eps = CASES[name]
    x, y = data
    naive = foible.attacks.bim(Linf(eps), STEPS)(defence, x, y)
    bare = advised(BARE, x, y).robust_accuracy
    broken = advised(seen(defence), x, y)
    assert naive.robust_accuracy >= 0.6 and naive.robust_accuracy >= left(defence, x, y) - 0.1
    assert broken.robust_accuracy <= bare + 0.1, (naive.robust_accuracy, bare)
    assert broken.robust_accuracy == pytest.approx(left(defence, broken.x, y))


@pytest.mark.parametrize("name", ["resized", "noisy"])
def test_a_random_defence_falls_to_the_average(name, data) -> None:
    x, y = data[0][:24], data[1][:24]
    defence = {"resized": weak.RandomResizePad(BARE), "noisy": weak.NoisyActivations(BARE)}[name]
    one, many = (eot(plain(), k)(defence, x, y).x for k in (1, 16))
    bare = plain()(BARE, x, y).robust_accuracy
    assert left(defence, many, y, 20) <= min(bare + 0.15, left(defence, one, y, 20) - 0.02)
    assert left(defence, x, y, 20) > 0.6


@pytest.mark.parametrize("defence", [
    weak.Quantised, weak.RandomResizePad, weak.NoisyActivations, weak.DetachedSoftmax,
    weak.MinMaxLogits, weak.Temperature,
])  # fmt: skip
@pytest.mark.parametrize("classes", [2, 4])
def test_a_defence_stands_before_any_net(defence, classes) -> None:
    net = filled(SmallNet(classes), 5, 2.0).eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    guarded = defence(net).eval()
    x = rand(3, 1, 6, 6, seed=1)
    scores = guarded(x)
    assert scores.shape == (3, classes) and torch.isfinite(scores).all()
    result = eot(pgd(Linf(0.1), 2), 2)(guarded, x, scores.argmax(1))
    assert torch.isfinite(result.x).all()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert wrap(guarded).identity()["parameters"] == wrap(net).identity()["parameters"]
    assert not any(isinstance(m, weak.AddNoise) for m in net.modules())


def test_the_defences_by_hand() -> None:
    x = torch.tensor([[0.1, 0.4, 0.6, 0.9]])
    assert weak.Quantise(2)(x).tolist() == [[0, 0, 1, 1]]
    torch.testing.assert_close(weak.Quantise(4)(x), torch.tensor([[0, 1, 2, 3]]) / 3)
    z = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]])
    scaled = weak.MinMaxLogits(nn.Identity(), 10.0)(z)
    assert scaled.tolist() == [[0, 10, 5], [0, 0, 0]]
    assert weak.Temperature(nn.Identity(), 100.0)(z).tolist() == (100 * z).tolist()
    leaf = z.requires_grad_()
    detached = weak.DetachedSoftmax(nn.Identity())(leaf)
    torch.testing.assert_close(detached, z.log_softmax(1).detach())
    assert not detached.requires_grad
    with pytest.raises(InputError, match="two levels"):
        weak.Quantised(nn.Identity(), 1)
    with pytest.raises(InputError, match="no nn.ReLU"):
        weak.NoisyActivations(nn.Linear(2, 2))
    with pytest.raises(InputError, match="0 < low"):
        weak.RandomResizePad(nn.Identity(), 0.0)


def test_resizing_keeps_the_whole_image_somewhere() -> None:
    x = torch.ones(40, 1, 20, 20)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        out = weak.ResizePad(0.5, 0.5)(x)
    area = out.flatten(1).sum(1)
    assert ((area - 100).abs() < 1e-3 * 100 + 11).all()  # the rim is read half from outside
    assert out.amax() <= 1 + 1e-6
    for row, column in ((3, 3), (3, 16), (16, 3), (16, 16)):
        assert (out[:, 0, row, column] == 0).any() and (out[:, 0, row, column] > 0.9).any()
