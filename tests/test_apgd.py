"""APGD and its targeted form: against the papers' algorithms, algebra, budgets and odd models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optimum
import pytest
import torch
from conftest import Counter, filled, linear_case, rand, randn
from replicas import apgd as slow
from test_closed_form import check
from torch import Tensor, nn

import foible
from foible.attacks import Attack, apgd, apgd_targeted, pgd
from foible.core.errors import InputError, KindError
from foible.core.problem import Problem, View
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.models import wrap
from foible.parts.objectives import DLR, EachRival
from foible.parts.searches.apgd import APGD, checkpoints, phases, sparse_sign
from foible.parts.threats import L0, L1, L2, Deletion, Linf

NORMS = {"linf": Linf, "l2": L2, "l1": L1}
CLASSES, ROWS = 5, 6


@dataclass
class Recorder(Counter):
    """A model that keeps every batch it was given, in order."""

    seen: list[Tensor] = field(default_factory=list)

    def scores(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return super().scores(x)


@pytest.fixture
def given() -> tuple[Recorder, Tensor, Tensor]:
    """A wavy net, so that a value falls now and then, and inputs, some at the box's ends."""
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(18, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(),
        nn.Linear(24, CLASSES),
    )  # fmt: skip
    net = filled(body, 8, 3.0).double()
    x = rand(ROWS, 2, 3, 3, seed=9, dtype=torch.float64)
    x[0, 0], x[1, 1] = 0.0, 1.0
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)
        y = net(x).argmax(1)
    assert len(y.unique()) > 2
    return Recorder(wrap(net), at_most=64), x, y


def visited(attack: Attack, net: Recorder, x: Tensor, y: Tensor) -> list[Tensor]:
    """The points of every restart, (steps + 1, B, *shape): what came between clean and verdict."""
    attack(net, x, y, seed=3)
    each = attack.search.steps + 1
    asked = net.seen[1 : 1 + attack.restarts * each]
    return [torch.stack(asked[r * each : (r + 1) * each]) for r in range(attack.restarts)]


