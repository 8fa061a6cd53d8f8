"""Defensive distillation: a student of a teacher's softened opinions, at a high temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.errors import InputError
from foible.core.oracle import Model
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss, cross_entropy
from foible.defend.marking import marked
from foible.models import as_model


@dataclass(frozen=True)
class Tempered(Loss):
    """The cross-entropy of logits divided by a temperature: how the teacher is trained."""

    temperature: float = 100.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        return cross_entropy(batch.scores(batch.x) / self.temperature, batch.y)


@dataclass(frozen=True)
class Distilled(Loss):
    """The cross-entropy with a teacher's probabilities, both at a temperature; see `distilled`."""

    teacher: Model = field(repr=False)
    temperature: float = 100.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def finish(self, net: nn.Module) -> nn.Module:
        """Name the defence, for its breaker."""
        return marked(net, "distillation")

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,); the labels are not looked at."""
        with self.teacher.session(batch.seed), torch.no_grad():
            taught = (self.teacher.scores(batch.x) / self.temperature).softmax(1)
        own = (batch.scores(batch.x) / self.temperature).log_softmax(1)
        return -(taught * own).sum(1)


def check_temperature(temperature: float) -> None:
    """Refuse what logits cannot be divided by."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InputError(f"temperature={temperature}: a finite number above 0, 100 in the paper")


def distilled(teacher: Any, temperature: float = 100.0) -> Distilled:
    """Return the loss of a student of defensive distillation (R7, Papernot et al. 2016).

    The cross-entropy between softmax(teacher / T) and softmax(student / T). teacher: a frozen
    model, itself trained at the temperature (`distillation` does both). temperature: T; 100 in the
    paper, 50 in later work. The trained student is used at T = 1, where its logits are about T
    times as large: the softmax is 1 and 0, and in float32 the cross-entropy has no gradient.

    Broken: nothing is harder to fool, only the gradient is hidden. C&W, whose loss is on
    logits, breaks it (Carlini and Wagner 2017), and so does PGD on the margin. As a loss it still
    teaches a small net a large one's opinions. `breaker("distillation")` shows the break.

    Raises InputError for a temperature that is not positive.

    >>> import foible
    >>> distilled(foible.zoo.load("standard"), 50).temperature
    50
    """
    return Distilled(as_model(teacher), temperature)
