"""Whole steps of the decision-based attacks, each against a slow walk over its points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import linear, randn
from replicas import decision as paper
from test_decision_based import rows_of
from torch import Tensor

from foible.core.access import Access
from foible.core.oracle import Oracle
from foible.core.problem import Fooled, Problem
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.search import Evaluation
from foible.models import wrap
from foible.parts.searches import border
from foible.parts.searches.border import Flipped
from foible.parts.searches.boundary import BURST, BoundaryWalk
from foible.parts.searches.hop_skip_jump import HALVINGS, HopSkipJump
from foible.parts.threats import L2, Ball, Linf

F64 = torch.float64
N = 6
Beyond = Callable[[Tensor], bool]


def posed(threat: Ball, bounds: tuple[float, float], cap: int | None) -> Problem:
    model = wrap(linear(torch.ones(2, N, dtype=F64), torch.zeros(2, dtype=F64)), bounds=bounds)
    oracle = Oracle(model, 8, Access.LABELS)
    return Problem(oracle, threat.inside(bounds), Flipped(), Fooled(), cap=cap)


def bent(normals: Tensor, level: float) -> tuple[Any, list[Tensor]]:
    """A border that bends away: beyond it the change's part along n less its size squared / 9."""
    asked: list[Tensor] = []

    def evaluate(z: Tensor, rows: Rows | None = None, *_: Any, **__: Any) -> Evaluation:
        assert rows is not None
        asked.append(z)
        value = there(z, normals[rows.index], level).double()
        return Evaluation(value, value > 0, None, None)

    return evaluate, asked


def there(z: Tensor, n: Tensor, level: float) -> Tensor:
    return (z * n).sum(-1) - z.square().sum(-1) / 9 > level


def burst(
    z: Tensor, steps: tuple[float, float], noise: Tensor, box: tuple[Tensor, Tensor],
    beyond: Beyond,
) -> tuple[Tensor, float, float, int]:  # fmt: skip
    """Ten proposals: across the sphere, then towards x; a shorter point beyond is the next start.

    The first look at the sphere alone widens or narrows the steps across by 10 %, the share of
    shorter points beside a fifth those towards x.
    """
    (around, inward), won, flat = steps, 0, False
    for turn, u in enumerate(noise):
        across = paper.across(z, u, around)
        point = (across * (1 - inward)).maximum(box[0]).minimum(box[1])
        if turn == 0:
            flat = beyond(across.maximum(box[0]).minimum(box[1]))
        if beyond(point) and point.norm() < z.norm():
            z, won = point, won + 1
    wide = around * 2.718281828459045 ** (0.1 if flat else -0.1)
    long = inward * 2.718281828459045 ** (0.5 * (won / 10 - 0.2))
    return z, min(1.0, max(1e-7, wide)), min(0.5, max(1e-9, long)), won


@pytest.mark.parametrize("cap", [None, 11, 12])
@pytest.mark.parametrize(("around", "inward"), [(0.3, 0.03), (0.05, 0.2), (0.99, 0.45)])
def test_a_burst_of_the_boundary_walk(cap: int | None, around: float, inward: float) -> None:
    normals = randn(8, N, seed=1, dtype=F64)
    normals /= normals.norm(dim=1, keepdim=True)
    z = 2.5 * normals + 0.4 * randn(8, N, seed=2, dtype=F64)
    rows = rows_of(0.2 * randn(8, N, seed=3, dtype=F64), torch.zeros(8).long())
    noise, bounds = randn(8, BURST, N, seed=4, dtype=F64), (-2.0, 2.0)
    z = z.maximum(bounds[0] - rows.x).minimum(bounds[1] - rows.x)
    problem, (evaluate, asked) = posed(L2(), bounds, cap), bent(normals, 0.9)
    steps = torch.full((8,), around, dtype=F64), torch.full((8,), inward, dtype=F64)
    got = BoundaryWalk()._burst(problem, rows, evaluate, (z, *steps), noise)
    assert [len(points) for points in asked] == [16] + [8] * (BURST - 1)
    wins = []
    for row in range(8):
        box = (bounds[0] - rows.x[row], bounds[1] - rows.x[row])

        def beyond(point: Tensor, n: Tensor = normals[row]) -> bool:
            return bool(there(point, n, 0.9))

        at, wide, long, won = burst(z[row], (around, inward), noise[row], box, beyond)
        wins.append(won)
        if cap == 11:  # with the verification one less than a burst and its look at the sphere
            wide, long = around, inward
        torch.testing.assert_close(got[0][row], at)
        assert float(got[1][row]) == pytest.approx(wide)
        assert float(got[2][row]) == pytest.approx(long)
    assert len(set(wins)) > 1


@dataclass(frozen=True)
class Told(HopSkipJump):
    """Knows the normal: what follows is the step along it and the way back."""

    normals: Any = None

    def _normal(self, problem: Any, rows: Rows, *_: Any) -> Tensor:
        return 3 * self.normals[rows.index]


