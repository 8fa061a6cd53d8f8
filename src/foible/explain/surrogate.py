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


def grid(shape: tuple[int, ...], cell: int) -> Tensor:
    """Return the segment (D,) int64 of every feature: square cells of an image, else one each.

    >>> int(grid((1, 28, 28), 4).max()) + 1
    49
    """
    if len(shape) < 2:
        return torch.arange(math.prod(shape))
    rows, cols = shape[-2:]
    wide = -(-cols // cell)
    ids = (torch.arange(rows) // cell)[:, None] * wide + (torch.arange(cols) // cell)[None, :]
    return ids.expand(shape).reshape(-1)


@dataclass(frozen=True)
class Lime(Explanation):
    """A weighted ridge regression on random maskings of segments (Ribeiro et al. 2016, Eq. 13).

    samples: maskings, one forward each. cell: the side of a square segment (a table's features
    are a segment each). baseline: what a hidden segment shows. width: of the kernel
    sqrt(exp(-d^2 / width^2)) on the cosine distance of the masking to the whole. ridge: the
    penalty. Departures: segments are a grid, not superpixels, and all of them are kept.
    """

    samples: int = 300
    cell: int = 4
    baseline: float = 0.0
    width: float = 0.25
    ridge: float = 1.0
    access = Access.SCORES
    differentiable = False

    def __post_init__(self) -> None:
        if self.samples < 2 or self.cell < 1:
            raise InputError(f"samples={self.samples}, cell={self.cell}: at least 2, at least 1")

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """`samples` forwards; every pixel carries the coefficient of its segment."""
        groups = field.groups(rows, self.samples)
        maps = [self._some(field, rows.take(g), draw.take(g)) for g in groups]
        return torch.cat(maps)

    def _some(self, field: Field, rows: Rows, draw: Draw) -> Tensor:
        segment = grid(rows.shape, self.cell).to(rows.x.device)
        count = int(segment.max()) + 1
        shown = draw.uniform((self.samples, count), rows.x.dtype) < 0.5
        shown[:, 0] = True  # the input itself anchors the fit
        values = torch.empty(self.samples, len(rows), dtype=rows.x.dtype, device=rows.x.device)
        for block in field.blocks(len(rows), self.samples):
            many = rows.repeat(len(block))
            keep = shown[:, block].transpose(0, 1)[:, :, segment].reshape(many.x.shape)
            x = torch.where(keep, many.x, self.baseline)
            values[block.start : block.stop] = field.values(x, many).view(len(block), -1)
        weights = self._fit(shown.double(), values.T.double(), count)
        return weights[:, segment].view_as(rows.x).to(rows.x.dtype)

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


def lime(samples: int = 300, cell: int = 4, baseline: float = 0.0) -> Lime:
    """Return LIME on grid segments (B5, Ribeiro et al. 2016); needs SCORES access only."""
    return Lime(samples, cell, baseline)
