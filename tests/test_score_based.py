"""Square, NES, SPSA and SimBA: against algebra, their papers' moves, shapes, caps, determinism."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import optimum
import pytest
import torch
from conftest import Counter, linear_case, predicted, rand, randn
from replicas import square as paper
from torch import Tensor, nn

from foible.attacks import Attack, nes, simba, spsa, square
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.problem import Fooled, Problem
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.search import Evaluation
from foible.models import TorchModel, wrap
from foible.parts.objectives import Margin
from foible.parts.searches.estimates import EstimatedAscent
from foible.parts.searches.simba import _bands, _cosines
from foible.parts.searches.square import (
    MARKS,
    SquareState,
    _flipped,
    _grid,
    _moved_mass,
    bank,
    picture,
    pyramid,
    schedule,
    window,
)
from foible.parts.threats import L0, L1, L2, Linf

RECIPES: dict[str, Callable[[int], Attack]] = {
    "square": lambda q: square(Linf(0.1), q),
    "square_redraw": lambda q: square(Linf(0.1), q, redraw=True),
    "square_l2": lambda q: square(L2(0.5), q),
    "square_l1": lambda q: square(L1(1.0), q),
    "nes": lambda q: nes(Linf(0.1), q, 6),
    "nes_l2": lambda q: nes(L2(0.5), q, 6),
    "spsa": lambda q: spsa(Linf(0.1), q, 6),
    "spsa_l1": lambda q: spsa(L1(1.0), q, 6),
    "simba": lambda q: simba(L2(0.5), q),
    "simba_dct": lambda q: simba(L2(0.5), q, "dct"),
    "simba_free": lambda q: simba(L2(), q),
}
SHAPES = [(7,), (1,), (1, 7), (5, 3), (1, 1, 4), (3, 4, 6), (2, 2, 3, 4)]


class Weighted(nn.Module):
    """Logits as sums of each input's own products: no bit depends on the batch."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, x: Tensor) -> Tensor:
        scores = (x.flatten(1)[:, None] * self.weight).sum(2)
        return scores if self.bias is None else scores + self.bias


def weighted(shape: tuple[int, ...], classes: int = 3, seed: int = 1, **given: Any) -> TorchModel:
    dtype = given.pop("dtype", torch.float64)
    count = int(np.prod(shape))
    weight = randn(classes, count, seed=seed, dtype=dtype)
    return wrap(Weighted(weight, -0.5 * weight.sum(1).detach()), **given)


