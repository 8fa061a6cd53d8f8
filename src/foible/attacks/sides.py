"""Both errors of a yes-or-no classifier: attacks that cause misses, and ones that raise alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import Attack, Result
from foible.core.errors import InputError


@dataclass(frozen=True)
class Sides:
    """misses: share of positives that the attack turns negative; alarms: of negatives that it turns
    positive; None where the class has no sample that was right. missed, alarmed: the results, on
    the samples of that class alone, in their order.
    """

    misses: float | None
    alarms: float | None
    missed: Result | None
    alarmed: Result | None


def both_sides(
    attack: Attack, model: Any, x: Tensor, y: Tensor, positive: int = 1, *, seed: int = 0
) -> Sides:
    """Attack each class by itself and give both rates (survey 2.1, row S1).

    A false-negative attack hides positives (a spam mail that passes), a false-positive attack
    makes alarms of negatives; they cost different people, so one error rate hides which it was.
    Each touches its own class only. positive: the class whose loss is a miss; all others are
    negative, and an alarm is a negative that ends as `positive`. seed, errors: as for an attack.

    >>> import foible, torch
    >>> x, y = foible.zoo.sample()
    >>> net = foible.zoo.load("standard")
    >>> attack = foible.attacks.pgd(foible.Linf(0.1), 10)
    >>> sides = foible.attacks.both_sides(attack, net, x[:40], y[:40])
    >>> sides.misses > 0.5
    True
    """
    yes = y == positive
    if len(y) == 0:
        raise InputError("there are no samples: both rates need some")
    missed = alarmed = None
    misses = alarms = None
    ids = torch.arange(len(x), device=x.device)
    if bool(yes.any()):
        missed = attack(model, x[yes], y[yes], seed=seed, ids=ids[yes])
        misses = missed.success_rate
    if bool((~yes).any()):
        aim = torch.full_like(y[~yes], positive)
        alarmed = attack(model, x[~yes], y[~yes], target=aim, seed=seed, ids=ids[~yes])
        alarms = alarmed.success_rate
    return Sides(misses, alarms, missed, alarmed)
