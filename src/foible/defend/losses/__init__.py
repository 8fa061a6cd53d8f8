"""Training losses: one small value a defence; the trainer knows nothing else of it."""

from foible.defend.losses.base import Loss, cross_entropy
from foible.defend.losses.bounding import Interval, interval
from foible.defend.losses.propagation import AdvProp, advprop
from foible.defend.losses.robust import Adversarial, Plain, adversarial, fast, plain
from foible.defend.losses.trading import Divergence, Trades, divergence, trades

__all__ = [
    "AdvProp",
    "Adversarial",
    "Divergence",
    "Interval",
    "Loss",
    "Plain",
    "Trades",
    "adversarial",
    "advprop",
    "cross_entropy",
    "divergence",
    "fast",
    "interval",
    "plain",
    "trades",
]
