"""The minimum-norm attacks against the proved minimum of small ReLU nets, in Linf."""

from __future__ import annotations

from itertools import product

import exact
import numpy as np
import optimum
import pytest
from conftest import filled, linear_case
from scipy.optimize import linprog
from torch import nn


@pytest.mark.parametrize("classes", (2, 4))
@pytest.mark.parametrize("radius", (1.0, 0.5))
def test_without_hidden_units_the_programme_is_the_closed_form(classes: int, radius: float) -> None:
    case = linear_case(classes, 6, 70 + classes, wide=False)
    least = optimum.untargeted(case, "linf")
    net = [(case.weight.numpy(), case.bias.numpy())]
    for x, y, true in zip(case.x.numpy(), case.y.tolist(), least, strict=True):
        got = exact.minimum(net, x, y, radius)
        if true < radius:
            assert got.proved == pytest.approx(true, abs=1e-7) == got.found
        else:
            assert got.change is None and got.proved == radius


def by_pattern(net: list[exact.Layer], x: np.ndarray, y: int) -> float:
    """The minimum of a net with one hidden layer: a linear programme for each set of live units."""
    (w, b), (v, c) = net
    n, least = len(x), float("inf")
    size = [np.hstack([s * np.eye(n), -np.ones((n, 1))]) for s in (1, -1)]
    bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
    for live in product((0.0, 1.0), repeat=len(b)):
        on = np.array(live)
        sign = 1 - 2 * on  # a live unit has w d + z >= 0, a dead one at most 0
        z = w @ x + b
        for j in set(range(len(c))) - {y}:
            gain = (v[y] - v[j]) * on
            rows = np.vstack([*size, np.c_[sign[:, None] * w, 0 * z], np.r_[gain @ w, 0]])
            right = np.r_[np.zeros(2 * n), -sign * z, c[j] - c[y] - gain @ z]
            answer = linprog(np.eye(n + 1)[n], rows, right, bounds=bounds, method="highs")
            least = min(least, answer.fun if answer.status == 0 else least)
    return least


@pytest.mark.parametrize("slack", (1.001, 3.0))
def test_the_programme_is_the_best_of_all_activation_patterns(slack: float) -> None:
    net = filled(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), 3, 2.0).double()
    held = exact.layers(net)
    compared = 0
    for x in np.random.default_rng(2).random((3, 4)):
        y = int(exact.scores(held, x).argmax())
        true = by_pattern(held, x, y)
        if not np.isfinite(true):
            assert exact.minimum(held, x, y, 1.0).change is None
            continue
        compared += 1
        got = exact.minimum(held, x, y, min(1.0, slack * true))
        assert got.proved == pytest.approx(true, abs=3e-6) == got.found
    assert compared


def check(held: exact.Victim, targeted_steps: int) -> list[exact.Bracket]:
    assert held.accuracy > 0.6
    found = exact.brackets(held, exact.distances(held, exact.minimum_norm(targeted_steps)))
    for one in found:
        print(f"[{one.proved:.6f}, {one.attacked:.6f}] {one.ratio:.4f} {one.by}")
        # The proof and the program's own point meet, and no attack goes below what is proved.
        assert one.proved <= one.found <= one.proved * (1 + 1e-5) + 2e-6
        assert one.found <= one.attacked * (1 + 1e-6) + 2e-6
        assert one.attacked >= one.proved - 2e-6
    ratios = [one.ratio for one in found]
    assert np.median(ratios) <= 1.02
    assert max(ratios) <= 1.10
    return found


@pytest.fixture(scope="module")
def small() -> exact.Victim:
    return exact.victim((12,), 6, steps=200)


def test_the_programme_s_own_point_flips_the_net(small: exact.Victim) -> None:
    flipped = 0
    for x, y in list(zip(small.x.flatten(1).numpy(), small.y.tolist(), strict=True))[:3]:
        got = exact.minimum(small.layers, x, y, 0.12)
        if got.change is not None:
            flipped += 1
            scores = exact.scores(small.layers, x + got.change)
            assert np.delete(scores, y).max() >= scores[y] - 1e-5
            assert abs(got.change).max() == pytest.approx(got.found, abs=1e-6)
            assert (x + got.change).min() >= -1e-9 and (x + got.change).max() <= 1 + 1e-9
    assert flipped


def test_attacks_are_near_the_proved_minimum(small: exact.Victim) -> None:
    assert len(check(small, 20)) == 6


@pytest.mark.slow
def test_attacks_are_near_the_proved_minimum_with_40_units() -> None:
    assert len(check(exact.victim((40,), 50), 100)) == 50
