"""The small steps of searches, each against what it promises: by hand or by algebra."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import pytest
import torch
from conftest import Counter, linear, linear_case, rand, randn
from test_laws import rows_of
from torch import Tensor, nn

import foible.parts.searches
from foible import attacks, explain
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.problem import Fooled, Problem, View
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.search import Evaluation, Search
from foible.models import wrap
from foible.parts.objectives import Margin
from foible.parts.residual import Residual
from foible.parts.searches import hop_skip_jump, linearised, penalty, pruning
from foible.parts.searches.apgd import APGD
from foible.parts.searches.funnel import Funnel
from foible.parts.searches.lbfgs import Tempered
from foible.parts.threats import L0, L1, L2, Ball, Linf, Spatial
from foible.parts.transforms import ShiftRotate

F64 = torch.float64


def posed(threat: Any, bounds: tuple[float, float] = (0.0, 1.0), rows: int = 1) -> Problem:
    model = wrap(linear(torch.ones(2, 4, dtype=F64), torch.zeros(2, dtype=F64)), bounds=bounds)
    return Problem(Oracle(model, rows), threat.inside(bounds), Margin(), Fooled())


# --- where a search may go


def test_the_funnels_radius_falls_geometrically_to_eps() -> None:
    """Half way down it is the geometric mean of both ends, and eps itself from the end on."""
    radii: list[float] = []

    @dataclass(frozen=True)
    class Spied(L2):
        def project(self, rows: Rows, z: Tensor) -> Tensor:
            radii.extend(rows.radius().flatten().tolist())
            return super().project(rows, z)

    x = rand(1, 4, seed=1, dtype=F64)
    net = nn.Sequential(linear(randn(3, 4, seed=2, dtype=F64), torch.zeros(3, dtype=F64)))
    never = replace(attacks.pgd(Spied(0.1)), search=Funnel(12, 9.0, 0.5))
    never(wrap(net, bounds=(-9.0, 9.0)), x, net(x).argmax(1))
    start, moves = radii[0], radii[-12:]
    assert start == pytest.approx(0.9)
    for turn, radius in enumerate(moves, 1):
        assert radius == pytest.approx(0.1 * 9 ** max(0.0, 1 - turn / 6))
    assert moves[2] == pytest.approx(0.3) and set(moves[5:]) == {0.1}


@pytest.mark.parametrize("norm", [L1, L2])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_random_starts_fill_the_ball_evenly(norm: Any, size: int) -> None:
    """(|z| / eps)^D is uniform in [0, 1], and every side of the ball is as likely."""
    n = 4000
    rows = rows_of(torch.zeros(n, size, dtype=F64), 0.7)
    z = norm(0.7).inside((float("-inf"), float("inf"))).start(rows, Rng(1).at(rows.id))
    share = (norm.length(z) / 0.7).pow(size).sort().values
    even = torch.arange(1, n + 1, dtype=F64) / n
    assert float((share - even).abs().max()) < 1.63 / n**0.5  # Kolmogorov and Smirnov, 1 %
    assert ((z > 0).double().mean(0) - 0.5).abs().max() < 3 / (2 * n**0.5)


def test_an_l0_step_is_a_share_of_the_way_from_a_quarter_to_all() -> None:
    rows = rows_of(torch.zeros(2, 4), 2.0)
    for share, wanted in ((0.0, 0.25), (0.1, 0.25), (0.5, 0.5), (1.0, 1.0), (3.0, 1.0)):
        assert L0(2).step_size(rows, share).flatten().tolist() == [wanted, wanted]


@pytest.mark.parametrize("shape", [(2, 500), (500, 2)])
def test_the_judge_of_moved_images_allows_the_rounding_of_long_sides(shape) -> None:
    """A float32 rendering errs by the place, and places are as large as the longer side."""
    threat = Spatial(1.0, 3.0).inside((0.0, 1.0))
    rows = replace(rows_of(rand(20, 1, *shape, seed=3), 1.0), eps=None)
    z = threat.start(rows, Rng(2).at(rows.id))
    rows = replace(rows, extra={"z": z})
    moved = threat.render(rows, z)
    assert bool(threat.contains(rows, moved).all())
    other = moved.clone()
    other[:, 0, 0, 0] = 1 - other[:, 0, 0, 0].round()
    assert not bool(threat.contains(rows, other).any())


def test_shifts_and_turns_go_both_ways_to_their_reach() -> None:
    """The centre of a lit pixel in the middle says how far an image was shifted."""
    x = torch.zeros(400, 1, 15, 15, dtype=F64)
    x[:, :, 7, 7] = 1.0
    made = ShiftRotate(0.0, 3.0)(x, Rng(1).at(torch.arange(400)))[:, 0]
    place = torch.arange(15, dtype=F64) - 7
    for axis in (1, 2):
        shift = (made.sum(axis) * place).sum(1)
        assert -3 <= float(shift.min()) < -2.9 and 2.9 < float(shift.max()) <= 3
        assert abs(float(shift.mean())) < 0.3
    x = torch.zeros(400, 1, 15, 15, dtype=F64)
    x[:, :, 7, 11] = 1.0  # to the right of the middle: turned, it is below or above
    made = ShiftRotate(30.0, 0.0)(x, Rng(1).at(torch.arange(400)))[:, 0]
    turn = ((made.sum(2) * place).sum(1) / 4).clamp(-1, 1).asin().rad2deg()
    assert -31 < float(turn.min()) < -28 and 28 < float(turn.max()) < 31


# --- what a search asks for


@pytest.mark.parametrize("samples", [10, 40])
def test_nes_stops_at_the_first_point_that_is_fooled(samples: int) -> None:
    """One step crosses: the clean look, one step's probes, the point, its verification."""
    w = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=F64)
    model = Counter(wrap(linear(w, torch.tensor([-1.0, 1.0], dtype=F64)), bounds=(0.0, 1.0)))
    x, y = torch.tensor([[0.55, 0.52], [0.45, 0.43]], dtype=F64), torch.tensor([0, 1])
    found = attacks.nes(Linf(0.5), 1000, samples)(model, x, y)
    assert bool(found.success.all())
    assert found.forwards.tolist() == [samples + 3] * 2 and model.forwards == 2 * (samples + 3)


