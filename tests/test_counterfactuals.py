"""Counterfactuals: the closed form with units and constraints, the threat's judge, restarts."""

from __future__ import annotations

import pytest
import torch
from conftest import LinearCase, filled, linear, linear_case, predicted, rand, randn
from torch import Tensor, nn

from foible import attacks, wrap
from foible.core.errors import InputError, KindError
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.threat import Box
from foible.parts.threats import L1, L2, Features


def rows_of(x: Tensor, y: Tensor | None = None) -> Rows:
    index = torch.arange(len(x))
    return Rows(index, index, x, torch.zeros_like(index) if y is None else y)


def unit(features: int, seed: int = 1) -> Tensor:
    return 0.2 + 3 * rand(features, seed=seed, dtype=torch.float64)


def literal_distance(case: LinearCase, threat: Features, row: int) -> float:
    """The least distance to any class, feature by feature, in the words of the definition: spend
    on the feature that gains most for its unit until it is at its end, then on the next."""
    weight, x, y = case.weight.tolist(), case.x[row].tolist(), int(case.y[row])
    score = (case.weight @ case.x[row] + case.bias).tolist()
    best = float("inf")
    for rival in range(len(weight)):
        if rival == y:
            continue
        offers = []
        for i, value in enumerate(x):
            gain = weight[rival][i] - weight[y][i]
            up = gain > 0
            if i in threat.fixed or i in (threat.falling if up else threat.rising):
                continue
            end = case.bounds[1] if up else case.bounds[0]
            if up and threat.highest is not None:
                end = max(value, min(end, threat.highest[i]))
            if not up and threat.lowest is not None:
                end = min(value, max(end, threat.lowest[i]))
            u = 1.0 if threat.units is None else threat.units[i]
            offers.append((abs(gain) * u, abs(end - value) / u))
        gap, spent = score[y] - score[rival], 0.0
        for rate, room in sorted(offers, reverse=True):
            used = min(room, gap / rate)
            gap, spent = gap - used * rate, spent + used
            if gap <= 1e-12:
                best = min(best, spent)
                break
    return best


@pytest.mark.parametrize(("classes", "wide"), [(2, True), (4, False)])
def test_the_distance_is_that_of_the_closed_form(classes: int, wide: bool) -> None:
    """Row B30's exact bar, 1e-3: in units, with fixed and one-way features, in box and range."""
    case = linear_case(classes, 14, 3, wide=wide)
    ranges = {} if wide else {"lowest": (0.05,) * 12, "highest": (0.9,) * 12}
    threat = Features(units=unit(12), fixed=(1, 4), rising=(2,), falling=(3,), **ranges)
    least = torch.tensor([literal_distance(case, threat, i) for i in range(14)]).double()
    found = attacks.counterfactual(threat)(case.model, case.x, case.y)
    assert torch.equal(found.success, least.isfinite()) and int(found.success.sum()) >= 11
    ratio = (found.distance / least)[found.success]
    assert ratio.min() >= 1 - 1e-6 and ratio.max() <= 1 + 1e-3
    assert wide or case.x.lt(0.05).any()  # some rows lie beyond their range, and may stay there


def test_a_target_and_a_margin_are_reached() -> None:
    case = linear_case(4, 12, 5)
    found = attacks.counterfactual(None, 60, 6, 0.5)(case.model, case.x, case.y, target=case.target)
    scores = found.x @ case.weight.T + case.bias
    at = case.target[:, None]
    lead = scores.gather(1, at).squeeze(1) - scores.scatter(1, at, -torch.inf).amax(1)
    assert found.success.all() and (lead >= 0.5).all()
    torch.testing.assert_close(lead, torch.full((12,), 0.5).double(), rtol=0.02, atol=0)


def test_units_make_no_difference_to_what_is_found() -> None:
    """A feature in metres or in millimetres, each with its unit: the same counterfactual."""
    case, factor = linear_case(3, 10, 7), torch.tensor([1.0, 1000.0, 0.01] * 4).double()
    endless = (-float("inf"), float("inf"))
    model = wrap(linear(case.weight, case.bias), endless)
    plain = attacks.counterfactual(steps=40)(model, case.x, case.y)
    scaled = wrap(linear(case.weight / factor, case.bias), endless)
    attack = attacks.counterfactual(Features(units=factor), steps=40)
    found = attack(scaled, case.x * factor, case.y)
    torch.testing.assert_close(found.x / factor, plain.x, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.distance, plain.distance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["counterfactual", "fab", "fmn", "ead", "pgd", "apgd"])
