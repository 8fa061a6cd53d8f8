"""The closed-form bar of minimum-norm attacks: found over optimum on random linear models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import optimum
import torch
from conftest import LinearCase, linear_case

from foible.attacks import Attack
from foible.core.threat import Threat
from foible.parts.threats import L0, L1, L2, Linf

NORMS = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}
# Every cell of the bar: classes, box out of reach or binding, to a target or away from the label.
CELLS = [
    (classes, wide, to_target)
    for classes in (2, 4, 10)
    for wide in (True, False)
    for to_target in (False, True)
]


@dataclass
class Found:
    """success: over the rows that can be flipped; ratios: found over optimum, of those flipped.

    extra: for L0, features beyond the optimum. rows that the box leaves no way are left out.
    """

    success: float
    ratios: np.ndarray
    extra: np.ndarray

    @property
    def median(self) -> float:
        return float(np.median(self.ratios))

    @property
    def worst(self) -> float:
        return float(self.ratios.max())


def small_case(classes: int, wide: bool, seed: int = 0, rows: int = 28) -> LinearCase:
    """A linear case whose optima span about 0.003 to 0.25 (Linf)."""
    return linear_case(classes, rows, 100 * classes + 10 * wide + 1000 * seed, wide=wide)


def measure(
    make: Callable[[Threat], Attack],
    norm: str,
    classes: int,
    wide: bool,
    to_target: bool,
    seed: int = 0,
) -> Found:
    """Run a recipe with its defaults on a linear model and hold it against the optimum."""
    case = small_case(classes, wide, seed)
    least = (optimum.targeted if to_target and norm != "l0" else optimum.untargeted)(case, norm)
    if to_target and norm == "l0":
        raise ValueError("the targeted L0 optimum is a hard combinatorial problem: not measured")
    possible = np.isfinite(least) & (least > 1e-9)
    which = torch.tensor(possible.nonzero()[0])
    target = case.target[which] if to_target else None
    attack = make(NORMS[norm]())
    result = attack(case.model, case.x[which], case.y[which], target=target)
    success = result.success.numpy()
    distance = result.distance.numpy()[success]
    exact = least[possible][success]
    # An independent check that nothing beats the optimum: that would be a wrong verdict.
    assert (distance >= exact * (1 - 1e-5) - 1e-9).all()
    return Found(float(success.mean()), distance / exact, distance - exact)