def same(found: Tensor, expected: Callable[[int, Tensor], list[Tensor]], rows: int) -> None:
    """Step by step, from the start that the fast one drew."""
    for i in range(rows):
        slow_one = torch.stack(expected(i, found[0, i]))
        torch.testing.assert_close(found[:, i], slow_one, rtol=0, atol=1e-7)


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 0.9)])
def test_it_is_the_paper_s_algorithm(norm: str, eps: float, loss: str, given: Any) -> None:
    net, x, y = given
    points = visited(apgd(NORMS[norm](eps), 30, loss), net, x, y)[0]
    assert len(points) == 31
    named = getattr(slow, loss)
    same(
        points,
        lambda i, start: slow.apgd(net.inner.net, named, x[i], int(y[i]), eps, start, 30, norm),
        ROWS,
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_in_l1_it_is_the_l1_paper_s_algorithm(loss: str, given: Any) -> None:
    net, x, y = given
    points = visited(apgd(L1(1.0), 60, loss), net, x, y)[0]
    named = getattr(slow, loss)
    same(
        points,
        lambda i, start: slow.sparse_apgd(net.inner.net, named, x[i], int(y[i]), 1.0, start, 60),
        ROWS,
    )
    size = (points - x).abs().flatten(2).sum(2).amax(1)
    assert size[:18].max() > 2.5 and (size[18:36] <= 2 + 1e-9).all()
    assert size[18:36].max() > 1.5 and (size[36:] <= 1 + 1e-9).all()


def test_every_targeted_run_goes_for_the_next_class(given: Any) -> None:
    net, x, y = given
    runs = visited(apgd_targeted(Linf(0.3), 30, CLASSES - 1, stop="never"), net, x, y)
    with torch.no_grad():
        order = net.inner.net(x).argsort(1, descending=True)
    for place, points in enumerate(runs):
        same(
            points,
            lambda i, start, place=place: slow.apgd(
                net.inner.net, slow.targeted_dlr(int(order[i, place + 1])), x[i], int(y[i]), 0.3,
                start, 30, "linf",
            ),
            ROWS,
        )  # fmt: skip


def problem(threat: Threat, rows: int, shape: tuple[int, ...]) -> tuple[Problem, Rows]:
    x = rand(rows, *shape, seed=1)
    index = torch.arange(rows)
    bound = threat.inside((0.0, 1.0))
    some = Rows(index, index, x, index, eps=bound.radii(rows, x))
    return Problem(None, bound, DLR(), None), some  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", NORMS)
def test_the_start_has_full_size_but_for_the_box(norm: str) -> None:
    for box, exact in (((-9.0, 9.0), True), ((0.0, 1.0), False)):
        eps = torch.tensor([0.1, 0.2, 0.4])
        threat = NORMS[norm](eps).inside(box)
        _, rows = problem(threat, 3, (2, 4, 4))
        posed = Problem(None, threat, DLR(), None)  # type: ignore[arg-type]
        draw = Rng(0).at(rows.id)
        z = APGD(10).init(posed, rows, draw).z
        size = threat.length(z.flatten(1))
        assert (size <= eps * (1 + 1e-6)).all()
        if exact:
            torch.testing.assert_close(size, eps)
        x_adv = rows.x + z
        assert (x_adv >= box[0] - 1e-6).all() and (x_adv <= box[1] + 1e-6).all()
        assert len(z.flatten(1).sum(1).unique()) == 3
        again = APGD(10).init(posed, rows, draw).z
        assert torch.equal(z, again) and not torch.equal(z, APGD(10).init(
            posed, rows, Rng(1).at(rows.id)).z)  # fmt: skip
        assert not APGD(10, start="clean").init(posed, rows, draw).z.any()


def test_checkpoints_are_the_published_ones() -> None:
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    for steps in (1, 2, 5, 20, 37, 200, 1000):
        ours = [w for w in checkpoints(steps) if w <= steps]
        assert ours == sorted(set(slow.checkpoints(steps)) - {0}), steps
    assert phases(100) == ((0, 3.0), (30, 2.0), (60, 1.0))
    assert phases(3) == ((0, 1.0),) and phases(4) == ((0, 3.0), (1, 2.0), (2, 1.0))


def test_a_sparse_step_moves_the_largest_entries_equally() -> None:
    grad = randn(4, 30, seed=2)
    density = torch.tensor([0.1, 0.5, 1.0, 0.0])
    move = sparse_sign(grad, density)
    assert (move != 0).sum(1).tolist() == [3, 15, 30, 1]
    torch.testing.assert_close(move.abs().sum(1), torch.ones(4))
    for g, m in zip(grad, move, strict=True):
        held = m != 0
        assert g.abs()[held].min() >= (g.abs()[~held].max() if (~held).any() else 0)
        assert torch.equal(m[held].sign(), g[held].sign()) and len(m[held].abs().unique()) == 1
    assert not sparse_sign(torch.zeros(2, 5), torch.tensor([0.2, 1.0])).any()


RECIPES: dict[str, Callable[[Threat, int], Attack]] = {
    "margin": lambda threat, classes: apgd(threat, 30, "margin", classes, stop="success"),
    "targeted": lambda threat, classes: apgd_targeted(threat, 30, classes - 1, "margin"),
}


@pytest.mark.parametrize(
    ("classes", "wide"), [(2, False), (4, True), (10, False)], ids=["2-box", "4-free", "10-box"]
)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_linear_models_fall_just_above_the_optimum_and_never_below(
    recipe: str, norm: str, classes: int, wide: bool
) -> None:
    case = linear_case(classes, 6, 500 + classes, wide=wide)
    least = optimum.untargeted(case, norm)
    check(lambda t: RECIPES[recipe](t, classes), case, norm, least, np.isfinite(least), False)


@pytest.mark.parametrize("norm", NORMS)
def test_cross_entropy_is_exact_on_two_classes(norm: str) -> None:
    case = linear_case(2, 6, 510, wide=False)
    least = optimum.untargeted(case, norm)
    make = lambda t: apgd(t, 30, stop="success")  # noqa: E731
    check(make, case, norm, least, np.isfinite(least), False)
    check(make, case, norm, least, np.isfinite(least), True)


@pytest.mark.parametrize("norm", NORMS)
def test_a_given_target_is_reached_and_only_it_counts(norm: str) -> None:
    case = linear_case(5, 12, 520)
    least = optimum.targeted(case, norm)
    exact = np.isclose(least, optimum.only_the_label(case, norm), rtol=1e-6)
    make = lambda t: apgd_targeted(t, 30, 2, "margin")  # noqa: E731
    assert check(make, case, norm, least, exact, True) >= 3


@pytest.mark.parametrize("norm", NORMS)
def test_survivors_stay_in_the_ball_too(norm: str, given: Any) -> None:
    """In L1 the wider balls hold stronger points, which must not come back."""
    net, x, y = given
    eps = {"linf": 1e-3, "l2": 1e-3, "l1": 3e-3}[norm]
    threat = NORMS[norm](torch.linspace(0.5, 1, ROWS) * eps)
    result = apgd(threat, 20)(net, x, y)
    assert not result.success.any()
    size = threat.length((result.x - x).flatten(1))
    assert (size <= torch.tensor(threat.eps) * (1 + 1e-6)).all() and (size > 0).all()
    assert (result.x >= 0).all() and (result.x <= 1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_rows_that_enter_late_do_as_if_alone(norm: str, given: Any) -> None:
    """Rows at different steps share the batch: each meets its checkpoints at its own time."""
    net, x, y = given
    threat = NORMS[norm]({"linf": 0.05, "l2": 0.1, "l1": 0.8}[norm])
    attack = apgd(threat, 40, "dlr", stop="success")
    alone = attack(net, x, y)
    assert 0 < int(alone.success.sum()) < ROWS
    net.at_most = 2
    crowded = attack(net, x, y)
    torch.testing.assert_close(crowded.x, alone.x, rtol=0, atol=1e-7)
    assert torch.equal(crowded.backwards, alone.backwards)


def test_what_it_costs(given: Any) -> None:
    """One forward and one backward a step, the last point, the clean look and the verdict."""
    net, x, y = given
    model = Counter(net.inner)
    result = apgd(Linf(1e-4), 7, restarts=2)(model, x, y)
    assert (result.forwards == 2 * 8 + 2).all() and (result.backwards == 14).all()
    assert model.forwards == ROWS * 18 and model.backwards == ROWS * 14
    result = apgd_targeted(Linf(0.05), 10, 4)(net, x, y)
    survived = ~result.success
    assert survived.any() and result.success.any()
    assert (result.backwards[survived] == 40).all() and (result.backwards[~survived] < 40).all()


def test_the_scale_of_logits_does_not_matter_to_dlr() -> None:
    """Row A25: times 1e4 moves APGD-DLR by 0.5 points at most; cross-entropy it blinds."""
    x = rand(200, 10, seed=12)
    body = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 5))
    net = filled(body, 13, 2.0)
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)
        y = net(x).argmax(1)
    robust = {}
    for scale in (1.0, 1e4):
        scaled = wrap(net, outputs=_Times(scale))
        for name, attack in (
            ("dlr", apgd(Linf(0.05), 40, "dlr", stop="success")),
            ("targeted", apgd_targeted(Linf(0.05), 40, 4)),
            ("cross_entropy", apgd(Linf(0.05), 40, stop="success")),
        ):
            robust[name, scale] = attack(scaled, x, y).robust_accuracy
    for name in ("dlr", "targeted"):
        assert abs(robust[name, 1.0] - robust[name, 1e4]) <= 0.005, robust
        assert 0.1 < robust[name, 1.0] < 0.9
    assert robust["cross_entropy", 1e4] > robust["dlr", 1e4] + 0.05, robust


