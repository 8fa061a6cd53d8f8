"""Integrated and expected gradients: gradients on the way from a baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.explain.base import Explanation
from foible.explain.removal import plain


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


@dataclass(frozen=True)
class ExpectedGradients(Explanation):
    """The mean of (x - b) times the gradient at a random point between b and x (Erion et al. 2021).

    samples: draws of a baseline b and of the point, uniform on the way. background: nested tuples
    (N, *shape) of inputs to draw b from, as `expected_gradients` makes of a tensor; None draws b
    uniformly from the model's box (Sturmfels et al. 2020). The map sums, in expectation, to F(x)
    minus the mean of F over the background. x itself may be in the background: it then adds zero.
    """

    samples: int = 50
    background: tuple[Any, ...] | None = None
    verb = "delete"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples={self.samples}: at least 1")

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """`samples` forwards and backwards, in blocks that fit one forward."""
        maps = []
        for group in field.groups(rows, self.samples):
            some, drawn = rows.take(group), draw.take(group)
            base = self._baselines(field, some, drawn)
            at = drawn.split(1).uniform((self.samples,), some.x.dtype)
            total = torch.zeros_like(some.x)
            for block in field.blocks(len(some), self.samples):
                many = some.repeat(len(block))
                away = many.x - base[:, block].transpose(0, 1).reshape(many.x.shape)
                back = per_row(1 - at[:, block].T.reshape(-1), many.x)
                grad = field.gradient(many.x - back * away, many, create_graph=create_graph)[1]
                total = total + (away * grad).view(len(block), *some.x.shape).sum(0)
            maps.append(total / self.samples)
        return torch.cat(maps)

    def _baselines(self, field: Field, rows: Rows, draw: Draw) -> Tensor:
        """Return the baselines (B, samples, *shape)."""
        x = rows.x
        if self.background is None:
            low, high = field.oracle.bounds
            if not math.isfinite(high - low):
                raise InputError(
                    f"the model's bounds are {(low, high)}, so baselines cannot be drawn from its "
                    "box: give background=, a tensor of inputs such as training samples"
                )
            return low + (high - low) * draw.uniform((self.samples, *rows.shape), x.dtype)
        given = torch.tensor(self.background, dtype=x.dtype, device=x.device)
        if given.shape[1:] != x.shape[1:] or len(given) == 0:
            raise InputError(
                f"the background has shape {tuple(given.shape)} and an input {rows.shape}: give "
                "(N, *shape), one input a row"
            )
        which = (draw.uniform((self.samples,), torch.float64) * len(given)).long()
        return given[which.clamp(max=len(given) - 1)]


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


def expected_gradients(
    samples: int = 50, background: Tensor | tuple[Any, ...] | None = None
) -> ExpectedGradients:
    """Return expected gradients (Erion et al. 2021): integrated from many baselines at random.

    background: (N, *shape) inputs to draw baselines from, such as training samples; None draws
    them uniformly from the model's box.

    >>> import foible, torch
    >>> net = torch.nn.Linear(3, 2).double()
    >>> x, background = torch.rand(4, 3).double(), torch.zeros(1, 3).double()
    >>> maps = foible.explain.expected_gradients(5, background)(net, x, 1)
    >>> torch.allclose(maps, x * net.weight[1])
    True
    """
    return ExpectedGradients(samples, None if background is None else plain(background))
