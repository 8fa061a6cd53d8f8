"""Defences: train them, prove them, break them."""

from foible.defend.batch import Batch
from foible.defend.breaking import Breaker, Broken, breaker, breakers
from foible.defend.certify import Certified, randomized_smoothing
from foible.defend.denoisers import UNet, denoised, guided_denoiser
from foible.defend.feature_sets import non_robust_features, robust_features
from foible.defend.inputs import (
    Defended,
    fit_radius,
    jpeg,
    randomize,
    region_vote,
    squeeze,
    total_variation,
)
from foible.defend.losses import (
    Loss,
    adversarial,
    advprop,
    awp,
    distilled,
    ensemble_training,
    fast,
    free,
    gradient_penalty,
    interval,
    plain,
    rationales,
    trades,
    with_noise,
)
from foible.defend.nets import (
    denoising_blocks,
    infodrop,
    kernel_smoothing,
    plain_again,
    softplus,
    split_norms,
    through_auxiliary,
)
from foible.defend.retraining import Rounds, rounds
from foible.defend.students import distillation
from foible.defend.training import Settings, train

__all__ = [
    "Batch",
    "Breaker",
    "Broken",
    "Certified",
    "Defended",
    "Loss",
    "Rounds",
    "Settings",
    "UNet",
    "adversarial",
    "advprop",
    "awp",
    "breaker",
    "breakers",
    "denoised",
    "denoising_blocks",
    "distillation",
    "distilled",
    "ensemble_training",
    "fast",
    "fit_radius",
    "free",
    "gradient_penalty",
    "guided_denoiser",
    "infodrop",
    "interval",
    "jpeg",
    "kernel_smoothing",
    "non_robust_features",
    "plain",
    "plain_again",
    "randomize",
    "randomized_smoothing",
    "rationales",
    "region_vote",
    "robust_features",
    "rounds",
    "softplus",
    "split_norms",
    "squeeze",
    "through_auxiliary",
    "total_variation",
    "trades",
    "train",
    "with_noise",
]
