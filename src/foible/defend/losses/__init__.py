"""Training losses: one small value a defence; the trainer knows nothing else of it."""

from foible.defend.losses.base import Loss, cross_entropy
from foible.defend.losses.bounding import Interval, interval
from foible.defend.losses.carried import Free, free
from foible.defend.losses.ensembling import EnsembleTraining, ensemble_training
from foible.defend.losses.noise import WithNoise, with_noise
from foible.defend.losses.penalty import GradientPenalty, gradient_penalty
from foible.defend.losses.propagation import AdvProp, advprop
from foible.defend.losses.reasons import Rationales, rationales
from foible.defend.losses.robust import Adversarial, Plain, adversarial, fast, plain
from foible.defend.losses.teaching import Distilled, Tempered, distilled
from foible.defend.losses.trading import Divergence, Trades, divergence, trades
from foible.defend.losses.weights import WeightPerturbation, awp

__all__ = [
    "AdvProp",
    "Adversarial",
    "Distilled",
    "Divergence",
    "EnsembleTraining",
    "Free",
    "GradientPenalty",
    "Interval",
    "Loss",
    "Plain",
    "Rationales",
    "Tempered",
    "Trades",
    "WeightPerturbation",
    "WithNoise",
    "adversarial",
    "advprop",
    "awp",
    "cross_entropy",
    "distilled",
    "divergence",
    "ensemble_training",
    "fast",
    "free",
    "gradient_penalty",
    "interval",
    "plain",
    "rationales",
    "trades",
    "with_noise",
]
