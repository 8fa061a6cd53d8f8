"""Attacks that every general test runs through."""

from __future__ import annotations

from foible import attacks, explain
from foible.attacks import Attack, fgsm, pgd, random_noise
from foible.parts.threats import L2, Linf

ATTACKS: dict[str, Attack] = {
    "pgd": pgd(Linf(0.05), 9),
    "pgd success": pgd(Linf(0.05), 9, stop="success"),
    "pgd margin restarts": pgd(Linf(0.05), 5, objective="margin", restarts=4),
    "restarts success": pgd(L2(0.12), 5, restarts=3, stop="success"),
    "fgsm": fgsm(Linf(0.05)),
    "mim": attacks.mim(L2(0.12), 6),
    "random": random_noise(Linf(0.05), 4),
    "smoothgrad": attacks.smoothgrad_attack(Linf(0.05), 4, 0.1, steps=3),
    "lime": pgd(Linf(0.05), 3, direction=explain.lime(20)),
    "deletion": attacks.ig_deletion(explain.integrated_gradients(6)),
    "least likely": attacks.least_likely(Linf(0.1), 5),
}
