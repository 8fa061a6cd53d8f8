"""Attacks, as recipes: a threat, a search, an objective, a goal."""

from foible.attacks.adaptive import apgd, apgd_targeted
from foible.attacks.base import Attack, Result
from foible.attacks.boundary_projection import deepfool, fab, fab_targeted
from foible.attacks.cascade import Cascade, CascadeResult, Stage, StageReport
from foible.attacks.contrast import contrastive
from foible.attacks.counterfactuals import Alternatives, alternatives, counterfactual
from foible.attacks.curves import Curve, curve
from foible.attacks.decision_based import boundary, hop_skip_jump
from foible.attacks.deletion import ig_deletion, minimal_erasure
from foible.attacks.ensembles import autoattack, strongest
from foible.attacks.explanations import bend
from foible.attacks.fast_minimum import ddn, fmn
from foible.attacks.fooling_both import fool_both
from foible.attacks.fragility import fragile
from foible.attacks.geometry import spatial
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
from foible.attacks.hiding import fool_map
from foible.attacks.local_surrogates import surrogate_attack
from foible.attacks.matrix import TransferMatrix, transfer_matrix
from foible.attacks.penalised import cw, ead, lbfgs
from foible.attacks.scaffolds import Noise, Scaffold, Substitution, scaffolding
from foible.attacks.score_based import nes, simba, spsa, square
from foible.attacks.sides import Sides
from foible.attacks.sides import both_sides as both_sides
from foible.attacks.sparse import jsma, sigma_zero
from foible.attacks.substitutes import Substitute, Teaching, substitute
from foible.attacks.transferring import Diverse, ti_dim, transfer
from foible.attacks.trees import path_flip
from foible.attacks.unrestricted import TwoClass
from foible.attacks.unrestricted import two_class as two_class
from foible.attacks.wrappers import autoencoder_penalty, eot, with_density

__all__ = [
    "Alternatives",
    "Attack",
    "Cascade",
    "CascadeResult",
    "Curve",
    "Diverse",
    "Noise",
    "Result",
    "Scaffold",
    "Sides",
    "Stage",
    "StageReport",
    "Substitute",
    "Substitution",
    "Teaching",
    "TransferMatrix",
    "TwoClass",
    "alternatives",
    "apgd",
    "apgd_targeted",
    "autoattack",
    "autoencoder_penalty",
    "bend",
    "bim",
    "boundary",
    "contrastive",
    "counterfactual",
    "curve",
    "cw",
    "ddn",
    "deepfool",
    "ead",
    "eot",
    "fab",
    "fab_targeted",
    "fgsm",
    "fmn",
    "fool_both",
    "fool_map",
    "fragile",
    "hop_skip_jump",
    "ig_deletion",
    "jsma",
    "lbfgs",
    "least_likely",
    "mim",
    "minimal_erasure",
    "nes",
    "path_flip",
    "pgd",
    "r_fgsm",
    "random_noise",
    "scaffolding",
    "sigma_zero",
    "simba",
    "smoothgrad_attack",
    "spatial",
    "spsa",
    "square",
    "strongest",
    "substitute",
    "surrogate_attack",
    "ti_dim",
    "transfer",
    "transfer_matrix",
    "with_density",
]
