"""What the core and the attack around it do at their edges: the last one allowed, and one more."""

from __future__ import annotations

import pytest
import torch
from conftest import Counter, linear_case, randn
from torch import Tensor

from foible import attacks
from foible.attacks import base
from foible.core.access import Meter
from foible.core.errors import ModelError
from foible.core.oracle import Oracle
from foible.parts.searches import linearised, penalty
from foible.parts.threats import L1, L2, Ball, Linf

F64 = torch.float64


@pytest.mark.parametrize(
    ("n", "lost", "refused"),
    [
        (10, 2, False),
        (10, 3, True),
        (149, 2, False),
        (149, 3, True),
        (150, 3, False),
        (150, 4, True),
    ],
)
def test_more_than_one_success_in_fifty_lost_is_a_random_model(n, lost, refused) -> None:
    """At least two may be lost, to rounding, however few there are."""
    held = torch.ones(n, dtype=torch.bool)
    verdict = held.clone()
    verdict[:lost] = False
    if refused:
        with pytest.raises(ModelError, match=f"{lost} of {n} successes did not hold"):
            base._agree(held, verdict, n)
    else:
        base._agree(held, verdict, n)
    base._agree(~held, verdict, n)  # what never held cannot be lost


def test_an_attack_within_another_threat_is_a_copy() -> None:
    attack = attacks.pgd(Linf(0.1), 7)
    other = attack.within(L2(0.5))
    assert other.threat == L2(0.5) and other.search == attack.search and attack.threat == Linf(0.1)


@pytest.mark.parametrize(("looks", "wanted"), [((), 1), ((3,), 3)])
def test_the_meter_counts_looks_and_repeats(looks: tuple[int, ...], wanted: int) -> None:
    meter = Meter(3, *looks)
    meter.count(torch.tensor([0, 2, 2]))
    meter.count(torch.tensor([1]), backward=True)
    assert meter.forwards.tolist() == [wanted, 0, 2 * wanted]
    assert meter.backwards.tolist() == [0, wanted, 0]


def test_a_jacobian_is_off_the_graph_and_a_linear_models_weights() -> None:
    case = linear_case(4, 3, 5)
    oracle = Oracle(Counter(case.model), 3)
    rows = attacks.pgd(Linf(0.1)).rows(Linf(0.1), case.x, case.y, None, None)
    classes = torch.tensor([[0, 3], [2, 1], [1, 1]])
    with oracle.session(0):
        scores, grads = oracle.jacobian(case.x, rows, classes)
    assert not scores.requires_grad and not grads.requires_grad
    torch.testing.assert_close(scores, case.x @ case.weight.T + case.bias)
    torch.testing.assert_close(grads, case.weight[classes])
    assert oracle.meter.forwards.tolist() == [1, 1, 1]
    assert oracle.meter.backwards.tolist() == [2, 2, 2]


def test_the_graph_behind_class_gradients_is_used_up(case) -> None:
    """It holds every activation of the model: kept, a search would hold one a step."""
    model, x, y = case
    oracle = Oracle(model, len(x))
    rows = attacks.pgd(Linf(0.1)).rows(Linf(0.1), x, y, None, None)
    with oracle.session(0), torch.enable_grad():
        leaf = x.clone().requires_grad_()
        scores = oracle.scores(leaf, rows)
        oracle.class_grads(scores, torch.stack([y, 1 - y.clamp(0, 1)], 1), leaf, rows)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(scores.sum(), leaf)


@pytest.mark.parametrize("attack", [attacks.pgd(Linf(0.1), 3), attacks.fab(L2(), 3), attacks.nes(
    Linf(0.1), 20, 4)])  # fmt: skip
def test_a_model_for_one_sample_at_a_time_is_asked_for_one(attack) -> None:
    case = linear_case(3, 4, 7)
    model = Counter(case.model, at_most=1)
    attack(model, case.x, case.y)
    assert set(model.sizes) == {1}


# --- the measures that minimum-norm attacks are steered by


