"""Defences: train them, prove them, break them."""

from foible.defend.batch import Batch
from foible.defend.losses import Loss, adversarial, fast, plain, trades

__all__ = [
    "Batch",
    "Loss",
    "adversarial",
    "fast",
    "plain",
    "trades",
]
