"""How a training runs: batches, optimiser, schedule, averaging, validation, devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foible.attacks.base import Attack
from foible.core.errors import InputError
from foible.parts.transforms import Transform

PRECISIONS = ("no", "bf16", "fp16")
Optimiser = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[torch.optim.Optimizer, int], Any]


@dataclass(frozen=True)
class Settings:
    """Everything about a training but the net, the data and the loss.

    batch: samples of a step on each process. lr: of the default optimiser and schedule. optimiser:
    from parameters to a torch optimiser; None is Adam. schedule: from (optimiser, steps) to a torch
    scheduler, stepped once a batch; None warms up over the first twentieth and falls as a cosine.
    average: decay of the exponential average of the weights, which is what is validated and handed
    out; 0 for none. hold_out: the share of the data that is kept for validation where none is
    given, at most 1,000 samples; 0 for none. watch: the attack of the validation; None is 10 steps
    of PGD in the threat that the loss trains against. patience: epochs without a better robust
    validation accuracy before it stops (Rice et al. 2020: robust overfitting is real); None for
    all epochs. Either way the best epoch is handed out. augment: a transform of
    `foible.parts.transforms` or your own, called with (x, draw). precision: "no", "bf16" or "fp16".
    compile: let torch compile the net. save_seconds: between two checkpoints. seed: of everything.
    """

    batch: int = 128
    lr: float = 2e-3
    optimiser: Optimiser | None = None
    schedule: Schedule | None = None
    average: float = 0.998
    hold_out: float = 0.05
    watch: Attack | None = None
    patience: int | None = None
    augment: Transform | None = None
    precision: str = "no"
    compile: bool = False
    save_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch={self.batch}: at least one sample a step")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}: above 0")
        if not 0 <= self.average < 1:
            raise InputError(f"average={self.average}: a decay in [0, 1), 0 for none")
        if not 0 <= self.hold_out < 1:
            raise InputError(f"hold_out={self.hold_out}: a share of the data in [0, 1)")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}: choose {', '.join(PRECISIONS)}")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience={self.patience}: one epoch at least, or None")

    def optimiser_of(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of some parameters."""
        if self.optimiser is not None:
            return self.optimiser(parameters)
        return torch.optim.Adam(parameters, lr=self.lr)

    def schedule_of(self, optimiser: torch.optim.Optimizer, steps: int) -> Any:
        """Return the schedule of a training of so many steps."""
        if self.schedule is not None:
            return self.schedule(optimiser, steps)
        return torch.optim.lr_scheduler.LambdaLR(optimiser, Cosine(steps))


@dataclass(frozen=True)
class Cosine:
    """A linear rise over the first twentieth of the steps, then half a cosine down to 0."""

    steps: int

    def __call__(self, step: int) -> float:
        """Return the share of the learning rate at a step."""
        rise = min(1.0, (step + 1) / max(1, self.steps // 20))
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))
