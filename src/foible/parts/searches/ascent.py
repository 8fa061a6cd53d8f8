"""Projected steepest ascent: FGSM, R+FGSM, BIM, PGD and MIM are its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.errors import KindError
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate, Search
from foible.core.threat import Steepest
from foible.parts.smoothing import smooth


class AscentState(NamedTuple):
    """z (B, *shape); velocity (B, *shape), empty tensors (B, 0) without momentum."""

    z: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class Ascent(Search):
    """Move along the threat's steepest direction and project back, `steps` times.

    length: of a step, absolute, or None for `share` times eps, so that per-sample eps works.
    start: "clean", "random" (uniform in the threat), "sign" (a random sign times
    1 - share of eps: the first half of R+FGSM), or "given" (the change `rows.extra["start"]`).
    momentum: the decay of MIM, which accumulates gradients at unit mean absolute value (Dong et
    al. 2018). kernel: the width, in positions, of the Gaussian that smooths each gradient (Dong et
    al. 2019); 1 for none.
    """

    steps: int = 40
    length: float | None = None
    share: float = 1.0
    start: str = "clean"
    momentum: float | None = None
    kernel: int = 1

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> AscentState:
        """Place z at the clean input or at a random one."""
        threat = problem.threat
        if not isinstance(threat, Steepest):
            raise KindError(
                f"{type(threat).__name__} has no direction of steepest ascent: "
                "gradient attacks need a norm ball (Linf, L2, L1, L0)"
            )
        if self.start == "random":
            z = threat.start(rows, draw.split(3))
        elif self.start == "sign":
            noise = draw.split(3).normal(rows.shape, rows.x.dtype).sign()
            z = threat.project(rows, threat.step_size(rows, 1 - self.share) * noise)
        elif self.start == "given":
            z = threat.project(rows, rows.extra["start"])
        else:
            z = threat.clean(rows)
        empty = torch.zeros(len(rows), 0, dtype=rows.x.dtype, device=rows.x.device)
        return AscentState(z, empty if self.momentum is None else torch.zeros_like(rows.x))

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: AscentState, draw: Draw
    ) -> AscentState:
        """One forward, one backward, one move."""
        threat = problem.threat
        assert isinstance(threat, Steepest)
        grad = evaluate(state.z, need="grad").grad
        assert grad is not None
        if self.kernel != 1:
            grad = smooth(grad, self.kernel)
        velocity = state.velocity
        if self.momentum is not None:
            size = grad.flatten(1).abs().mean(1).clamp_min(torch.finfo(grad.dtype).tiny)
            velocity = self.momentum * velocity + grad / per_row(size, grad)
            grad = velocity
        length = threat.step_size(rows, self.share) if self.length is None else self.length
        move = threat.steepest(rows, state.z, grad) * length
        return AscentState(threat.project(rows, state.z + move), velocity)