def batch(shape: tuple[int, ...], rows: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.2 + 0.6 * rand(rows, *shape, seed=3, dtype=dtype)


# ---------------------------------------------------------------- against algebra


@pytest.mark.parametrize("classes", [2, 4, 10])
@pytest.mark.parametrize("norm,near", [(Linf, 1.05), (L2, 1.5), (L1, 2.0)])
def test_square_flips_linear_models_near_their_optimum(
    norm: Any, near: float, classes: int
) -> None:
    """A restart a class: the margin to one class may have no way up to the nearest one."""
    case = linear_case(classes, 8, 7 + classes)
    least = torch.tensor(optimum.untargeted(case, norm.norm))
    restarts = 1 if classes == 2 else classes
    enough = square(norm(near * least), 700, restarts=restarts)(case.model, case.x, case.y)
    assert enough.success_rate == 1.0
    short = square(norm(0.95 * least), 60)(case.model, case.x, case.y)
    assert not short.success.any()


def test_square_reaches_a_target() -> None:
    case = linear_case(4, 12, 9)
    least = torch.tensor(optimum.targeted(case, "linf"))
    attack = square(Linf(1.5 * least), 1000)
    assert attack(case.model, case.x, case.y, target=case.target).success.all()


@pytest.mark.parametrize("make", [nes, spsa])
def test_estimates_follow_a_linear_model_to_its_optimum(make: Any) -> None:
    case = linear_case(2, 12, 4)
    for norm, near in ((Linf, 1.5), (L2, 1.1)):
        least = torch.tensor(optimum.untargeted(case, norm.norm))
        result = make(norm(near * least), 2000)(case.model, case.x, case.y)
        assert result.success_rate == 1.0


def test_simba_on_a_linear_model_moves_every_value_at_most_twice() -> None:
    """Away from the box: up or down is right at every value, so D values cost at most 2 D."""
    case = linear_case(2, 12, 4)
    attack = simba(L2(), 2 + 2 * case.x.shape[1], step=0.0002)  # of a box that is 2,000 wide
    result = attack(case.model, case.x, case.y)
    change = (result.x - case.x)[result.success]
    moved = (change != 0).sum(1).double().sqrt() * 0.4
    torch.testing.assert_close(result.distance[result.success], moved, rtol=1e-6, atol=0)
    other = (case.weight[1 - case.y] - case.weight[case.y])[result.success]
    assert result.success.float().mean() > 0.5 and (change * other >= 0).all()


def estimate(search: EstimatedAscent, g: Tensor, at_most: int) -> Tensor:
    """The estimate at 0 of f(z) = g z, by the search's own probes."""
    n = len(g)
    rows = Rows(
        torch.arange(n),
        torch.arange(n),
        torch.zeros_like(g),
        torch.zeros(n).long(),
        eps=torch.ones(n),
    )
    model = Counter(wrap(nn.Flatten()), at_most=at_most)
    problem = Problem(Oracle(model, n), Linf(1.0), Margin(), Fooled())

    def evaluate(z: Tensor, rows: Rows, need: str) -> Evaluation:
        assert len(z) <= max(at_most, n) and need == "scores"
        value = (g[rows.index] * z).sum(1)
        return Evaluation(value, value > 1e9, None, None)

    pairs = torch.full((n,), search.samples // 2)
    draw = Rng(0).at(rows.id, 0)
    return search._estimate(problem, rows, evaluate, torch.zeros_like(g), draw, pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize("signs", [False, True])
def test_estimates_of_the_gradient_are_unbiased_on_a_linear_model(signs: bool) -> None:
    g = randn(3, 6, seed=5, dtype=torch.float64)
    many = estimate(EstimatedAscent(1, 8000, 8000, signs=signs), g, 500)
    # The standard error of a value is |g| / sqrt(pairs), about: five of them.
    assert (many - g).abs().max() < 5 * g.norm(dim=1).max() / 4000**0.5
    few = EstimatedAscent(1, 10, 10, signs=signs)
    assert torch.equal(estimate(few, g, 1), estimate(few, g, 1000))
    one = estimate(EstimatedAscent(1, 2, 2, signs=signs), g, 100)
    assert ((one * g).sum(1) >= 0).all()  # (g u)^2, whatever u was


# ---------------------------------------------------------------- the papers' moves


def test_windows_shrink_as_published() -> None:
    sides = schedule(0.8, 10_000, 100, 100, 1)[:, 0]
    changes = (np.diff(sides) != 0).nonzero()[0]
    assert changes.tolist() == list(MARKS)  # the share is halved after it > 10, > 50, ...
    assert sides[0] == 89 and sides[-1] == round((0.8 / 512) ** 0.5 * 100)
    rescaled = schedule(0.8, 1000, 100, 100, 1)[:, 0]
    assert rescaled.tolist() == sides[::10].tolist()
    assert window(0.8, 28, 28) == (25, 25) and window(0.5, 1, 10) == (1, 5)
    assert window(0.5, 30, 2) == (15, 2) and window(1e-4, 9, 9, 3) == (3, 3)
    assert [picture(s) for s in ((), (7,), (5, 3), (2, 2, 3, 4))] == [
        (1, 1, 1), (1, 1, 7), (1, 5, 3), (4, 3, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("tall,wide", [(3, 3), (5, 5), (7, 7), (3, 7), (6, 4), (1, 5), (4, 1)])
def test_pyramids_are_the_papers(tall: int, wide: int) -> None:
    sides = torch.tensor([[tall, wide], [tall, wide]])
    i, j = torch.arange(tall).expand(2, -1), torch.arange(wide).expand(2, -1)
    both = pyramid(i, sides[:, 0], j, sides[:, 1], torch.tensor([True, False]))
    for k, across in enumerate((True, False)):
        if (tall, wide)[1 - across] > 1:  # a side of one is not halved
            np.testing.assert_allclose(both[k].numpy(), paper.eta(tall, wide, across))


def plain(shape: tuple[int, ...], rows: int, eps: float) -> Rows:
    index = torch.arange(rows)
    x = torch.zeros(rows, *shape, dtype=torch.float64)
    return Rows(index, index, x, index, eps=torch.full((rows,), eps, dtype=torch.float64))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_mass_moves_as_in_the_paper(norm: str) -> None:
    shape, eps, rows = (3, 9, 7), 0.7, 6
    best = randn(rows, *shape, seed=1, dtype=torch.float64)
    best[0] = 0  # nothing spent yet
    best *= torch.linspace(0.2, 1, rows)[:, None, None, None] * eps / best.abs().sum()
    sides, draw = torch.tensor([[3, 3], [5, 5], [7, 7]]).repeat(2, 1), Rng(3).at(torch.arange(rows))
    bumps = bank(norm, tuple(map(tuple, sides.tolist())))
    moved = _moved_mass(norm, best, (sides, bumps), plain(shape, rows, eps), draw)
    u = draw.scalars(8).numpy()
    for r in range(rows):
        h, w = sides[r].tolist()
        first = [int(u[r, k] * (extent - side + 1)) for k, (extent, side) in
                 enumerate([(9, h), (7, w), (9, h), (7, w)])]  # fmt: skip
        rho = [1 if v < 0.5 else -1 for v in u[r, 5:]]
        expected = paper.mass_move(
            norm, best[r].numpy(), (*first[:2], h, w), (*first[2:], h, w), rho,
            bool(u[r, 4] < 0.5), eps,
        )  # fmt: skip
        np.testing.assert_allclose(moved[r].numpy(), expected, atol=1e-12)
        assert paper.size(norm, expected) == pytest.approx(eps)  # all of the radius is spent


def test_linf_windows_move_as_in_the_paper_and_never_idle() -> None:
    shape, eps, rows = (2, 6, 5), 0.3, 40
    up = rand(rows, *shape, seed=2) < 0.5
    up[:20] = True  # many windows change nothing here
    ends = torch.full(up.shape, eps, dtype=torch.float64)
    best = torch.where(up, ends, -ends)
    zeros = torch.zeros(rows)
    state = SquareState(best, best, zeros, zeros > 0, -ends, ends, torch.full((rows,), 300))
    table, draw = schedule(0.8, 1000, 6, 5, 1), Rng(1).at(torch.arange(rows), 4)
    made = _flipped(shape, table, state, draw, False)
    u = draw.scalars(12).numpy().reshape(rows, 3, 4)
    skipped = 0
    for r in range(rows):
        for attempt in range(3):
            h, w = table[300 + attempt]
            first = int(u[r, attempt, 0] * (7 - h)), int(u[r, attempt, 1] * (6 - w))
            signs = (u[r, attempt, 2:] < 0.5).tolist()
            expected = paper.linf_move(best[r].numpy(), (*first, h, w), signs, eps)
            if (expected != best[r].numpy()).any():
                break
            skipped += 1
        else:
            expected = paper.linf_move(best[r].numpy(), (*first, h, w), [not s for s in signs], eps)
        np.testing.assert_array_equal(made.z[r].numpy(), expected)
        assert int(made.made[r]) == 301 + attempt
    assert skipped > 3 and (made.z != best).flatten(1).any(1).all()


def test_the_grid_covers_the_picture_with_pyramids() -> None:
    for shape in ((1, 28, 28), (3, 13, 7), (1, 1, 9), (1, 5, 3)):
        like = torch.zeros(4, *shape)
        grid = _grid(shape, Rng(0).at(torch.arange(4)), like)
        assert grid.shape == like.shape and (grid != 0).float().mean() > 0.95
    assert not torch.equal(grid[0], grid[1])


@pytest.mark.parametrize("norm", [Linf(0.1), L2(0.1), L1(0.1)])
@pytest.mark.parametrize("shape", [(5, 5), (1, 4, 7), (9,), (3, 6, 6)])
def test_the_last_row_and_column_are_reached(norm: Any, shape: tuple[int, ...]) -> None:
    """The last value alone decides, and half of the starts have it wrong."""
    weight = torch.zeros(2, int(np.prod(shape)), dtype=torch.float64)
    weight[1, -1] = 1.0
    # In L2 and L1 the whole picture shares the radius: about 0.1 and 0.01 of it are a value's.
    share = {"linf": 0.95, "l2": 0.05, "l1": 0.01}[norm.norm]
    x = torch.full((12, *shape), 0.5, dtype=torch.float64)
    model = wrap(Weighted(weight, torch.tensor([0.5 + share * 0.1, 0.0])))
    assert square(norm, 400)(model, x, torch.zeros(12).long()).success.all()


def test_cosines_are_an_orthonormal_basis_from_low_to_high() -> None:
    for count in (1, 4, 7):
        table = _cosines(count, torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(table @ table.T, torch.eye(count, dtype=torch.float64))
        assert (table[0] > 0).all()  # the constant comes first
    bands = _bands((1, 8, 8), 0.25).view(8, 8)
    assert bands[:2, :2].eq(0).all() and bands[2:4, :4].eq(1).all() and bands[7].eq(2).all()


# ---------------------------------------------------------------- what every recipe promises


@pytest.mark.parametrize("name", RECIPES)
def test_no_query_beyond_the_cap(name: str) -> None:
    model, x = weighted((3, 4, 6)), batch((3, 4, 6))
    y = predicted(model, x)
    for queries, at_most in ((5, 1000), (23, 2), (40, 3)):
        counter = Counter(model, at_most=at_most)
        result = RECIPES[name](queries)(counter, x, y)
        assert int(result.forwards.max()) <= queries and max(counter.sizes) <= max(at_most, 5)
        assert counter.forwards == int(result.forwards.sum()) and counter.backwards == 0
        assert result.success.all() or int(result.forwards.max()) >= 0.5 * queries


def test_all_queries_are_spent_where_that_is_asked() -> None:
    model, x = weighted((4, 6)), batch((4, 6))
    y = predicted(model, x)
    for restarts in (1, 3):
        attack = square(Linf(0.05), 50, stop="never", restarts=restarts, redraw=True)
        counter = Counter(model, at_most=2)
        assert attack(counter, x, y).forwards.tolist() == [2 + 48 // restarts * restarts] * 5
    free = square(Linf(0.05), 300, stop="never")(model, x, y).forwards
    assert (free < 300).all()  # idle proposals cost nothing


@pytest.mark.parametrize("name", RECIPES)
def test_one_seed_gives_one_result_whatever_the_chunk(name: str) -> None:
    model, x = weighted((3, 4, 6)), batch((3, 4, 6), 7)
    y = predicted(model, x)
    make = RECIPES[name](60)
    runs = [make(Counter(model, at_most=n), x, y, seed=2) for n in (1000, 3, 1)]
    for other in runs[1:]:
        assert torch.equal(runs[0].x, other.x) and torch.equal(runs[0].success, other.success)
        assert torch.equal(runs[0].forwards, other.forwards)
    assert not torch.equal(make(model, x, y, seed=3).x, runs[0].x)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_class_count_and_dtype(name: str, shape: tuple[int, ...]) -> None:
    for classes, dtype, outputs, rows in (
        (2, torch.float32, "logits", 3), (1000, torch.float64, "logits", 1),
        (1, torch.float32, "logit", 3),
    ):  # fmt: skip
        model = weighted(shape, classes, dtype=dtype, outputs=outputs)
        x = batch(shape, rows, dtype)
        x[0] = x[0].round()  # at the ends of the box
        y = predicted(model, x)
        target = None if classes == 2 else (y + 1) % max(2, classes)
        if x.dim() == 4:  # rows of another layout in memory
            x = x.contiguous(memory_format=torch.channels_last)
        result = RECIPES[name](16)(model, x, y, target=target)
        assert result.x.shape == x.shape and result.x.dtype == dtype
        assert torch.isfinite(result.x).all() and result.x.min() >= 0 and result.x.max() <= 1


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_that_never_changes_is_survived(name: str) -> None:
    model, x = (
        wrap(Weighted(torch.zeros(3, 12), torch.tensor([1.0, 0.0, 0.0]))),
        rand(4, 12, seed=1),
    )
    result = RECIPES[name](30)(model, x, torch.zeros(4).long())
    assert not result.success.any() and torch.isfinite(result.x).all()
    assert result.status == ["survived"] * 4


@pytest.mark.parametrize("name", RECIPES)
def test_the_objective_rises_and_scores_are_enough(
    name: str, net: nn.Module, images: Tensor
) -> None:
    y = predicted(net, images)
    attack = replace(RECIPES[name](60), stop="never", prefer=None)
    counter = Counter(wrap(net), level=Access.SCORES)
    result = attack(counter, images, y)

    def margin(x: Tensor) -> Tensor:
        with torch.no_grad():
            scores = wrap(net.eval())(x)
        others = scores.scatter(1, y[:, None], -torch.inf).amax(1)
        return others - scores.gather(1, y[:, None]).squeeze(1)

    rise = margin(result.x) - margin(images)
    assert (rise > -1e-6).all() and rise.mean() > 0.05
    eps = attack.threat.eps  # type: ignore[attr-defined]
    assert eps is None or (result.distance <= eps * (1 + 1e-6)).all()


def test_stop_says_when_square_ends(net: nn.Module, images: Tensor) -> None:
    y = predicted(net, images)
    early, late = (square(Linf(0.3), 200, stop=s)(net, images, y) for s in ("success", "never"))
    assert torch.equal(early.success, late.success) and early.success.any()
    assert (early.forwards <= late.forwards).all() and early.forwards.sum() < late.forwards.sum()


def test_an_eps_of_zero_and_one_a_sample() -> None:
    model, x = weighted((4, 6)), batch((4, 6))
    y = predicted(model, x)
    eps = torch.tensor([0.0, 0.01, 0.05, 0.2, 0.4], dtype=torch.float64)
    for norm, make in ((Linf, square), (L2, square), (L2, simba), (Linf, nes), (L2, spsa)):
        result = make(norm(eps), 40)(model, x, y)
        assert (result.distance <= eps * (1 + 1e-6) + 1e-12).all() and not result.success[0]


def test_what_is_refused() -> None:
    model, x = weighted((6,)), batch((6,))
    y = predicted(model, x)
    wrong: list[Callable[[], Any]] = [
        lambda: square(Linf()), lambda: square(Linf(0.1), p=0.0), lambda: square(Linf(0.1), 3),
        lambda: square(Linf(0.1), 9, restarts=5), lambda: nes(Linf()), lambda: spsa(L2()),
        lambda: nes(Linf(0.1), samples=1), lambda: nes(Linf(0.1), sigma=0.0),
        lambda: nes(Linf(0.1), momentum=1.0), lambda: spsa(Linf(0.1), step=-1.0),
        lambda: simba(L2(), basis="wavelet"), lambda: simba(L2(), low=0.0),
        lambda: nes(Linf(0.1), 4), lambda: simba(L2(), step=0.0),
    ]  # fmt: skip
    for make in wrong:
        with pytest.raises(InputError):
            make()
    for attack in (square(L0(3)), spsa(L0(3))):
        with pytest.raises(KindError, match="L0 has no"):
            attack(model, x, y)
