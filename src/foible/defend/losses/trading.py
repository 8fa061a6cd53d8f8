"""TRADES: clean accuracy on one side, a change of the prediction on the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.attacks.base import Attack
from foible.core.errors import InputError
from foible.core.problem import View
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss, cross_entropy


@dataclass(frozen=True)
class Divergence:
    """The Kullback-Leibler divergence of a prediction from the clean one: KL(clean || now)."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,); the clean scores are the rows'."""
        held = view.rows.scores
        if held is None:
            raise InputError("this objective compares with clean scores, and the rows have none")
        return divergence(held, view.scores)


def divergence(of: Tensor, to: Tensor) -> Tensor:
    """Return KL(softmax of || softmax to), (B,), from logits (B, K)."""
    first = F.log_softmax(of, 1)
    return (first.exp() * (first - F.log_softmax(to, 1))).sum(1)


@dataclass(frozen=True)
class Trades(Loss):
    """Cross-entropy plus beta times the largest divergence in the threat; see `trades`."""

    attack: Attack
    beta: float = 6.0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise InputError(f"beta={self.beta}: above 0; without it train on `plain()`")
        if not 0 <= self.ramp <= 1:
            raise InputError(f"ramp={self.ramp}: a share of the training, in [0, 1]")

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        attack = batch.grown(replace(self.attack, objective=Divergence()), self.ramp)
        with batch.model.session(batch.seed), torch.no_grad():
            held = batch.scores(batch.x)
        x_adv = batch.craft(attack, scores=held)
        clean = batch.scores(batch.x)
        apart = divergence(clean, batch.scores(x_adv))
        return cross_entropy(clean, batch.y) + self.beta * apart


def trades(attack: Attack, beta: float = 6.0, ramp: float = 0.0) -> Trades:
    """Return TRADES (R4, Zhang et al. 2019): cross-entropy + beta * max KL(f(x) || f(x')).

    attack: where the maximum is searched; its objective is replaced by the divergence. beta: the
    larger, the more robust and the less accurate; 6 and 1 in the paper. ramp: as in `adversarial`.

    Departures: the inner search starts uniformly in the ball, as PGD does, where the authors'
    code starts at x plus 0.001 times a normal draw, at which the divergence has almost no
    gradient.

    Raises InputError for a beta that is not positive.

    >>> import foible
    >>> trades(foible.attacks.pgd(foible.Linf(0.1), steps=10), beta=1).beta
    1
    """
    return Trades(attack, beta, ramp)
