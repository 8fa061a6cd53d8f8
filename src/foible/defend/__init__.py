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
from foible.defend.losses import Loss, adversarial, fast, plain, trades
from foible.defend.training import Settings, train

__all__ = [
    "Batch",
    "Defended",
    "Loss",
    "Settings",
    "adversarial",
    "fast",
    "fit_radius",
    "jpeg",
    "plain",
    "randomize",
    "region_vote",
    "squeeze",
    "total_variation",
    "trades",
    "train",
]
