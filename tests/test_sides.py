"""Row S1: both rates, and each attack touches its own class only."""

from __future__ import annotations

import torch
from conftest import Counter, linear_case

from foible.attacks import both_sides, fgsm, pgd
from foible.parts.threats import Linf


def test_both_rates_each_on_its_own_class() -> None:
    case = linear_case(2, 60, 3)
    counted = Counter(case.model)
    sides = both_sides(pgd(Linf(0.03), 10), counted, case.x, case.y)
    yes = case.y == 1
    assert sides.missed is not None and sides.alarmed is not None
    assert len(sides.missed.x) == int(yes.sum()) and len(sides.alarmed.x) == int((~yes).sum())
    for result, own in ((sides.missed, yes), (sides.alarmed, ~yes)):
        assert bool((result.x != case.x[own]).any())
        assert bool((result.label[result.success] != case.y[own][result.success]).all())
    # On a linear model both rates are known: who lies nearer to the plane than 0.03.
    normal = case.weight[1] - case.weight[0]
    away = (case.x @ normal + case.bias[1] - case.bias[0]).abs() / normal.abs().sum()
    assert sides.misses == float((away[yes] < 0.03).double().mean().float())
    assert sides.alarms == float((away[~yes] < 0.03).double().mean().float())
    assert counted.forwards == int(sides.missed.forwards.sum() + sides.alarmed.forwards.sum())


def test_a_class_without_samples_is_not_measured() -> None:
    case = linear_case(2, 20, 3)
    some = case.y == 1
    sides = both_sides(fgsm(Linf(0.03)), case.model, case.x[some], case.y[some])
    assert sides.alarms is None and sides.alarmed is None and sides.misses is not None


def test_other_classes_are_negatives_whose_alarm_is_the_positive_class() -> None:
    case = linear_case(4, 40, 9)
    sides = both_sides(pgd(Linf(0.2), 20, objective="margin"), case.model, case.x, case.y, 2)
    assert sides.alarmed is not None
    assert bool((sides.alarmed.label[sides.alarmed.success] == 2).all())
    assert torch.equal(sides.alarmed.clean_label, case.y[case.y != 2])