@pytest.mark.parametrize("threat", [L2(), Linf()])
@pytest.mark.parametrize("turn", [0, 3, 24])
def test_a_hop_goes_as_far_as_the_border_lets_it_and_back(threat: Ball, turn: int) -> None:
    """|z| / sqrt(turn + 1) along the normal, halved until it is beyond, then bisected."""
    normals = randn(8, N, seed=1, dtype=F64)
    normals /= normals.norm(dim=1, keepdim=True)
    bounds = (-3.0, 3.0)
    problem, (evaluate, _) = posed(threat, bounds, None), bent(normals, 0.7)
    rows = rows_of(0.2 * randn(8, N, seed=3, dtype=F64), torch.zeros(8).long())
    start = (2.0 * normals + 0.3 * randn(8, N, seed=2, dtype=F64)).clamp(-2.5, 2.5)
    assert bool(there(start, normals, 0.7).all())
    z = border.bisect(evaluate, rows, threat, start, 1e-9)
    draw = Rng(0).at(rows.id, turn)
    search, plan = Told(normals=normals), (torch.ones(8), torch.ones(8))
    got = search._hop(problem, rows, evaluate, z, plan, draw)
    for row in range(8):
        n, x = normals[row], rows.x[row]
        way = n if threat.norm == "l2" else n.sign()
        size = z[row].norm() if threat.norm == "l2" else z[row].abs().max()
        far, length = z[row], float(size) / (turn + 1) ** 0.5
        for _ in range(HALVINGS):
            ahead = (x + z[row] + length * way).clamp(*bounds) - x
            if bool(there(ahead, n, 0.7)):
                far = ahead
                break
            length /= 2
        shares = torch.linspace(0, 1, 20_001, dtype=F64)[:, None]
        line = far * shares if threat.norm == "l2" else far.clamp(
            -shares * far.abs().max(), shares * far.abs().max()
        )  # fmt: skip
        # The border that a bisection from the far end meets: what lies before it is not beyond.
        inside = ~there(line, n, 0.7)
        least = line[int(inside.nonzero().max()) + 1]
        reach = threat.length(got[row][None]) / threat.length(least[None])
        assert bool(there(got[row], n, 0.7)) and 1 - 1e-4 <= float(reach) <= 1.0015


def test_hop_skip_jump_looks_for_too_few_queries_once_and_stops() -> None:
    """The last bisection is a fine one, and the row has nothing left to try."""
    normals = torch.eye(N, dtype=F64)[:2]
    problem, (evaluate, asked) = posed(L2(), (-9.0, 9.0), 40), bent(normals, 0.5)
    rows = rows_of(torch.zeros(2, N, dtype=F64), torch.zeros(2).long())
    search, draw = HopSkipJump(), Rng(1).at(rows.id, 5)
    state = search.init(problem, rows, draw)
    state = state._replace(z=1.7 * normals, held=torch.tensor([True, False]))
    after = search.step(problem, rows, evaluate, state, draw)
    assert after.over.tolist() == [True, False] and search.ended(after) is after.over
    crossing = 4.5 - (4.5**2 - 4.5) ** 0.5  # t - t^2 / 9 = 0.5
    assert float(after.z[0].norm()) == pytest.approx(crossing, rel=2e-6)
    assert len(asked) > 15 and torch.equal(after.z[1], state.z[1])


@pytest.mark.parametrize("attempt", range(12))
def test_random_starts_lie_in_the_box_and_are_of_three_kinds(attempt: int) -> None:
    x = 0.3 + 0.4 * torch.rand(30, 2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=F64)
    rows = replace(rows_of(x, torch.zeros(30).long()))
    problem = posed(L2(), (0.0, 1.0), None)
    made = x + border._random(problem, rows, Rng(2).at(rows.id), attempt)
    assert -1e-9 <= float(made.min()) < 0.1 and 0.9 < float(made.max()) <= 1 + 1e-9
    if attempt % 3 == 1:
        # Two values, in a proportion of the row's own.
        ends = (made < 1e-9) | (made > 1 - 1e-9)
        share = made.flatten(1).mean(1)
        assert bool(ends.all()) and share.min() < 0.2 and share.max() > 0.8
    elif attempt % 3 == 2:
        cells = 2 + attempt // 3
        counts = [len(row.mul(1e9).round().unique()) for row in made]
        high, wide = (-(-side // -(-side // min(cells, side))) for side in (5, 7))
        assert set(counts) == {2 * high * wide}
    else:
        assert abs(float(made.mean()) - 0.5) < 0.03 and len(made.unique()) == made.numel()
    open_box = posed(L2(), (float("-inf"), float("inf")), None)
    far = border._random(open_box, rows, Rng(2).at(rows.id), attempt).flatten(1)
    reach = (1 + x.flatten(1).amax(1)) * 2 ** (attempt // 3)
    assert bool((far.abs().amax(1) <= reach).all()) and bool(
        (far.abs().amax(1) > 0.5 * reach).all()
    )