def test_the_probes_of_hop_skip_jump_grow_and_the_last_iteration_takes_the_rest() -> None:
    count = hop_skip_jump.HopSkipJump(probes=30, most=100)._count
    far = torch.full((4,), 10_000)
    assert count(far, torch.tensor([0, 3, 8, 99])).tolist() == [30, 60, 90, 100]
    # 24 queries are kept for the step and its bisection, and as many for the next iteration's.
    rest = torch.tensor([24 + 45 + 24, 24 + 45 + 23, 24 + 40, 24 + 16, 24 + 15, 3])
    assert count(rest, torch.zeros_like(rest)).tolist() == [30, 60, 40, 16, 0, 0]
    few = hop_skip_jump.HopSkipJump(probes=4)._count
    assert few(torch.tensor([24 + 4, 24 + 3]), torch.tensor([0, 0])).tolist() == [4, 0]


@pytest.mark.parametrize("threat", [L2(), Linf()])
def test_queries_too_few_for_an_iteration_look_a_little_closer(threat: Ball) -> None:
    """Every one is 0.2 % nearer than the best point, and near it."""
    bound, z = threat.inside((-50.0, 50.0)), randn(2, 9, seed=4, dtype=F64)
    rows = rows_of(torch.zeros(2, 9, dtype=F64), 1.0)
    asked: list[tuple[Tensor, Tensor]] = []

    def evaluate(z: Tensor, rows: Rows | None = None, *_: Any, **__: Any) -> Evaluation:
        assert rows is not None
        asked.append((rows.index, z))
        none = torch.zeros(len(z), dtype=torch.bool)
        return Evaluation(none.double(), none, None, None)

    problem = replace(posed(bound, (-50.0, 50.0), 2), cap=12)
    search = hop_skip_jump.HopSkipJump()
    search._spend(problem, rows, evaluate, z, Rng(3).at(rows.id))  # type: ignore[arg-type]
    ((whose, points),) = asked
    assert torch.bincount(whose).tolist() == [11, 11]  # the cap less the final verification
    best = threat.length(z)[whose]
    length = threat.length(points)
    assert bool((length <= 0.9981 * best).all())
    if threat.norm == "l2":
        torch.testing.assert_close(length, 0.998 * best)
    away = torch.linalg.vector_norm(points - z[whose], dim=1)
    assert bool((away < 0.06 * torch.linalg.vector_norm(z, dim=1)[whose]).all())
    assert len(points.unique(dim=0)) == 22


