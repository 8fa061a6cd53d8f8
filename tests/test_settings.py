"""What a recipe's settings become: lengths of steps, and the stages of the cascades."""

from __future__ import annotations

from typing import Any

import pytest

from foible import attacks, explain
from foible.attacks import ensembles
from foible.parts.searches.carlini import CarliniL0, CarliniL2, CarliniLinf
from foible.parts.threats import L0, L1, L2, Linf, Spatial

# A step is 2.5, 1.25, ... times eps over the steps, and never more than eps.
SHARES: list[tuple[str, Any, dict[int, float]]] = [
    ("pgd", lambda n: attacks.pgd(Linf(0.1), n), {1: 1.0, 2: 1.0, 5: 0.5, 10: 0.25}),
    ("bim", lambda n: attacks.bim(Linf(0.1), n), {1: 1.0, 5: 0.25}),
    ("least_likely", lambda n: attacks.least_likely(Linf(0.1), n), {1: 1.0, 5: 0.25}),
    ("mim", lambda n: attacks.mim(Linf(0.1), n), {1: 1.0, 4: 0.25}),
    ("ti_dim", lambda n: attacks.ti_dim(Linf(0.1), n), {1: 1.0, 4: 0.25}),
    (
        "smoothgrad_attack",
        lambda n: attacks.smoothgrad_attack(Linf(0.1), 4, steps=n),
        {1: 1.0, 2: 1.0, 10: 0.25},
    ),
    (
        "spatial",
        lambda n: attacks.spatial(Spatial(), "gradient", steps=n),
        {1: 1.0, 2: 1.0, 10: 0.25},
    ),
    ("bend", lambda n: attacks.bend(Linf(0.1), explain.saliency(), n), {5: 1.0, 40: 0.25}),
    (
        "surrogate_attack",
        lambda n: attacks.surrogate_attack(Linf(0.1), explain.tabular_lime(), 1000, n, 4),
        {2: 0.5, 8: 0.25},
    ),
]


@pytest.mark.parametrize(("name", "make", "shares"), SHARES)
def test_steps_are_as_long_as_documented(name: str, make: Any, shares: dict[int, float]) -> None:
    made = {steps: make(steps).search for steps in shares}
    assert {steps: search.share for steps, search in made.items()} == shares
    assert all(search.steps == steps for steps, search in made.items())


def test_runs_of_cw_are_of_its_norm() -> None:
    for threat, kind, length, searches in (
        (L2(), CarliniL2, 40, 3), (Linf(), CarliniLinf, 40, 3), (L0(), CarliniL0, 10, 12),
    ):  # fmt: skip
        search: Any = attacks.cw(threat, 40, 3).search
        assert type(search) is kind and (search.length, search.searches) == (length, searches)
    assert attacks.cw(L0(), 8).search.length == 5


# --- cascades: name, steps of a run, runs, the share of survivors that is tried

Stages = list[tuple[str, int, int, float]]


def stages(given: Any) -> Stages:
    return [(s.name, s.attack.search.steps, s.attack.restarts, s.share) for s in given]


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(5.0)])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_autoattack_has_its_published_members(threat: Any, classes: int) -> None:
    """Croce and Hein 2020, and 2021 in L1; a target is one of the other classes."""
    sparse, aims = isinstance(threat, L1), min(9, classes - 1)
    few = min(5 if sparse else 9, classes - 1)
    standard, plus, rand = (
        attacks.autoattack(threat, v).plan(threat, classes) for v in ("standard", "plus", "rand")
    )
    assert stages(standard) == [
        ("apgd-ce", 100, 5 if sparse else 1, 1.0), ("apgd-t", 100, few, 1.0),
        ("fab-t", 100 * aims, 1, 1.0), ("square", 4997, 1, 1.0),
    ]  # fmt: skip
    assert stages(plus) == [
        ("apgd-ce", 100, 5, 1.0), ("apgd-dlr", 100, 5, 1.0), ("fab", 500, 1, 1.0),
        ("square", 4997, 1, 1.0), ("apgd-t", 100, aims, 1.0), ("fab-t", 100 * aims, 1, 1.0),
    ]  # fmt: skip
    assert stages(rand) == [("apgd-ce", 100, 1, 1.0), ("apgd-dlr", 100, 1, 1.0)]
    assert [s.attack.objective.samples for s in rand] == [20, 20]
    assert standard[1].attack.objective.loss == ("dlr" if classes > 3 else "margin")
    assert {s.attack.stop for s in (*standard, *plus, *rand)} == {"success"}


def test_the_stages_of_strongest_are_those_that_were_measured() -> None:
    """Chosen on the bundled models and frozen before the others were measured."""
    begin: Stages = [("first steps", 4, 1, 1.0), ("nearest class", 30, 1, 1.0)]
    square: Stages = [("square", 297, 1, 0.12)]
    fresh: Stages = [("fresh starts", 100, 2, 0.12)]
    more: Stages = [("each class, DLR", 100, 3, 0.1), ("further classes", 100, 6, 0.06)]
    for classes, each, rest in ((2, 1, []), (3, 2, []), (4, 3, more[:1]), (10, 3, more)):
        told = stages(ensembles.strongest_set(Linf(0.1), classes))
        assert told == [*begin, ("each class", 100, each, 0.2), *fresh, *rest, *square]
    five = stages(ensembles.strongest_set(Linf(0.1), 5))
    assert five[-2] == ("further classes", 100, 1, 0.06)
    for threat, part, share in ((L2(0.5), 0.2, 0.04), (L1(5.0), 1.0, 1.0)):
        for classes, each in ((2, 1), (3, 2), (10, 3)):
            assert stages(ensembles.strongest_set(threat, classes)) == [
                *begin, ("funnel", 100, 1, 1.0), ("apgd", 100, 1, part),
                ("long funnel", 300, 1, 0.15), ("each class", 100, each, share), *square,
            ]  # fmt: skip
    assert stages(ensembles.strongest_set(L0(3), 10)) == [
        ("fmn", 100, 1, 1.0), ("sigma-zero", 300, 1, 1.0),
    ]  # fmt: skip