def test_no_attack_ever_breaks_a_constraint(mlp: nn.Module, name: str, dtype) -> None:
    """B30's other exact bar, on every attack in L1; large values, where rounding is coarse."""
    x = (1e4 * rand(11, 10, seed=4, dtype=torch.float64)).to(dtype)
    net = nn.Sequential(linear(torch.eye(10).double() / 1e4, torch.zeros(10).double())[1], mlp)
    model = wrap(net.to(dtype), (0.0, 1.2e4))
    threat = Features(
        units=1e4 * unit(10), fixed=(0, 5), rising=(1, 2), falling=(8,),
        lowest=[500.0] * 10, highest=[9000.0] * 10,
    )  # fmt: skip
    budget = Features(0.8, **{n: getattr(threat, n) for n in
                      ("units", "fixed", "rising", "falling", "lowest", "highest")})  # fmt: skip
    attack = {
        "counterfactual": lambda: attacks.counterfactual(threat, 30, 4),
        "fab": lambda: attacks.fab(threat, 8),
        "fmn": lambda: attacks.fmn(threat, 20),
        "ead": lambda: attacks.ead(threat, 20, 3),
        "pgd": lambda: attacks.pgd(budget, 10),
        "apgd": lambda: attacks.apgd(budget, 10, "margin"),
    }[name]()
    found = attack(model, x, predicted(model, x))
    assert found.success.any() and not torch.equal(found.x, x)
    change = found.x - x
    assert (change[:, [0, 5]] == 0).all()
    assert (change[:, [1, 2]] >= 0).all() and (change[:, 8] <= 0).all()
    slack = 1e-7 * 9000
    assert (found.x <= x.clamp_min(9000 + slack)).all() and (found.x >= x.clamp_max(500)).all()
    if name in ("pgd", "apgd"):
        assert float(found.distance.max()) <= 0.8 * (1 + 1e-6) + 2e-7


def test_the_threat_is_one() -> None:
    """Starts and projections lie inside, the distance is the sum in units, z is in units."""
    x = rand(6, 2, 3, seed=2, dtype=torch.float64)
    threat = Features(1.5, units=unit(6), fixed=(2,), rising=(0,), highest=(0.9,) * 6)
    threat = threat.inside((0.0, 1.0))
    rows = rows_of(x)
    rows = Rows(rows.index, rows.id, x, rows.y, eps=threat.radii(6, x))
    z = threat.project(rows, 5 * randn(6, 2, 3, seed=3, dtype=torch.float64))
    for point in (z, threat.start(rows, Rng(0).at(rows.id)), threat.clean(rows)):
        x_adv = threat.render(rows, point)
        assert threat.contains(rows, x_adv).all()
        torch.testing.assert_close(threat.distance(rows, x_adv), point.flatten(1).abs().sum(1))
    torch.testing.assert_close(threat.project(rows, z), z)
    by_hand = ((threat.render(rows, z) - x).flatten(1).abs() / unit(6)).sum(1)
    torch.testing.assert_close(threat.distance(rows, threat.render(rows, z)), by_hand)


@pytest.mark.parametrize(
    ("place", "by", "fine"),
    [(2, 1e-9, False), (0, -1e-9, False), (0, 0.1, True), (1, 1e-9, False), (1, -0.1, True),
     (3, 0.4, False), (3, 0.2, True), (4, -0.1, False), (5, 0.6, False), (5, -0.4, True)],
)  # fmt: skip
def test_the_judge_sees_every_breach(place: int, by: float, fine: bool) -> None:
    threat = Features(fixed=(2,), rising=(0,), falling=(1,), lowest=(0.5,) * 6, highest=(0.8,) * 6)
    x = torch.full((1, 6), 0.5, dtype=torch.float64)
    x[:, [1, 5]] = 0.9  # beyond the range already: it may stay, and come back
    changed = x.clone()
    changed[0, place] += by
    judged = threat.inside((0.0, 1.0)).contains(rows_of(x), changed)
    assert bool(judged) == fine and bool(threat.contains(rows_of(x), x))


def test_units_are_measured_on_data() -> None:
    data = torch.tensor([[1.0, 0, 5, 7], [2, 0, 5, 7], [4, 0, 5, 9], [9, 1, 5, 7], [3, 0, 5, 7]])
    threat = Features.of(data, fixed=(0,))
    # |x - 3| is 2, 1, 1, 6, 0, and its median 1; more than half of the others agree.
    assert threat.units[0] == 1.0 and threat.units[2] == 1.0
    assert threat.units[1] == pytest.approx(0.2**0.5) and threat.units[3] == pytest.approx(0.8**0.5)
    assert threat.fixed == (0, 2)
    assert threat.lowest == (1, 0, 5, 7) and threat.highest == (9, 1, 5, 9)


def two_ways(x: Tensor) -> Tensor:
    """Class 1 beyond 1 in the first feature or, a little farther, in the second."""
    return torch.stack([torch.ones(len(x)).to(x), x[:, 0].maximum(0.8 * x[:, 1])], 1)


