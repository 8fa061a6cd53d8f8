"""How the contract suite makes every recipe: with few steps, so that the sweep is quick."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import zennit_here  # noqa: F401 - so that zennit can be imported
from conftest import PlainNet, PooledNet, SmallNet, filled, rand
from torch import nn

from foible import attacks, explain
from foible.parts.threats import L0, L1, L2, Features, Linf, Patch, Spatial


@cache
def little_masks() -> explain.MaskingModel:
    """A masking model that has hardly learnt anything, for the net of the sweep."""
    net, x = filled(SmallNet(), 5, 2.0), rand(20, 1, 6, 6, seed=6)
    return explain.train_masks(net, x, 1, width=4)


# What a recipe must be given, beside its defaults; few steps, so that the sweep is quick.
GIVEN: dict[str, Callable[[], Any]] = {
    "apgd": lambda: attacks.apgd(L1(2.0), 5, "margin", 2),
    "apgd_targeted": lambda: attacks.apgd_targeted(L2(0.5), 5, 2),
    "autoattack": lambda: attacks.autoattack(Linf(0.1), "rand"),
    "strongest": lambda: attacks.strongest(Linf(0.1), budget=60),
    "boundary": lambda: attacks.boundary(L2(), 60, 20),
    "hop_skip_jump": lambda: attacks.hop_skip_jump(L2(), 120, 10, tries=20),
    "ddn": lambda: attacks.ddn(L2(), 6),
    "fmn": lambda: attacks.fmn(Linf(), 6),
    "jsma": lambda: attacks.jsma(L0(), 8),
    "sigma_zero": lambda: attacks.sigma_zero(L0(), 30),
    "bend": lambda: attacks.bend(Linf(0.1), explain.saliency(), 3),
    "bim": lambda: attacks.bim(L2(0.5), 3),
    "curve": lambda: attacks.curve(attacks.bim(Linf(0.1), 3, stop="success"), [0.05, 0.1]),
    "contrastive": lambda: attacks.contrastive(steps=6, searches=2),
    "counterfactual": lambda: attacks.counterfactual(Features(fixed=(3,)), 6, 2),
    "cw": lambda: attacks.cw(Linf(), 6, 2),
    "ead": lambda: attacks.ead(L1(), 6, 2),
    "lbfgs": lambda: attacks.lbfgs(L2(), 2, 4),
    "eot": lambda: attacks.eot(attacks.bim(Linf(0.1), 3), 2),
    "deepfool": lambda: attacks.deepfool(L2(), 4),
    "fab": lambda: attacks.fab(L1(), 4, restarts=2),
    "fab_targeted": lambda: attacks.fab_targeted(Linf(), 4, targets=2),
    "fgsm": lambda: attacks.fgsm(Linf(0.1)),
    "fool_both": lambda: attacks.fool_both(Linf(0.1), explain.saliency(), k=5, steps=3),
    "fragile": lambda: attacks.fragile(Linf(0.1), explain.saliency(), k=5, steps=3),
    "ig_deletion": lambda: attacks.ig_deletion(explain.integrated_gradients(4), most=5),
    "minimal_erasure": lambda: attacks.minimal_erasure(3),
    "least_likely": lambda: attacks.least_likely(L1(2.0), 3),
    "mim": lambda: attacks.mim(Linf(torch.tensor([0.1, 0.2, 0.05])), 3),
    "nes": lambda: attacks.nes(Linf(0.1), 20, 4),
    "fool_map": lambda: attacks.fool_map(Patch(3, 4, 1, 1), steps=3),
    "pgd": lambda: attacks.pgd(L0(4), 3, restarts=2, objective="margin"),
    "r_fgsm": lambda: attacks.r_fgsm(Linf(0.1)),
    "random_noise": lambda: attacks.random_noise(Linf(0.1), 2),
    "smoothgrad_attack": lambda: attacks.smoothgrad_attack(Linf(0.1), 3),
    "simba": lambda: attacks.simba(L2(1.0), 12, "dct"),
    "spatial": lambda: attacks.spatial(Spatial(20.0, 1.0), angles=3, shifts=3),
    "spsa": lambda: attacks.spsa(L2(1.0), 20, 6),
    "square": lambda: attacks.square(Linf(0.1), 12),
    "surrogate_attack": lambda: attacks.surrogate_attack(
        L2(1.0), explain.tabular_lime(scale=0.1), 60, 4, 2
    ),
    "ti_dim": lambda: attacks.ti_dim(Linf(0.1), 3, scales=2),
    "cam": explain.cam,
    "data_lime": lambda: explain.data_lime(rand(30, 36, seed=6), 20),
    "deep_lift": lambda: explain.deep_lift(0.1),
    "expected_gradients": lambda: explain.expected_gradients(3),
    "grad_cam": explain.grad_cam,
    "guided_backprop": explain.guided_backprop,
    "gradient_x_input": explain.gradient_x_input,
    "integrated_gradients": lambda: explain.integrated_gradients(4, 0.1),
    "lemna": lambda: explain.lemna(30, 2, segments=3),
    "lime": lambda: explain.lime(12, 3),
    "lrp": lambda: explain.lrp("gamma", 1e-4),
    "occlusion": lambda: explain.occlusion(3, 2, 0.1),
    "leave_one_out": lambda: explain.leave_one_out(3),
    "erasure": lambda: explain.erasure(3),
    "tabular_lime": lambda: explain.tabular_lime(60, 0.1),
    "kernel_shap": lambda: explain.kernel_shap(30, 3, 0.1),
    "exact_shapley": lambda: explain.exact_shapley(4),
    "meaningful_perturbation": lambda: explain.meaningful_perturbation(null="mean", steps=3),
    "masking_model": lambda: little_masks(),
    "random_map": explain.random_map,
    "saliency": explain.saliency,
    "smoothed": lambda: explain.smoothed(explain.saliency(), 2.0),
    "smoothgrad": lambda: explain.smoothgrad(3, 0.1),
    "sparsified_smoothgrad": lambda: explain.sparsified_smoothgrad(6, 0.2, 0.3),
    "vargrad": lambda: explain.vargrad(3, 0.1),
}

# Recipes that are for nets of one kind; the others get a SmallNet.
NETS: dict[str, Callable[[], nn.Module]] = {"cam": PooledNet, "lrp": PlainNet}
