"""Free adversarial training: one backward teaches the weights and makes the next noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import Attack, needs_eps
from foible.attacks.gradient import pgd
from foible.core.errors import InputError, KindError
from foible.core.rows import Rows
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss, cross_entropy
from foible.parts.threats.balls import Ball

KEY = "free/change"


@dataclass(frozen=True)
class Free(Loss):
    """The loss at a change that every backward carries on; see `free`."""

    threat: Ball
    replays: int = 4
    step: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Ball):
            raise KindError(
                f"{type(self.threat).__name__} is no norm ball, and free training carries a "
                "ball's change from batch to batch: e.g. foible.Linf(0.1)"
            )
        if self.replays < 1 or not self.step > 0:
            raise InputError(f"replays={self.replays}, step={self.step}: at least 1, above 0")

    @property
    def against(self) -> Attack:
        """PGD in the threat: what validation measures."""
        return pgd(self.threat, steps=10)

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        threat = self.threat.inside(batch.model.bounds)
        index = torch.arange(len(batch.x), device=batch.x.device)
        radii = threat.radii(len(batch.x), batch.x)
        rows = Rows(index, batch.ids, batch.x.detach(), batch.y, eps=radii)
        change = held(batch.memory, rows)
        with torch.no_grad():
            at = threat.render(rows, threat.project(rows, change)).detach().requires_grad_()
        if torch.is_grad_enabled():
            at.register_hook(partial(self.carry, batch.memory, rows, change))
        return cross_entropy(batch.scores(at), batch.y)

    def carry(self, memory: dict[str, Any], rows: Rows, change: Tensor, grad: Tensor) -> None:
        """Move the change along the gradient that the weights' own backward gave."""
        ball = self.threat  # without the box: the next image leaves other room in it
        # A scaled gradient may overflow in half precision: the optimiser leaves that step out too.
        grad = grad.nan_to_num(0.0, 0.0, 0.0)
        with torch.no_grad():
            move = ball.steepest(rows, change, grad) * ball.step_size(rows, self.step)
            memory[KEY][: len(rows)] = ball.project(rows, change + move)


def held(memory: dict[str, Any], rows: Rows) -> Tensor:
    """Return the change (B, *shape) that the memory holds; zeros at first, and for new places."""
    known: Tensor = memory.get(KEY, torch.zeros_like(rows.x))
    if len(known) < len(rows):
        known = torch.cat([known, torch.zeros_like(rows.x[len(known) :])])
    memory[KEY] = known = known.to(rows.x)
    return known[: len(rows)].clone()


def free(threat: Ball, replays: int = 4, step: float = 1.0) -> Free:
    """Return free adversarial training (Shafahi et al. 2019).

    Each batch is shown `replays` times. The one backward that teaches the weights also gives the
    gradient by the input, along which the change of the batch moves for the next look; so it
    costs what plain training costs. The change stays from batch to batch, by place in the batch.
    Divide the epochs by `replays` for an equal number of steps.

    threat: a norm ball with eps. step: of a move, as a share of eps; 1 in the paper. With one
    replay it is FGSM training that starts at the last batch's change.

    Departure: the gradient is taken at the changed input and not through its cut to the box,
    which would let no change move where the box binds.

    Raises KindError for a threat that is no norm ball, InputError for no eps.

    >>> import foible
    >>> free(foible.Linf(0.1)).replays
    4
    """
    return Free(needs_eps(threat), replays, step)  # type: ignore[arg-type]