class TwoWays(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return two_ways(x)


def test_restarts_find_the_other_way() -> None:
    x = torch.full((4, 3), 0.2, dtype=torch.float64)
    y, model = torch.zeros(4, dtype=torch.int64), wrap(TwoWays(), (-5, 5))
    attack = attacks.counterfactual(steps=50, searches=5)
    found = attacks.alternatives(attack, model, x, y, count=5)
    assert found.x.shape == (4, 5, 3) and found.success.all()
    assert (found.distance.diff(dim=1) >= 0).all()
    torch.testing.assert_close(found.distance[:, 0], torch.full((4,), 0.8).double(), rtol=5e-3,
                               atol=0)  # fmt: skip
    ways = (found.x != 0.2)[:, :, :2].double().mean((0, 1))
    assert (found.distinct >= 2).any() and (found.distinct <= 3).all() and (ways > 0).all()
    assert not (found.x[:, :, 2] != 0.2).any()
    assert torch.equal(found.label, torch.ones_like(found.label))
    case = linear_case(2, 4, 3)
    alone = attacks.alternatives(attack, case.model, case.x, case.y, count=3)
    assert alone.distinct.tolist() == [1] * 4


def test_a_restart_that_is_cut_back_to_the_clean_input_finds_its_way() -> None:
    """Where two features may each go one way, a quarter of the starts are the clean input."""
    case = linear_case(2, 8, 3, features=2)
    sign = case.weight[1] - case.weight[0]
    toward = sign if int(case.y[0]) == 0 else -sign
    up = tuple(int(i) for i in (toward > 0).nonzero().flatten())
    way = Features(rising=up, falling=tuple({0, 1} - set(up)))
    same = (case.y == case.y[0]).nonzero().flatten()
    attack = attacks.counterfactual(way, 40, 5)
    found = attacks.alternatives(attack, case.model, case.x[same], case.y[same], count=5)
    assert found.success.all()
    # The features are worth 0.71 and 0.79: so few steps need not tell them apart.
    assert (found.distance[:, 4] <= found.distance[:, 0] * 0.79 / 0.71).all()


def test_restarts_repeat_themselves_and_count_failures() -> None:
    net = filled(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), 3, 2.0).double()
    x = rand(5, 4, seed=1, dtype=torch.float64)
    y, near = predicted(net, x), Features(units=[0.5] * 4, highest=[1.0] * 4, lowest=[0.0] * 4)
    attack = attacks.counterfactual(near, 20, 3)
    one, two = (attacks.alternatives(attack, net, x, y, count=3, seed=5) for _ in range(2))
    assert torch.equal(one.x, two.x) and torch.equal(one.distinct, two.distinct)
    stuck = attacks.counterfactual(Features(fixed=(0, 1, 2, 3)), 5, 2)
    none = attacks.alternatives(stuck, net, x, y, count=2)
    assert not none.success.any() and none.distinct.tolist() == [0] * 5
    assert none.distance.isinf().all()


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Features(units=(1.0, 0.0)), InputError, "units hold 0.0"),
        (lambda: Features(units="all"), KindError, "one number a feature"),
        (lambda: Features(fixed=(-1,)), InputError, "counted from 0"),
        (lambda: Features(fixed=(True,)), InputError, "counted from 0"),
        (lambda: Features(lowest=(1.0,), highest=(0.0,)), InputError, "above its highest"),
        (lambda: Features.of(torch.ones(1, 3)), InputError, "two at least"),
        (lambda: attacks.counterfactual(L2()), KindError, "short in L1"),
        (lambda: attacks.counterfactual(steps=0), InputError, "steps=0"),
        (lambda: run(Features(units=(1.0,) * 3)), InputError, "3 numbers and a row has 12"),
        (lambda: run(Features(fixed=(12,))), InputError, "place 12 is named"),
    ],
)
def test_what_cannot_be_is_refused(make, error, says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def run(threat: L1) -> None:
    case = linear_case(2, 2, 1)
    attacks.counterfactual(threat, 2, 1)(case.model, case.x, case.y)


def test_restarts_refuse_what_cannot_be() -> None:
    case = linear_case(2, 2, 1)
    with pytest.raises(InputError, match="count=0"):
        attacks.alternatives(attacks.counterfactual(), case.model, case.x, case.y, count=0)
    with pytest.raises(KindError, match="cannot begin elsewhere"):
        attacks.alternatives(attacks.fab(L1()), case.model, case.x, case.y)


def test_a_box_without_ends_is_no_limit() -> None:
    assert Features().inside((-float("inf"), float("inf"))).box == Box()
    case = linear_case(2, 4, 9)
    model = wrap(linear(case.weight, case.bias), (-float("inf"), float("inf")))
    assert attacks.counterfactual(steps=20)(model, case.x, case.y).success.all()
