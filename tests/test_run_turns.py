"""Where one run of a search ends and the next begins: weights, thresholds and starts, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import linear_case, randn
from test_search_parts import posed
from torch import Tensor

from foible import attacks
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.parts.searches.carlini import CarliniL0, CarliniL2, CarliniLinf
from foible.parts.searches.fab import FastBoundary
from foible.parts.searches.penalty import Trial
from foible.parts.threats import L0, L2, Linf

F64, INF = torch.float64, float("inf")


def rows_of(n: int, size: int = 3) -> Rows:
    x, y = torch.zeros(n, size, dtype=F64), torch.zeros(n, dtype=torch.int64)
    return attacks.pgd(Linf(0.1)).rows(Linf(0.1), x, y, None, None)


def trial(search: CarliniL2, **given: list[float] | list[int] | list[bool] | Tensor) -> Trial:
    """A state of as many rows as are given, all else as at the start."""
    n = len(next(iter(given.values())))
    rows = rows_of(n)
    state = search.init(posed(L2(), rows=n), rows, Rng(0).at(rows.id))
    made = {}
    for name, value in given.items():
        kind = getattr(state, name).dtype
        made[name] = value if isinstance(value, Tensor) else torch.tensor(value, dtype=kind)
    return state._replace(**made)


def test_a_penalty_run_keeps_the_smallest_fooled_point() -> None:
    search, z = CarliniL2(10), randn(4, 3, seed=1, dtype=F64)
    state = trial(search, size=[INF, 2.0, 2.0, INF], z=z)
    fooled = torch.tensor([True, True, True, False])
    kept = search.keep(torch.tensor([3.0, 1.0, 2.5, 1.0], dtype=F64), state, fooled, z)
    assert kept.size.tolist() == [3.0, 1.0, 2.0, INF] and kept.fell.tolist() == fooled.tolist()
    assert kept.best[:2].equal(z[:2]) and not kept.best[2:].any()


def test_a_penalty_run_ends_at_its_length_or_when_its_loss_stands_still() -> None:
    """A look every fifth of the length, at least every five steps; still is within a thousandth."""
    search, problem = CarliniL2(50), posed(L2())
    inner = [50, 49, 20, 20, 20, 25, 0]
    loss, mark = [1.0, 1.0, 0.9995, 0.998, 1.0, 1.0, 1.0], [5.0, 1.0, 1.0, 1.0, INF, 1.0, INF]
    state = trial(search, inner=inner, loss=loss, mark=mark, fell=[True] * 7)
    over, after = search.over(problem, state)
    assert over.tolist() == [True, False, True, False, False, False, False]
    assert after.mark.tolist() == [1.0, 1.0, 0.9995, 0.998, 1.0, 1.0, 1.0]
    assert after.fell.tolist() == [True, True, True, False, False, True, False]
    short = trial(CarliniL2(10), inner=[4, 5], loss=[1.0, 1.0], mark=[1.0, 1.0])
    assert CarliniL2(10).over(problem, short)[0].tolist() == [False, True]


def test_a_penalty_run_that_held_lowers_the_weight_and_one_that_failed_raises_it() -> None:
    z = randn(5, 3, seed=1, dtype=F64)
    state = trial(
        CarliniL2(10), z=z, best=-z, size=[INF, 1.0, 1.0, 1.0, 1.0],
        weight=[4.0, 4.0, 9.0, 4.0, 4.0], low=[0.0, 0.0, 4.0, 1.0, 0.0],
        high=[INF, INF, INF, 16.0, INF], run=[0, 0, 3, 1, 1],
        inner=[10] * 5, fell=[False, True, True, False, True], loss=[1.0] * 5, mark=[2.0] * 5,
    )  # fmt: skip
    over = torch.tensor([True, True, True, True, False])
    after = CarliniL2(10).turn(posed(L2()), rows_of(5), state, over)
    assert after.low.tolist() == [4.0, 0.0, 4.0, 4.0, 0.0]
    assert after.high.tolist() == [INF, 4.0, 9.0, 16.0, INF]
    # Ten times where none held, half where none failed, else their geometric mean.
    assert after.weight.tolist() == [40.0, 2.0, 6.0, 8.0, 4.0]
    assert after.run.tolist() == [1, 1, 4, 2, 1] and after.inner.tolist() == [0, 0, 0, 0, 10]
    assert after.fell.tolist() == [False, False, False, False, True]
    assert after.loss.tolist() == [INF] * 4 + [1.0]
    assert after.mark.tolist() == [INF] * 4 + [2.0]
    wanted = torch.stack([z[0], -z[1], -z[2], -z[3], z[4]])
    assert torch.equal(after.z, wanted)


def test_the_threshold_of_linf_falls_while_it_holds_and_is_bracketed_once_it_failed() -> None:
    search = CarliniLinf(10)
    rows = rows_of(5)
    state = search.init(posed(Linf(), rows=5), rows, Rng(0).at(rows.id))
    z, tau = 3 * randn(5, 3, seed=2, dtype=F64), torch.tensor([0.5, 0.5, 0.5, 0.2, 0.5], dtype=F64)
    state = state._replace(
        z=z, best=z, weight=torch.full((5,), 4.0, dtype=F64),
        size=torch.tensor([INF, 0.4, 0.8, 0.3, 0.4], dtype=F64),
        low=torch.tensor([0.0, 0.0, 0.0, 0.7, 0.0], dtype=F64),
        fell=torch.tensor([False, True, False, True, True]), memory={**state.memory, "tau": tau},
    )  # fmt: skip
    over = torch.tensor([True, True, True, True, False])
    after = search.turn(posed(Linf()), rows, state, over)
    # Nothing found yet: twice as much. Held: 0.9 of what was found. Failed at 0.5 and 0.8 was found
    # before: their geometric mean. A bracket above what was found is none.
    wanted = [1.0, 0.36, 0.4**0.5, 0.27, 0.5]
    assert after.memory["tau"].tolist() == pytest.approx(wanted)
    assert after.low.tolist() == [0.5, 0.0, 0.5, 0.0, 0.0]
    assert after.weight.tolist() == [8.0, 4.0, 4.0, 4.0, 4.0]
    cut = torch.tensor([*wanted[:4], INF], dtype=F64)[:, None]
    torch.testing.assert_close(after.z, z.minimum(cut).maximum(-cut))
    state = state._replace(memory={"tau": torch.tensor([1.0, 3.0, 0.0, 1.0, 1.0], dtype=F64)}, z=z)
    tau = state.memory["tau"].tolist()
    costs = [sum(max(0.0, abs(v) - t) for v in row) for row, t in zip(z.tolist(), tau, strict=True)]
    assert search.cost(state).tolist() == pytest.approx(costs)
    ended = state._replace(run=torch.tensor([9, 8, 0, 0, 0]), low=torch.tensor(
        [0.0, 0.0, 0.797, 0.29, 0.39], dtype=F64))  # fmt: skip
    assert search.ended(ended).tolist() == [True, False, True, False, False]


def test_the_weight_of_l0_grows_at_every_look_until_a_run_holds() -> None:
    """By four, every fifth of the length and at least every five steps; the run goes on."""
    for length, inner in ((10, [4, 5, 5, 10]), (50, [5, 10, 10, 50])):
        search = CarliniL0(length)
        state = trial(
            search, inner=inner, size=[INF, INF, 1.0, INF], weight=[2.0] * 4, mark=[1.0] * 4,
            loss=[1.0] * 4,
        )  # fmt: skip
        over, after = search.over(posed(L0()), state)
        assert after.weight.tolist() == [2.0, 8.0, 2.0, 8.0]
        assert over.tolist() == [False, False, True, True]  # with a success a still run may end


def test_fab_begins_again_in_half_the_known_radius() -> None:
    """Of the smallest success, of eps if that is less, of the walk where nothing is known."""
    case, n = linear_case(3, 40, 9), 40
    threat = L2().inside((-1e3, 1e3))
    rows = attacks.fab(L2()).rows(threat, case.x, case.y, None, None)
    rows = replace(rows, scores=case.x @ case.weight.T + case.bias)
    problem = posed(L2(), (-1e3, 1e3), n)
    draw = Rng(4).at(rows.id)
    search = FastBoundary()
    walked = randn(n, 12, seed=5, dtype=F64)
    state = search.init(problem, rows, draw)._replace(z=walked)
    which, clean = torch.arange(n), torch.zeros(n, dtype=torch.bool)
    clean[0] = True

    def share(radius: Tensor, shortest: Tensor, some: Rows) -> Tensor:
        given = state._replace(shortest=shortest)
        again = search._again(problem.threat, some, given, draw, which, clean)
        assert not again.z[0].any() and bool(again.size.isinf().all())
        return again.z[1:].norm(dim=1) / radius[1:]

    known = torch.linspace(0.5, 2.0, n, dtype=F64)
    endless = torch.full((n,), INF, dtype=F64)
    eps = replace(rows, eps=torch.full((n,), 0.8, dtype=F64))
    for got in (
        share(known / 2, known, rows),
        share(walked.norm(dim=1) / 2, endless, rows),
        share(known.clamp_max(0.8) / 2, known, eps),
    ):
        assert got.max() <= 1 + 1e-9 and got.max() > 0.98 and got.min() > 0.5
