"""Attacks that see labels only: near the optimum, within the cap, whatever the model's shape."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conftest import Counter, linear_case, predicted, rand, randn, softened
from minimum import measure
from replicas import decision as paper
from torch import Tensor, nn

import foible
from foible.attacks import Attack, boundary, hop_skip_jump
from foible.attacks.decision_based import Starts
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.problem import Fooled, Problem
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.search import Evaluation
from foible.models import wrap
from foible.parts.searches import border, probing
from foible.parts.searches.border import Flipped
from foible.parts.searches.boundary import sphere
from foible.parts.searches.hop_skip_jump import HopSkipJump
from foible.parts.threats import L1, L2, Linf

MAKERS: dict[str, Any] = {
    "hop-l2": lambda q, **k: hop_skip_jump(L2(), q, **k),
    "hop-linf": lambda q, **k: hop_skip_jump(Linf(), q, **k),
    "boundary": lambda q, **k: boundary(L2(), q, **k),
}


class OneHot(nn.Module):
    """A service that gives away the label and nothing else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(x)
        return torch.zeros_like(scores).scatter(1, scores.argmax(1, keepdim=True), 1.0)


class Mostly(nn.Module):
    """Class 0 wherever the first value is below 0.9, else class 1; never class 2."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0]
        return torch.stack([0.9 - first, first - 0.9, torch.full_like(first, -9.0)], 1)


def rows_of(x: Tensor, y: Tensor, target: Tensor | None = None) -> Rows:
    index = torch.arange(len(x))
    return Rows(index, index, x, y, target)


# ---------------------------------------------------------------- closed form


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("classes", "wide", "to_target"), [(2, True, False), (4, False, True), (10, False, False)]
)
def test_the_median_is_near_the_optimum(name: str, classes: int, wide: bool, to_target: bool):
    """The nearest class may be missed from a random start, so the worst case has no bar."""
    queries = 600 if name == "boundary" else 2000
    norm = "linf" if name == "hop-linf" else "l2"
    ours = dataclasses.replace(MAKERS[name](queries))
    found = measure(lambda threat: ours.within(threat), norm, classes, wide, to_target)
    assert found.success >= 0.95 and found.median <= 1.05
    if classes == 2:
        assert found.worst <= 1.1


@pytest.mark.parametrize("name", ["hop-l2", "boundary"])
def test_kinds_of_noise_pay_on_images(name: str) -> None:
    net, (x, y) = foible.zoo.load("standard"), foible.zoo.sample()
    x, y = x[:6], predicted(net, x[:6])
    ours, plain = (MAKERS[name](300, plain=p)(net, x, y).distance for p in (False, True))
    assert ours.isfinite().all() and (ours / plain).log().mean().exp() <= 0.8


# ---------------------------------------------------------------- labels, caps, chunks


@pytest.mark.parametrize("name", MAKERS)
def test_labels_are_all_that_is_used(name: str, case: Any) -> None:
    model, x, y = case
    attack: Attack = MAKERS[name](150)
    assert attack.access == Access.LABELS
    seen = attack(Counter(model, level=Access.LABELS), x, y)
    blind = attack(wrap(OneHot(model.net)), x, y)
    assert torch.equal(seen.x, blind.x) and seen.success.all()
    assert torch.equal(seen.forwards, blind.forwards) and int(seen.backwards.sum()) == 0


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("to_target", [False, True])
def test_the_cap_is_spent_and_never_exceeded(name: str, to_target: bool) -> None:
    case = linear_case(4, 9, 5)
    for queries in (3, 4, 5, 11, 30, 61, 150):
        counter = Counter(case.model, at_most=7)
        target = case.target if to_target else None
        found = MAKERS[name](queries)(counter, case.x, case.y, target=target)
        assert counter.forwards == int(found.forwards.sum())
        assert int(found.forwards.max()) <= queries
        if queries > 50:  # a start is found, and not one query is left unused
            assert found.success.all() and int(found.forwards.min()) >= queries - 2


@pytest.mark.parametrize("name", MAKERS)
def test_more_queries_come_closer(name: str, case: Any) -> None:
    model, x, y = case
    few, many = (MAKERS[name](q)(model, x, y).distance for q in (60, 600))
    assert (many <= few * 1.001).double().mean() > 0.8 and many.median() < 0.9 * few.median()


@pytest.mark.parametrize("name", MAKERS)
def test_one_seed_gives_one_result_whatever_the_chunk(name: str, case: Any) -> None:
    model, x, y = case
    attack = MAKERS[name](120)
    whole = attack(Counter(model, at_most=1000), x, y, seed=4)
    small = attack(Counter(model, at_most=4), x, y, seed=4)
    torch.testing.assert_close(whole.distance, small.distance, rtol=1e-6, atol=1e-9)
    assert torch.equal(whole.forwards, small.forwards)
    some = torch.tensor([2, 11, 17])
    alone = attack(model, x[some], y[some], seed=4, ids=some)
    torch.testing.assert_close(alone.distance, whole.distance[some], rtol=1e-6, atol=1e-9)
    assert not torch.equal(attack(model, x, y, seed=5).x, whole.x)


@pytest.mark.parametrize("name", ["hop-l2", "boundary"])
def test_within_an_eps_a_sample_stops_at_once(name: str, case: Any) -> None:
    model, x, y = case
    least = MAKERS[name](800)(model, x, y).distance
    attack = MAKERS[name](800).within(L2(1.3 * least))
    attack = dataclasses.replace(attack, stop="success")
    found = attack(model, x, y)
    assert (hop_skip_jump(L2(1.0)).stop, hop_skip_jump(L2()).stop) == ("success", "never")
    assert found.success.all() and (found.distance <= 1.3 * least * (1 + 1e-5)).all()
    assert float(found.forwards.double().mean()) < 500
    none = dataclasses.replace(attack, threat=L2(0.5 * least))(model, x, y)
    assert not none.success.any() and int(none.forwards.max()) <= 800


# ---------------------------------------------------------------- starts


@pytest.mark.parametrize("name", MAKERS)
def test_without_a_start_a_sample_survives(name: str) -> None:
    x = rand(5, 6, seed=3) * 0.5
    y = torch.zeros(5).long()
    target = torch.tensor([2, 2, 1, 1, 1])
    found = MAKERS[name](90, tries=30)(wrap(Mostly(), bounds=(0, 1)), x, y, target=target)
    assert found.status == ["survived"] * 2 + ["fooled"] * 3
    assert found.distance[:2].isinf().all() and torch.equal(found.x[:2], x[:2])
    assert int(found.forwards[:2].max()) < 40 and found.x.isfinite().all()
    constant = MAKERS[name](40)(wrap(Mostly(), bounds=(0, 0.8)), x, y)
    assert constant.status == ["survived"] * 5 and int(constant.forwards.max()) <= 40


def test_a_target_starts_at_the_nearest_sample_with_that_label() -> None:
    case = linear_case(4, 30, 8)
    rows = rows_of(case.x, case.y, case.target)
    ready = Starts("linf")(Oracle(case.model, 30, Access.LABELS), rows, 0)
    labels = predicted(case.model, case.x)
    for row in range(30):
        apart = (case.x - case.x[row]).abs().amax(1)
        apart[labels != case.target[row]] = float("inf")
        assert torch.equal(ready.extra["start"][row], case.x[apart.argmin()])
    free = Starts("l2")(Oracle(case.model, 30, Access.LABELS), rows_of(case.x, case.y), 0)
    assert (predicted(case.model, free.extra["start"]) != case.y).all()
    lonely = rows_of(case.x[:1], case.y[:1])
    same = Starts("l2")(Oracle(case.model, 1, Access.LABELS), lonely, 0)
    assert torch.equal(same.extra["start"], case.x[:1])


def test_a_neighbour_helps_where_noise_fails() -> None:
    """Of 40 values all must be high for class 1: no random input is, a neighbour is."""

    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            least = x.flatten(1).amin(1)
            return torch.stack([0.45 - least, least - 0.45], 1)

    x = rand(4, 40, seed=9) * 0.5
    x[3] = 0.5 + 0.4 * x[3]
    y = torch.tensor([0, 0, 0, 1])
    found = hop_skip_jump(L2(), 200, tries=1)(wrap(Rare(), bounds=(0, 1)), x, y)
    assert found.status == ["fooled"] * 4
    alone = hop_skip_jump(L2(), 200, tries=1)(wrap(Rare(), bounds=(0, 1)), x[:1], y[:1])
    assert alone.status == ["survived"]


def test_bisection_ends_at_the_border() -> None:
    case = linear_case(2, 6, 3)
    threat = L2().inside(case.bounds)
    rows, far = rows_of(case.x, case.y), 40 * randn(6, 12, seed=2, dtype=torch.float64)
    asked = 0

    def evaluate(z: Tensor, rows: Rows | None = None, *_: Any, **__: Any) -> Evaluation:
        nonlocal asked
        asked += len(z)
        beyond = predicted(case.model, rows.x + z) != rows.y
        return Evaluation(beyond.double(), beyond, None, None)

    far = torch.where(border.beyond(evaluate, rows, far)[:, None], far, -far)
    for norm in (threat, Linf().inside(case.bounds)):
        near = border.bisect(evaluate, rows, norm, far, 1e-4)
        assert border.beyond(evaluate, rows, near).all()
        back = border.blend(norm.norm, near, torch.full((6,), 1 - 1.1e-4, dtype=torch.float64))
        assert not border.beyond(evaluate, rows, back).any()
        assert norm.length(near).max() < norm.length(far).max() / 3
    assert asked <= 6 * 64


# ---------------------------------------------------------------- key steps


@pytest.mark.parametrize("number", [20, 300])
def test_the_normal_is_the_papers(number: int) -> None:
    """Against the replica, on the probes that were really asked; 300 come in three draws."""
    case = linear_case(2, 3, 4)
    n, points = randn(12, seed=1, dtype=torch.float64), []
    z = randn(3, 12, seed=2, dtype=torch.float64)
    level = z @ n

    def evaluate(at: Tensor, rows: Rows | None = None, *_: Any, **__: Any) -> Evaluation:
        points.append((rows.index, at))
        value = (at @ n > level[rows.index] * 0.98).double()
        return Evaluation(value, value > 0, None, None)

    rows = rows_of(case.x, case.y)
    problem = Problem(
        Oracle(case.model, 3, Access.LABELS), L2().inside(case.bounds), Flipped(), Fooled()
    )
    plan = (torch.full((3,), number), torch.tensor([0, 1, 0]))
    got = HopSkipJump()._normal(problem, rows, evaluate, z, plan, Rng(0).at(rows.id))
    whose, at = (torch.cat(part) for part in zip(*points, strict=True))
    for row in range(3):
        mine = at[whose == row]
        assert len(mine) == number
        limit = level[row] * 0.98
        want = paper.normal(lambda p, limit=limit: 1 if p @ n > limit else -1, z[row], mine)
        torch.testing.assert_close(got[row], want)
    if number == 300:
        assert torch.cosine_similarity(got[1], n, 0) > 0.95  # white noise has no bias


def test_a_step_across_keeps_the_distance() -> None:
    z, u = randn(7, 9, seed=1, dtype=torch.float64), randn(7, 9, seed=2, dtype=torch.float64)
    got = sphere(z, u, torch.full((7, 1), 0.3, dtype=torch.float64))
    want = torch.stack([paper.across(a, b, 0.3) for a, b in zip(z, u, strict=True)])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got.norm(dim=1), z.norm(dim=1))


def test_noise_has_its_kinds_frequencies() -> None:
    wave = probing.waves(8, 8)
    torch.testing.assert_close(wave @ wave.T, torch.eye(8, dtype=torch.float64))
    assert (probing.waves(3, 8) == wave[:3]).all()
    x = rand(2, 3, 8, 8, seed=1, dtype=torch.float64)
    rows = rows_of(x, torch.zeros(2).long())
    z = randn(2, 192, seed=2, dtype=torch.float64)
    z[:, 100:] = 0
    made = {k: probing.noise(k, Rng(0).at(rows.id), 400, rows, z) for k in probing.FIRST_GAIN}
    assert all(u.shape == (2, 400, 192) for u in made.values())
    for kind, kept in (("quarter", 2), ("half", 4)):
        spectrum = wave @ made[kind].view(2, 400, 3, 8, 8) @ wave.T
        torch.testing.assert_close(spectrum[..., :kept, :kept].std(), torch.tensor(1.0).double(),
                                   rtol=0.05, atol=0)  # fmt: skip
        spectrum[..., :kept, :kept] = 0
        assert spectrum.abs().max() < 1e-12
    spread = made["grown"].std(1)
    torch.testing.assert_close(
        spread[:, 100:], torch.full((2, 92), 0.1).double(), rtol=0.25, atol=0
    )
    assert torch.corrcoef(torch.stack([spread[0, :100], z[0, :100].abs().sqrt()]))[0, 1] > 0.95
    assert probing.kinds_for(rows_of(x.flatten(1), rows.y), False) == ("grown", "white")
    assert probing.kinds_for(rows, True) == ("white",) and len(probing.kinds_for(rows, False)) == 4


# ---------------------------------------------------------------- any model, and what is refused


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("shape", "classes", "dtype"),
    [((10,), 2, torch.float64), ((1, 5, 5), 3, torch.float32), ((6, 6, 3), 10, torch.float32),
     ((1,), 2, torch.float32), ((2, 4, 4), 1000, torch.float64)],
)  # fmt: skip
def test_any_shape_class_count_and_dtype(
    name: str, shape: tuple[int, ...], classes: int, dtype: torch.dtype
) -> None:
    size = int(torch.tensor(shape).prod())
    layer = nn.Linear(size, classes).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(randn(classes, size, seed=1, dtype=dtype))
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    net = nn.Sequential(nn.Flatten(), layer)
    x = rand(4, *shape, seed=2, dtype=dtype)
    x[0], x[1] = x[0].round(), 0.0  # at the ends of the box
    y = predicted(net, x)
    found = MAKERS[name](120)(wrap(net, bounds=(0, 1)), x, y)
    assert found.success.all() and found.x.isfinite().all() and found.x.dtype == dtype
    assert float(found.x.min()) >= 0 and float(found.x.max()) <= 1
    one = MAKERS[name](120)(wrap(net, bounds=(0, 1)), x[:1], y[:1])
    torch.testing.assert_close(one.distance, found.distance[:1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_a_box_without_ends_and_a_single_logit(name: str) -> None:
    net = nn.Linear(3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3.0, 4.0, 0.0]]))
        net.bias.fill_(-500.0)
    model = wrap(net, outputs="logit", bounds=(float("-inf"), float("inf")))
    found = MAKERS[name](400)(model, torch.zeros(2, 3), torch.zeros(2).long())
    optimum = 500 / 7 if name == "hop-linf" else 100.0
    assert found.success.all()
    assert (found.distance >= optimum - 1e-3).all() and (found.distance <= 1.1 * optimum).all()


def test_what_is_refused() -> None:
    model, x = wrap(softened()), rand(2, 10, seed=1, dtype=torch.float64)
    y = predicted(model, x)
    with pytest.raises(KindError, match="no HopSkipJump"):
        hop_skip_jump(L1(), 60)(model, x, y)
    with pytest.raises(KindError, match="no boundary attack"):
        boundary(Linf(), 60)(model, x, y)
    for make in (
        lambda: boundary(L2(), tries=0), lambda: boundary(L2(), 2),
        lambda: hop_skip_jump(L2(), probes=0), lambda: hop_skip_jump(L2(), 1),
    ):  # fmt: skip
        with pytest.raises(InputError):
            make()
