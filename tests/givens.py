"""How the contract suite makes every recipe: with few steps, so that the sweep is quick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from foible import attacks, explain
from foible.parts.threats import L0, L1, L2, Linf

# What a recipe must be given, beside its defaults; few steps, so that the sweep is quick.
GIVEN: dict[str, Callable[[], Any]] = {
    "bend": lambda: attacks.bend(Linf(0.1), explain.saliency(), 3),
    "bim": lambda: attacks.bim(L2(0.5), 3),
    "curve": lambda: attacks.curve(attacks.bim(Linf(0.1), 3, stop="success"), [0.05, 0.1]),
    "fgsm": lambda: attacks.fgsm(Linf(0.1)),
    "ig_deletion": lambda: attacks.ig_deletion(explain.integrated_gradients(4), most=5),
    "least_likely": lambda: attacks.least_likely(L1(2.0), 3),
    "mim": lambda: attacks.mim(Linf(torch.tensor([0.1, 0.2, 0.05])), 3),
    "pgd": lambda: attacks.pgd(L0(4), 3, restarts=2, objective="margin"),
    "r_fgsm": lambda: attacks.r_fgsm(Linf(0.1)),
    "random_noise": lambda: attacks.random_noise(Linf(0.1), 2),
    "smoothgrad_attack": lambda: attacks.smoothgrad_attack(Linf(0.1), 3),
    "gradient_x_input": explain.gradient_x_input,
    "integrated_gradients": lambda: explain.integrated_gradients(4, 0.1),
    "lime": lambda: explain.lime(12, 3),
    "random_map": explain.random_map,
    "saliency": explain.saliency,
    "smoothgrad": lambda: explain.smoothgrad(3, 0.1),
}
