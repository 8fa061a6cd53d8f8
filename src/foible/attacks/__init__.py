"""Attacks, as recipes: a threat, a search, an objective, a goal."""

from foible.attacks.base import Attack, Result
from foible.attacks.curves import Curve, curve
from foible.attacks.deletion import ig_deletion
from foible.attacks.explanations import bend
from foible.attacks.gradient import (
    bim,
    fgsm,
    least_likely,
    mim,
    pgd,
    r_fgsm,
    random_noise,
    smoothgrad_attack,
)

__all__ = [
    "Attack",
    "Curve",
    "Result",
    "bend",
    "bim",
    "curve",
    "fgsm",
    "ig_deletion",
    "least_likely",
    "mim",
    "pgd",
    "r_fgsm",
    "random_noise",
    "smoothgrad_attack",
]
