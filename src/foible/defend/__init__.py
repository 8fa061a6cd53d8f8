"""Defences: train them, prove them, break them."""

from foible.defend.batch import Batch
from foible.defend.losses import Loss, adversarial, fast, plain, trades
from foible.defend.training import Settings, train

__all__ = [
    "Batch",
    "Loss",
    "Settings",
    "adversarial",
    "fast",
    "plain",
    "trades",
    "train",
]
