"""Which class is nearest: the ranking that minimum-norm and targeted attacks begin with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import KindError
from foible.core.oracle import Oracle
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.parts.objectives import others
from foible.parts.planes import nearest
from foible.parts.threats import Ball


@dataclass(frozen=True)
class Rivals:
    """A `prepare`: linearise the model at x and measure the way to every class's boundary.

    Fills `rows.extra`: "scale" (B, K), how fast each class gains on the label along its shortest
    way inside the box (see `parts.objectives.Nearest`), and "rank" (B, C) int64, the C nearest
    classes, nearest first. On a linear model both are exact. Costs one forward and `most` + 1
    backwards a sample; with more classes only those of the largest scores are measured, and the
    others count as far. With targets it does nothing.
    """

    threat: Threat
    most: int = 9
    access: ClassVar[Access] = Access.GRADIENTS

    def __call__(self, oracle: Oracle, rows: Rows, seed: int) -> Rows:
        """Return the rows with "scale" and "rank"."""
        if rows.target is not None:
            return rows
        width = max(1, oracle.chunk(rows.x))
        parts = torch.arange(len(rows), device=rows.x.device).split(width)
        found = [self._measure(oracle, rows.take(part)) for part in parts]
        scale, rank = (torch.cat(column) for column in zip(*found, strict=True))
        return replace(rows, extra={**rows.extra, "scale": scale, "rank": rank})

    def _measure(self, oracle: Oracle, rows: Rows) -> tuple[Tensor, Tensor]:
        threat = self.threat.inside(oracle.bounds)
        if not isinstance(threat, Ball):
            raise KindError(f"{type(threat).__name__} has no norm to rank classes by: use a ball")
        assert rows.scores is not None
        count = min(self.most, rows.scores.shape[1] - 1)
        top = others(rows.scores, rows.y).topk(count, dim=1).indices
        asked = torch.cat([rows.y[:, None], top], 1)
        scores, grads = oracle.jacobian(rows.x, rows, asked)
        normal = threat.by_z((grads[:, 1:] - grads[:, :1]).flatten(0, 1))
        normal = normal.view(len(grads), count, -1)
        gap = scores.gather(1, rows.y[:, None]) - scores.gather(1, top)
        low, high = (room.flatten(1) for room in threat._room(rows))
        away = torch.empty_like(gap)
        for place in range(count):
            step = nearest(threat.norm, normal[:, place], gap[:, place], low, high)
            reached = (normal[:, place] * step).sum(1)
            length = threat.length(step.double()).to(gap.dtype)
            # Where the box holds no crossing of the linearised boundary, that class is far.
            short = reached < gap[:, place] * (1 - 1e-4)
            away[:, place] = torch.where(short, 1e6, 1.0) * length.clamp_min(1e-12)
        # A class that leads already (a source may get a sample wrong) has no way to be measured.
        measured = torch.where(gap > 0, gap / away, 0.0)
        least = measured.amax(1, keepdim=True)
        measured = torch.where(gap > 0, measured, torch.where(least > 0, least, 1.0))
        measured = measured.clamp_min(torch.finfo(gap.dtype).tiny)
        # The slowest of the measured ones, so that a class that was not measured counts as far
        # until its score has really risen.
        scale = measured.amax(1, keepdim=True).expand_as(scores).clone()
        scale = scale.scatter(1, top, measured)
        return scale, top.gather(1, away.argsort(dim=1, stable=True))
