"""NES, SPSA, SimBA and the funnel ask the very points that slow replicas of them ask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import rand, softened
from replicas import scores as paper
from torch import Tensor, nn

from foible import attacks
from foible.core.randomness import Rng
from foible.models import wrap
from foible.parts.searches.funnel import Funnel
from foible.parts.threats import L2, Linf

SHAPE = (10,)


class Seen(nn.Module):
    """Keeps every input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.points = net, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.points.extend(x.detach().clone())
        return self.net(x)


@pytest.fixture(scope="module")
def victim() -> tuple[nn.Module, Tensor, Tensor]:
    net, x = softened(), rand(6, *SHAPE, seed=4, dtype=torch.float64)
    with torch.no_grad():
        net[2].bias -= net(x).mean(0)
    return net, x, net(x).argmax(1)


def margin(net: nn.Module, c: int) -> paper.Score:
    def score(x: Tensor) -> float:
        with torch.no_grad():
            z = net(x[None])[0]
        return float(torch.cat([z[:c], z[c + 1 :]]).max() - z[c])

    return score


def likelihood(net: nn.Module, c: int) -> paper.Score:
    """Minus the log-probability of the label, moved so that what is fooled lies above 0."""

    def score(x: Tensor) -> float:
        with torch.no_grad():
            z = net(x[None])[0]
        return -float(z.log_softmax(0)[c]) + (100.0 if int(z.argmax()) != c else -100.0)

    return score


def asked(attack: Any, net: nn.Module, x: Tensor, y: Tensor, row: int) -> Tensor:
    """Every point of one sample, without the looks before the search and the verification."""
    seen = Seen(net)
    one = slice(row, row + 1)
    attack(wrap(seen, bounds=(0.0, 1.0)), x[one], y[one], seed=3, ids=torch.tensor([row]))
    return torch.stack(seen.points[2:-1])  # one look measures how many fit a batch


def noise(row: int, steps: int, pairs: int, signs: bool) -> list[list[Tensor]]:
    def one(step: int, k: int) -> Tensor:
        draw = Rng(3).split(0).at(torch.tensor([row]), step).split(16 + k)
        if signs:
            return (draw.uniform(SHAPE, torch.float64)[0] < 0.5).double() * 2 - 1
        return draw.normal(SHAPE, torch.float64)[0]

    return [[one(step, k) for k in range(pairs)] for step in range(steps)]


BALLS = [("linf", 0.03), ("linf", 0.1), ("l2", 0.1), ("l2", 0.3)]
THREATS = {"linf": Linf, "l2": L2}


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("row", range(3))
def test_nes_asks_what_its_replica_asks(ball: tuple[str, float], row: int, victim) -> None:
    net, x, y = victim
    attack = attacks.nes(THREATS[ball[0]](ball[1]), 2 + 12 * 7, 6, sigma=0.01)
    got = asked(attack, net, x, y, row)
    drawn = noise(row, 12, 3, signs=False)
    wanted = paper.nes(margin(net, int(y[row])), x[row], ball, drawn, 0.01, 0.2, 0.9)
    torch.testing.assert_close(got, torch.stack(wanted), rtol=0, atol=1e-7)


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("row", range(3))
def test_spsa_asks_what_its_replica_asks(ball: tuple[str, float], row: int, victim) -> None:
    net, x, y = victim
    attack = attacks.spsa(THREATS[ball[0]](ball[1]), 2 + 9 * 7, 6)
    got = asked(attack, net, x, y, row)
    drawn = noise(row, 9, 3, signs=True)
    rate = 0.3 * ball[1] / (1 if ball[0] == "linf" else 10**0.5)
    wanted = paper.spsa(margin(net, int(y[row])), x[row], ball, drawn, 0.01, rate)
    torch.testing.assert_close(got, torch.stack(wanted), rtol=0, atol=1e-7)


@pytest.mark.parametrize("eps", [0.25, 0.6])
@pytest.mark.parametrize("row", range(4))
def test_simba_asks_what_its_replica_asks(eps: float, row: int, victim) -> None:
    net, x, y = victim
    got = asked(attacks.simba(L2(eps), 40, step=0.1), net, x, y, row)
    drawn = Rng(3).split(0).at(torch.tensor([row]), 0).split(3)
    order = drawn.uniform(SHAPE, torch.float64)[0].argsort().tolist()
    score = likelihood(net, int(y[row]))
    wanted = paper.simba(score, x[row], order, 0.1, eps, 38)
    torch.testing.assert_close(got, torch.stack(wanted), rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(5.0, 0.8, 0.5, 0.02), (2.0, 0.3, 1.0, 0.1)])
@pytest.mark.parametrize("row", range(3))
def test_the_funnel_asks_what_its_replica_asks(shape: Any, row: int, victim) -> None:
    net, x, y = victim
    attack = replace(attacks.pgd(L2(0.05), stop="never"), search=Funnel(9, *shape))
    got = asked(attack, net, x, y, row)
    wanted = paper.funnel(net, x[row], int(y[row]), 0.05, got[0], 9, shape)
    torch.testing.assert_close(got, torch.stack(wanted), rtol=0, atol=1e-7)
    assert float((got[0] - x[row]).norm()) <= 0.05 * shape[0] * (1 + 1e-9)
