"""Defences: train them, prove them, break them."""

from foible.defend.batch import Batch
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
    ensemble_training,
    fast,
    free,
    gradient_penalty,
    interval,
    plain,
    trades,
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
from foible.defend.training import Settings, train

__all__ = [
    "Batch",
    "Defended",
    "Loss",
    "Settings",
    "adversarial",
    "advprop",
    "awp",
    "denoising_blocks",
    "ensemble_training",
    "fast",
    "fit_radius",
    "free",
    "gradient_penalty",
    "infodrop",
    "interval",
    "jpeg",
    "kernel_smoothing",
    "plain",
    "plain_again",
    "randomize",
    "region_vote",
    "softplus",
    "split_norms",
    "squeeze",
    "through_auxiliary",
    "total_variation",
    "trades",
    "train",
]