@pytest.mark.parametrize("threat", [Linf(), L2(), L1()])
def test_the_linearised_distance_is_the_exact_one_of_a_plane(threat: Ball) -> None:
    """gap / dual norm, where the box is far away; the objective rises by the dual norm a unit."""
    g, gap = randn(5, 7, seed=1, dtype=F64), torch.tensor([0.1, 0.5, 1.0, 2.0, 0.01], dtype=F64)
    case = linear_case(3, 5, 3, features=7)
    rows = attacks.pgd(Linf(0.1)).rows(Linf(0.1), case.x, case.y, None, None)
    problem = base.Problem(
        Oracle(case.model, 5), threat.inside((-100.0, 100.0)), base.CrossEntropy(), base.Fooled()
    )
    size, slope, peak = penalty.linearised(problem, rows, -gap, g)
    order = {"linf": 1, "l2": 2, "l1": float("inf")}[threat.norm]
    dual = torch.linalg.vector_norm(g, ord=order, dim=1)
    torch.testing.assert_close(size, gap / dual)
    torch.testing.assert_close(slope, dual)
    widest = {"linf": gap / dual, "l1": gap / dual}.get(
        threat.norm, gap * g.abs().amax(1) / dual.square()
    )
    torch.testing.assert_close(peak, widest)


def test_the_next_weight_is_between_or_beyond() -> None:
    inf = float("inf")
    low = torch.tensor([3.0, 2.0, 0.0, 1.0, 5e12], dtype=F64)
    high = torch.tensor([inf, inf, 4.0, 100.0, inf], dtype=F64)
    assert penalty.middle(low, high).tolist() == [30.0, 20.0, 2.0, 10.0, 5e12]
    assert penalty.middle(low, high, 2.0).tolist() == [6.0, 4.0, 2.0, 10.0, 5e12]


@pytest.mark.parametrize("to_target", [False, True])
def test_rivals_are_the_likeliest_other_classes_and_the_margin_is_to_them(to_target: bool) -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, -1.0], [0.0, 5.0, 4.0, 4.5]], dtype=F64)
    y, target = torch.tensor([0, 1]), torch.tensor([2, 0])
    rows = attacks.pgd(Linf(0.1)).rows(
        Linf(0.1), torch.zeros(2, 3, dtype=F64), y, target if to_target else None, None
    )

    def told(most: int) -> list[list[int]]:
        return linearised.rivals(scores, rows, most).tolist()

    if to_target:
        assert told(3) == [[2, 0, 1], [0, 1, 3]] and told(9) == [[2, 0, 1, 3], [0, 1, 3, 2]]
        assert linearised.margin(scores, rows).tolist() == [2.0 - 3.0, 0.0 - 5.0]
    else:
        assert told(3) == [[0, 2, 1], [1, 3, 2]] and told(9) == [[0, 2, 1, 3], [1, 3, 2, 0]]
        assert linearised.margin(scores, rows).tolist() == [2.0 - 3.0, 4.5 - 5.0]


def norms(threat: Ball, change: Tensor) -> Tensor:
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[threat.norm]
    return torch.linalg.vector_norm(change, ord=order, dim=1)


@pytest.mark.parametrize("box", [(0.0, 1.0), (0.0, 255.0), (-3.0, 1.0)])
@pytest.mark.parametrize("threat", [Linf(0.25), L2(0.25), L1(0.25)])
def test_the_judge_allows_the_stated_rounding_and_no_more(threat: Ball, box) -> None:
    """A millionth of eps and a ten-millionth of the box's width."""
    bound = threat.inside(box)
    x = torch.full((4, 5), 0.5, dtype=F64)
    rows = attacks.pgd(threat).rows(bound, x, torch.zeros(4).long(), None, None)
    slack = 1e-6 * 0.25 + 1e-7 * (box[1] - box[0])
    way = randn(4, 5, seed=3, dtype=F64)
    way /= norms(threat, way)[:, None]
    for share, inside in ((0.98, True), (1.02, False)):
        moved = x + way * (0.25 + share * slack)
        if box[1] - box[0] < 10:
            assert moved.min() > box[0] and moved.max() < box[1]
        assert bound.contains(rows, moved).tolist() == [inside] * 4
