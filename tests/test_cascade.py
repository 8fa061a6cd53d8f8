"""Cascades: survivors only, an honest ledger, a budget that holds, and the published sets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import Counter, LinearCase, linear_case, predicted
from torch import Tensor, nn

import foible
from foible.attacks import Cascade, Stage, autoattack, fgsm, pgd, square, strongest
from foible.attacks.ensembles import SETS, strongest_set
from foible.core.spec import build, spec
from foible.core.threat import Threat
from foible.models import wrap
from foible.parts.threats import L0, L1, L2, Linf


def weak_then_strong(threat: Threat, classes: int) -> tuple[Stage, ...]:
    return (
        Stage("one", fgsm(threat)),
        Stage("many", pgd(threat, 20, objective="margin", restarts=2)),
        Stage("box", square(threat, 40), 0.5),
    )


@pytest.fixture
def victim() -> LinearCase:
    return linear_case(4, 40, 8)


def test_each_stage_tries_survivors_only(victim: LinearCase) -> None:
    counted = Counter(victim.model)
    attack = Cascade("two", Linf(0.02), weak_then_strong)
    result = attack(counted, victim.x, victim.y)
    one, many, box = result.stages
    assert one.tried == 40 and many.tried == 40 - one.broke > 0
    assert box.tried == -(-(many.tried - many.broke) // 2)
    assert one.broke + many.broke + box.broke == int(result.success.sum())
    assert [result.broken_by.count(s.name) for s in result.stages] == [
        s.broke for s in result.stages
    ]
    # The ledger is what an outsider counts: the clean look, then the stages.
    assert (
        counted.forwards
        == int(result.forwards.sum())
        == 40 + sum(s.forwards for s in result.stages)
    )
    assert counted.backwards == int(result.backwards.sum())
    assert torch.equal(result.label, predicted(victim.model, result.x))
    assert (result.distance[result.success] <= 0.02 * (1 + 1e-6)).all()


def test_a_cap_counts_its_own_stage_only(victim: LinearCase) -> None:
    alone = square(Linf(0.02), 40)(victim.model, victim.x, victim.y)
    attack = Cascade("late", Linf(0.02), weak_then_strong)
    late = attack(victim.model, victim.x, victim.y).stages[-1]
    assert int(alone.forwards.max()) <= 40
    assert late.tried > 0 and late.forwards > 20 * (late.tried - late.broke)
    assert late.forwards <= 40 * late.tried


def test_wrong_samples_are_left_alone(victim: LinearCase) -> None:
    y = victim.y.clone()
    y[3] = (y[3] + 1) % 4
    result = Cascade("two", Linf(0.02), weak_then_strong)(victim.model, victim.x, y)
    assert result.status[3] == "wrong" and result.broken_by[3] == ""
    assert torch.equal(result.x[3], victim.x[3]) and int(result.forwards[3]) == 1


def test_a_budget_holds_and_says_what_it_left_out(victim: LinearCase) -> None:
    threat = Linf(0.005)
    for budget in (40, 150):
        result = strongest(threat, budget)(victim.model, victim.x, victim.y)
        calls = int((result.forwards + result.backwards).sum())
        assert calls <= 40 * budget
    poor = strongest(threat, 60)(victim.model, victim.x, victim.y)
    assert "budget left out" in poor.advice
    assert poor.advice.startswith(f"{int((~poor.success).sum())} of 40 samples survive")
    rich = strongest(threat, 5000)(victim.model, victim.x, victim.y)
    assert "budget" not in rich.advice and rich.robust_accuracy <= poor.robust_accuracy


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_strongest_is_at_least_as_strong_as_pgd(norm: str, net: nn.Module, images: Tensor) -> None:
    x = images.repeat(3, 1, 1, 1)
    y = predicted(net, x)
    threat = {"linf": Linf(0.06), "l2": L2(0.25), "l1": L1(0.6)}[norm]
    strong = strongest(threat)(net, x, y)
    weak = pgd(threat, 40, objective="margin", restarts=3, stop="success")(net, x, y)
    assert strong.robust_accuracy <= weak.robust_accuracy
    again = strongest(threat)(net, x, y)
    assert torch.equal(strong.x, again.x) and strong.broken_by == again.broken_by


def test_linear_models_fall_just_above_the_optimum() -> None:
    import optimum

    case = linear_case(4, 30, 21)
    least = torch.tensor(optimum.untargeted(case, "linf"))
    above = strongest(Linf(1.05 * least))(case.model, case.x, case.y)
    below = strongest(Linf(0.95 * least))(case.model, case.x, case.y)
    assert bool(above.success.all()) and not bool(below.success.any())


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("version", sorted(SETS))
def test_published_sets_fit_any_number_of_classes(version: str, classes: int) -> None:
    case = linear_case(classes, 6, 5)
    stages = SETS[version](Linf(0.001), classes)
    small = tuple(
        replace(s, attack=replace(s.attack, search=replace(s.attack.search, steps=4)))
        if s.name.startswith("apgd")
        else s
        for s in stages
        if s.name != "square"
    )
    attack = Cascade("small", Linf(0.001), lambda threat, k: small)
    result = attack(case.model, case.x, case.y)
    assert result.robust_accuracy is not None
    assert [s.name for s in result.stages] == [s.name for s in small]


def test_the_standard_set_is_the_published_one() -> None:
    names = {s.name: s.attack for s in SETS["standard"](Linf(0.1), 10)}
    assert list(names) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert names["apgd-ce"].search.steps == names["apgd-t"].search.steps == 100
    assert names["apgd-t"].restarts == 9 and names["fab-t"].search.targets == 9
    assert names["fab-t"].search.steps == 900
    assert names["square"].cap == 5000 and names["apgd-ce"].restarts == 1
    sparse = {s.name: s.attack for s in SETS["standard"](L1(10), 10)}
    assert sparse["apgd-ce"].restarts == 5 and sparse["apgd-t"].restarts == 5
    plus = [s.name for s in SETS["plus"](L2(1), 10)]
    assert plus == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]


@pytest.mark.parametrize(("classes", "rivals"), [(2, 1), (3, 2), (4, 3), (5, 4), (10, 9), (99, 9)])
def test_strongest_tries_each_of_the_nearest_classes_once(classes: int, rivals: int) -> None:
    stages = {s.name: s.attack for s in strongest_set(Linf(0.1), classes)}
    tried = [stages[n] for n in ("each class", "further classes") if n in stages]
    places = [a.objective.for_restart(r, classes).place for a in tried for r in range(a.restarts)]
    assert places == list(range(1, rivals + 1))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(1.0), L1(5.0), L0(5)])
def test_a_stage_tries_a_share_of_what_is_left(threat: Threat) -> None:
    assert all(0 < stage.share <= 1 for stage in strongest_set(threat, 10))


def test_other_models_than_ten_logits(images: Tensor) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    with torch.no_grad():
        flat[1].bias.copy_(-flat(images).mean())
    model = wrap(flat, outputs="logit")
    y = predicted(model, images)
    for threat in (Linf(0.3), L2(2.0), L1(8.0)):
        result = strongest(threat)(model, images, y)
        assert torch.isfinite(result.x).all() and result.success_rate is not None


def test_a_cascade_is_a_value_and_refuses_what_it_must() -> None:
    attack = strongest(Linf(0.1), 500)
    assert build(spec(attack)) == attack
    assert autoattack(L2(1.0)).within(L2(0.5)).threat == L2(0.5)
    assert {s.name for s in strongest_set(L0(5), 10)} == {"sigma-zero", "fmn"}
    with pytest.raises(ValueError, match="standard"):
        autoattack(Linf(0.1), "best")
    with pytest.raises(ValueError, match="no eps"):
        strongest(Linf())
    with pytest.raises(ValueError, match="budget"):
        strongest(Linf(0.1), 3)
    with pytest.raises(ValueError, match="bounds"):
        strongest(Linf(0.1))(
            foible.wrap(nn.Flatten()), torch.full((2, 3), 9.0), torch.tensor([0, 1])
        )