class _Times:
    """Logits times a constant."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, scores: Tensor) -> Tensor:
        return scores * self.scale


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_at_least_as_strong_as_pgd_of_equal_steps(norm: str) -> None:
    x, y = (part[:64] for part in foible.zoo.sample())
    model = foible.zoo.load("hardened")
    threat = NORMS[norm]({"linf": 0.1, "l2": 1.0, "l1": 10.0}[norm])
    ours = apgd(threat, 20, "margin", stop="success")(model, x, y)
    plain = pgd(threat, 20, objective="margin", stop="success")(model, x, y)
    assert ours.robust_accuracy <= plain.robust_accuracy + 0.5 / 64


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(2, torch.float32), (3, torch.float64), (10, torch.float32), (1000, torch.float64)],
)
def test_any_number_of_classes(classes: int, dtype: torch.dtype, norm: str) -> None:
    net = filled(nn.Sequential(nn.Flatten(), nn.Linear(12, classes)), 3).to(dtype)
    x = rand(3, 3, 2, 2, seed=5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    x[0], x[1] = 0.0, 1.0
    with torch.no_grad():
        y = net(x).argmax(1)
    attacks = [apgd(NORMS[norm](0.5), 8), apgd_targeted(NORMS[norm](0.5), 8, 3, "margin")]
    attacks += [apgd(NORMS[norm](0.5), 8, "dlr")] if classes > 2 else []
    attacks += [apgd_targeted(NORMS[norm](0.5), 8, 3)] if classes > 3 else []
    for attack in attacks:
        many, one = attack(net, x, y), attack(net, x[:1], y[:1])
        assert torch.isfinite(many.x).all() and many.x.dtype == dtype
        assert (many.x >= 0).all() and (many.x <= 1).all()
        torch.testing.assert_close(one.x, many.x[:1], rtol=1e-4, atol=1e-5)


def test_a_single_logit() -> None:
    net = filled(nn.Linear(6, 1), 3)
    model = wrap(net, outputs="logit")
    x = rand(5, 6, seed=4)
    with torch.no_grad():
        y = (net(x).squeeze(1) > 0).long()
    for attack in (apgd(Linf(1.0), 5), apgd_targeted(L1(6.0), 5, objective="margin")):
        result = attack(model, x, y)
        assert torch.isfinite(result.x).all() and result.success.any()


@pytest.mark.parametrize("norm", NORMS)
def test_a_model_without_gradient_moves_nothing_and_breaks_nothing(norm: str) -> None:
    net = filled(nn.Linear(6, 4), 3)
    with torch.no_grad():
        net.weight.zero_()
    x = rand(3, 6, seed=4)
    y = net.bias.argmax().expand(3)
    for attack in (apgd(NORMS[norm](0.1), 30, "dlr"), apgd_targeted(NORMS[norm](0.1), 12, 2)):
        result = attack(net, x, y)
        assert not result.success.any() and torch.isfinite(result.x).all()
        assert (result.distance <= 0.1 * (1 + 1e-6)).all()


def test_a_seed_fixes_every_bit(given: Any) -> None:
    net, x, y = given
    for attack in (apgd(L1(0.5), 12, restarts=2), apgd_targeted(L2(0.2), 12, 2)):
        one, two = attack(net, x, y, seed=7), attack(net, x, y, seed=7)
        assert torch.equal(one.x, two.x) and torch.equal(one.success, two.success)
        assert not torch.equal(attack(net, x, y, seed=8).x, one.x)


def test_errors_say_what_to_use_instead(given: Any) -> None:
    net, x, y = given
    with pytest.raises(KindError, match="L0 has no APGD.*use pgd"):
        apgd(L0(3))(net, x, y)
    with pytest.raises(KindError, match="Deletion has no APGD"):
        apgd(Deletion())(net, x, y)
    for recipe in (apgd, apgd_targeted):
        with pytest.raises(InputError, match="has no eps"):
            recipe(L2())
    with pytest.raises(InputError, match="choose 'dlr' or 'margin'"):
        apgd_targeted(Linf(0.1), objective="cross_entropy")
    three = filled(nn.Sequential(nn.Flatten(), nn.Linear(18, 3)), 3).double()
    y = three(x).argmax(1)
    with pytest.raises(InputError, match="needs 4 classes and the model has 3.*margin"):
        apgd_targeted(Linf(0.1))(three, x, y)
    two = filled(nn.Sequential(nn.Flatten(), nn.Linear(18, 2)), 3).double()
    with pytest.raises(InputError, match="needs 3 classes and the model has 2.*margin"):
        apgd(Linf(0.1), objective="dlr")(two, x, two(x).argmax(1))


def test_the_targeted_dlr_is_its_formula() -> None:
    scores = randn(7, 6, seed=21, dtype=torch.float64)
    clean = randn(7, 6, seed=22, dtype=torch.float64)
    index = torch.arange(7)
    rows = Rows(index, index, torch.zeros(7, 1), clean.argmax(1), scores=clean)
    order = clean.argsort(1, descending=True)
    for place in (1, 2, 5):
        value = EachRival("dlr", place=place)(View(None, rows, rows.x, scores=scores))  # type: ignore[arg-type]
        exact = [
            float(slow.targeted_dlr(int(order[i, place]))(scores[i], int(rows.y[i])))
            for i in range(7)
        ]
        torch.testing.assert_close(value, torch.tensor(exact, dtype=torch.float64))
    aimed = replace(rows, target=order[:, 3])
    towards = EachRival("dlr")(View(None, aimed, rows.x, scores=scores))  # type: ignore[arg-type]
    value = EachRival("dlr", place=3)(View(None, rows, rows.x, scores=scores))  # type: ignore[arg-type]
    torch.testing.assert_close(towards, value)
    places = [EachRival("dlr").for_restart(k, 4).place for k in range(5)]
    assert places == [1, 2, 3, 1, 2]