# --- where a search aims


def test_a_tempered_margin_is_straight_before_the_boundary_and_flat_beyond() -> None:
    """Two classes whose margin is x: -x far before, 0 on the boundary, share * log 2 at most."""
    w = torch.tensor([[1.0], [0.0]], dtype=F64)
    oracle = Oracle(wrap(linear(w, torch.zeros(2, dtype=F64)), bounds=(-99.0, 99.0)), 7)
    clean = torch.full((7, 1), 4.0, dtype=F64)
    rows = replace(rows_of(clean, 1.0), scores=torch.cat([clean, 0 * clean], 1))
    at = torch.tensor([9.0, 4.0, 2.0, 0.0, -0.1, -2.0, -50.0], dtype=F64)[:, None]
    with oracle.session(0):
        value = Tempered(0.05)(View(oracle, rows, at))
    heat = 0.05 * 4.0
    shift = heat * torch.tensor(2.0, dtype=F64).log()
    torch.testing.assert_close(value[:3], shift - at[:3, 0], rtol=0, atol=1e-4)
    assert float(value[3]) == pytest.approx(0.0, abs=1e-12) and 0 < value[4] < value[5] <= value[6]
    assert float(value[6]) == pytest.approx(float(shift))


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_pulling_back_finds_the_crossing_of_a_straight_margin_at_once(rounds: int) -> None:
    """Regula falsi is exact where the margin is a line: a hair beyond, where the goal holds."""
    case = linear_case(2, 8, 5)
    rows = replace(rows_of(case.x, 1.0), y=case.y, scores=case.x @ case.weight.T + case.bias)
    start = linearised.margin(rows.scores, rows)
    gain = (case.weight[1] - case.weight[0]) * (1 - 2 * case.y[:, None])
    z = -3 * start[:, None] * gain / gain.square().sum(1, keepdim=True)
    asked: list[Tensor] = []

    def evaluate(z: Tensor, rows: Rows, need: str) -> Evaluation:
        asked.append(z)
        scores = (rows.x + z) @ case.weight.T + case.bias
        return Evaluation(linearised.margin(scores, rows), scores[:, 0] > 0, scores, None)

    near = linearised.pull_back(evaluate, rows, z, -2 * start, rounds)  # type: ignore[arg-type]
    assert len(asked) == rounds
    shares = torch.stack([(point / z)[:, 0] for point in (*asked, near)])
    # The first look lies beyond, later ones close in from both sides.
    assert bool((shares[0] > 1 / 3).all()) and bool(((shares - 1 / 3).abs() < 0.0025).all())


@pytest.mark.parametrize(("norm", "wanted"), [(Linf, 0.4), (L2, 1.2), (L1, 3.6), (L0, 1.2)])
def test_without_a_slope_a_tenth_of_the_box_is_tried(norm: Any, wanted: float) -> None:
    """Nine features, a box of width 4."""
    rows = rows_of(torch.ones(2, 9, dtype=F64), 1.0)
    problem, flat = posed(norm(), (0.0, 4.0)), torch.zeros(2, 9, dtype=F64)
    size, slope, peak = penalty.linearised(problem, rows, -torch.ones(2, dtype=F64), flat)
    torch.testing.assert_close(size, torch.full((2,), wanted, dtype=F64))
    assert (slope * size).tolist() == pytest.approx([1, 1]) and peak.tolist() == pytest.approx(
        [0.4, 0.4]
    )


