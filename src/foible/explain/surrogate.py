"""Explanations by a local linear surrogate: scores only, no gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.base import Explanation
from foible.explain.removal import (
    Baseline,
    Segments,
    as_segments,
    check_baseline,
    filling,
    masked_values,
    plain,
)


@dataclass(frozen=True)
class Lime(Explanation):
    """A weighted ridge regression on random maskings of segments (Ribeiro et al. 2016, Eq. 13).

    samples: maskings, one forward each. segments: what is hidden together, a number for the side
    of square cells (a table's features are a segment each). baseline: what a hidden segment
    shows. width: of the kernel sqrt(exp(-d^2 / width^2)) on the cosine distance of the masking to
    the whole. ridge: the penalty. Departures: segments are a grid, not superpixels, and all of
    them are kept.
    """

    samples: int = 300
    segments: Segments | int = 4
    baseline: Baseline = 0.0
    width: float = 0.25
    ridge: float = 1.0
    access = Access.SCORES
    differentiable = False

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InputError(f"samples={self.samples}: at least 2")
        as_segments(self.segments)
        check_baseline(self.baseline)

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """`samples` forwards; every pixel carries the coefficient of its segment."""
        part = as_segments(self.segments).of(rows)
        fill = filling(self.baseline, rows, part)
        shown = draw.uniform((self.samples, part.count), rows.x.dtype) < 0.5
        shown[:, 0] = True  # the input itself anchors the fit
        values = masked_values(field, rows, shown, part, fill)
        weights = self._fit(shown.double(), values.double(), part.count)
        return part.spread(weights, rows.shape).to(rows.x.dtype)

    def _fit(self, shown: Tensor, values: Tensor, count: int) -> Tensor:
        """Solve the weighted ridge regressions of all rows at once: (B, S)."""
        cosine = shown.sum(2) / (shown.norm(dim=2).clamp_min(1e-12) * math.sqrt(count))
        kernel = torch.exp(-((1 - cosine) ** 2) / self.width**2).sqrt()
        kernel = kernel / kernel.sum(1, keepdim=True)
        z = shown - (kernel[:, :, None] * shown).sum(1, keepdim=True)
        v = values - (kernel * values).sum(1, keepdim=True)
        # Weights sum to the number of samples, as in the authors' code: the ridge keeps its scale.
        weighted = z * (kernel * self.samples)[:, :, None]
        gram = weighted.transpose(1, 2) @ z + self.ridge * torch.eye(count).to(z)
        fitted: Tensor = torch.linalg.solve(gram, (weighted.transpose(1, 2) @ v[:, :, None]))
        return fitted.squeeze(2)


def lime(samples: int = 300, segments: Segments | int = 4, baseline: Baseline = 0.0) -> Lime:
    """Return LIME (B5, Ribeiro et al. 2016) on segments; needs SCORES access only."""
    return Lime(samples, segments, plain(baseline))
