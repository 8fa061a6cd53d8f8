"""Integrated gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.base import Explanation


@dataclass(frozen=True)
class IntegratedGradients(Explanation):
    """(x - b) times the mean gradient on the way from b to x (Sundararajan et al. 2017).

    steps: points of the midpoint rule, whose error falls with 1 / steps^2 on a smooth net (the
    survey's Eq. 11 takes right ends, 1 / steps). baseline: one number for b. The map sums to
    F(x) - F(b); a ReLU net's integrand jumps, so `foible.explain.completeness` reports the
    residual.
    """

    steps: int = 50
    baseline: float = 0.0
    additive = True
    verb = "delete"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps}: at least 1")

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """`steps` forwards and backwards, in blocks that fit one forward."""
        away = rows.x - self.baseline
        total = torch.zeros_like(rows.x)
        for block in field.blocks(len(rows), self.steps):
            many = rows.repeat(len(block))
            at = (torch.tensor(block, dtype=rows.x.dtype, device=rows.x.device) + 0.5) / self.steps
            at = at.reshape(-1, *([1] * rows.x.dim()))
            x = (self.baseline + at * away).reshape(many.x.shape)
            grad = field.gradient(x, many, create_graph=create_graph)[1]
            total = total + grad.view(len(block), *rows.x.shape).sum(0)
        return away * total / self.steps


def integrated_gradients(steps: int = 50, baseline: float = 0.0) -> IntegratedGradients:
    """Return integrated gradients (B3, survey Eq. 11), by the midpoint rule.

    >>> import foible, torch
    >>> net = torch.nn.Linear(3, 2).double()
    >>> x = torch.rand(1, 3).double()
    >>> m = foible.explain.integrated_gradients(steps=5)(net, x, 1)
    >>> bool((m.sum() - (net(x) - net(0 * x))[0, 1]).abs() < 1e-10)
    True
    """
    return IntegratedGradients(steps, baseline)