@pytest.mark.parametrize("tries", [0, 1, 2, 3])
def test_pruning_leaves_out_what_does_least(tries: int) -> None:
    """Every offer by a slow walk over ranks: each vain round leaves other features out."""
    change = randn(3, 12, seed=7, dtype=F64) * (rand(3, 12, seed=8) < 0.6)
    grad, low, high = randn(3, 12, seed=9, dtype=F64), -rand(3, 12, seed=3), rand(3, 12, seed=4)
    room = (low.double(), high.double())
    given = pruning._variants(change, grad, room, torch.full((3,), tries))
    for row in range(3):
        d, g = change[row].tolist(), grad[row].tolist()
        far = [room[1][row, i].item() if g[i] > 0 else room[0][row, i].item() for i in range(12)]
        used = [i for i in range(12) if d[i] != 0]
        full = [(far[i] if g[i] * far[i] > 0 else d[i]) if i in used else 0.0 for i in range(12)]
        weak = sorted(used, key=lambda i: g[i] * d[i])
        slack = sorted(used, key=lambda i: g[i] * full[i])
        best = sorted(range(12), key=lambda i: -g[i] * far[i])
        fresh = next(i for i in best if i not in used)

        def less(of: list[float], lost: list[int], put: int | None = None, far=far) -> list[float]:
            return [far[i] if i == put else 0.0 if i in lost else v for i, v in enumerate(of)]

        def nth(of: list[int], place: int) -> list[int]:
            return of[place : place + 1]

        eighth = max(2, len(used) // 8)
        wanted = [
            full, less(d, weak[:1]), less(d, weak[:2]), less(full, slack[:1]),
            less(full, slack[:eighth]), less(d, nth(weak, 2 * tries + 1)),
            less(d, nth(weak, 2 * tries + 2)), less(full, nth(slack, tries + 1)),
            less(full, slack[:1], fresh), less(full, slack[:2], fresh), less(d, weak[:2], fresh),
            [far[i] if i in best[: len(used) - 1] else 0.0 for i in range(12)],
        ]  # fmt: skip
        torch.testing.assert_close(given[row::3], torch.tensor(wanted, dtype=F64))


def test_what_is_erased_in_vain_is_put_back_even_when_all_is_gone() -> None:
    """The first erasure brings most and is needless, but only the last one changes the label."""

    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b, c = (1 - x).unbind(1)
            score = -3 + 2 * a + b + 0.9 * c - 0.5 * a * (b + c) + 2 * b * c - 1.5 * a * b * c
            return torch.stack([0 * score, score], 1)

    net, x, y = Late(), torch.ones(1, 3), torch.zeros(1, dtype=torch.int64)
    erased = {
        "": -3.0, "a": -1.0, "b": -2.0, "c": -2.1, "ab": -0.5, "ac": -0.6, "bc": 0.9, "abc": 0.4,
    }  # fmt: skip
    for gone, score in erased.items():
        at = torch.tensor([[0.0 if k in gone else 1.0 for k in "abc"]])
        assert float(net(at)[0, 1]) == pytest.approx(score, abs=1e-6)
    found = attacks.minimal_erasure()(net, x, y)
    assert found.x.tolist() == [[1.0, 0.0, 0.0]] and float(found.distance) == 2


# --- what is refused


def test_an_autoencoders_step_is_safe_and_one_in_training_mode_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
    Residual(net)
    # Half of one over the curvature of weight * |x|^2, which is 2 * weight.
    reaches = [Residual(net, weight).reach for weight in (0.5, 1.0, 4.0, 0.0)]
    assert reaches == [0.5, 0.25, 0.0625, float("inf")]
    net[1].train()
    with pytest.raises(InputError, match="training mode"):
        Residual(net)


def test_a_surrogate_needs_four_samples_a_fit() -> None:
    """Three queries beside them: the clean look, a verdict and its verification; one for x."""
    made = attacks.surrogate_attack(Linf(0.1), explain.tabular_lime(), 8, 1, 1)
    assert made.direction.samples == 4
    with pytest.raises(InputError, match="leave 3 samples"):
        attacks.surrogate_attack(Linf(0.1), explain.tabular_lime(), 7, 1, 1)


def test_only_the_searches_of_wider_balls_may_leave_the_threat() -> None:
    """Each point of a search that strays is judged once more, which the others need not pay."""
    for module in walk_packages(foible.parts.searches.__path__, "foible.parts.searches."):
        import_module(module.name)
    kinds, every = [Search], set()
    while kinds:
        subclasses = kinds.pop().__subclasses__()
        kinds += subclasses
        every |= {k for k in subclasses if k.__module__.startswith("foible.parts")}
    made = [kind() for kind in every if not inspect.isabstract(kind)]
    assert len(made) > 15
    assert [type(one).__name__ for one in made if one.strays] == ["Funnel"]
    assert APGD(widen=True).strays and not APGD().strays
