"""Explanations from gradients at one point or around it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.explain.base import Explanation


@dataclass(frozen=True)
class Saliency(Explanation):
    """The signed input gradient (Simonyan et al. 2014); pictures take the absolute value."""

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """One forward, one backward."""
        return field.gradient(rows.x, rows, create_graph=create_graph)[1]


@dataclass(frozen=True)
class GradientTimesInput(Explanation):
    """The gradient times the input (Shrikumar et al. 2016): exact on a linear model from 0."""

    verb = "delete"

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """One forward, one backward."""
        return rows.x * field.gradient(rows.x, rows, create_graph=create_graph)[1]


@dataclass(frozen=True)
class Noisy(Explanation):
    """Gradients at `samples` noisy copies; sigma is a share of the input's range."""

    samples: int = 50
    sigma: float = 0.15

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.sigma >= 0:
            raise InputError(f"samples={self.samples}, sigma={self.sigma}: at least 1, at least 0")

    def _gradients(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool
    ) -> Iterator[Tensor]:
        """Give the gradients (k, B, *shape) at k noisy copies at a time."""
        noise = self._noise(field, rows, draw)
        for block in field.blocks(len(rows), self.samples):
            many = rows.repeat(len(block))
            x = many.x + noise[:, block].transpose(0, 1).reshape(many.x.shape)
            grad = field.gradient(x, many, create_graph=create_graph)[1]
            yield grad.view(len(block), *rows.x.shape)

    def _noise(self, field: Field, rows: Rows, draw: Draw) -> Tensor:
        low, high = field.oracle.bounds
        noise = draw.normal((self.samples, *rows.shape), rows.x.dtype) * self.sigma
        if math.isfinite(high - low):
            return noise * (high - low)
        flat = rows.x.detach().flatten(1)
        return noise * per_row(flat.amax(1) - flat.amin(1), noise)


@dataclass(frozen=True)
class SmoothGrad(Noisy):
    """The mean gradient at `samples` noisy copies (Smilkov et al. 2017).

    sigma: the noise as a share of the input's range (of each row's own range where the model's
    bounds are infinite). Copies may leave the box, as in the paper.
    """

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """`samples` forwards and backwards; one of each where sigma is 0, which is the same."""
        if self.sigma == 0:
            return field.gradient(rows.x, rows, create_graph=create_graph)[1]
        maps = []
        for group in field.groups(rows, self.samples):
            some = rows.take(group)
            total = torch.zeros_like(some.x)
            for grads in self._gradients(field, some, draw.take(group), create_graph=create_graph):
                total = total + grads.sum(0)
            maps.append(total / self.samples)
        return torch.cat(maps)


@dataclass(frozen=True)
class VarGrad(Noisy):
    """The variance of the gradient over `samples` noisy copies (Adebayo et al. 2018).

    The variance of the copies, not an estimate of a larger set's, as in captum. It names features
    and no direction: the map is not signed. sigma: as of SmoothGrad.
    """

    signed = False
    verb = "delete"

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """`samples` forwards and backwards."""
        maps = []
        for group in field.groups(rows, self.samples):
            some = rows.take(group)
            seen, mean, spread = 0, torch.zeros_like(some.x), torch.zeros_like(some.x)
            for grads in self._gradients(field, some, draw.take(group), create_graph=create_graph):
                # Two sets' variances join by Chan et al. 1979; a difference of squares would lose
                # the digits of a small one.
                count, own = len(grads), grads.mean(0)
                away, both = own - mean, seen + count
                spread = spread + ((grads - own) ** 2).sum(0) + away**2 * (seen * count / both)
                mean, seen = mean + away * (count / both), both
            maps.append(spread / self.samples)
        return torch.cat(maps)


def saliency() -> Saliency:
    """Return the input gradient of the target's logit (B1, Simonyan et al. 2014).

    >>> import foible, torch
    >>> net = torch.nn.Linear(3, 2)
    >>> m = foible.explain.saliency()(net, torch.rand(4, 3), 1)
    >>> torch.equal(m[0], net.weight[1])
    True
    """
    return Saliency()


def gradient_x_input() -> GradientTimesInput:
    """Return gradient times input (Shrikumar et al. 2016)."""
    return GradientTimesInput()


def smoothgrad(samples: int = 50, sigma: float = 0.15) -> SmoothGrad:
    """Return SmoothGrad (B2, Smilkov et al. 2017): sigma is a share of the input's range."""
    return SmoothGrad(samples, sigma)


def vargrad(samples: int = 50, sigma: float = 0.15) -> VarGrad:
    """Return VarGrad (Adebayo et al. 2018): how much the gradient varies around x; not signed.

    >>> import foible, torch
    >>> net = torch.nn.Linear(3, 2)  # its gradient is everywhere the same
    >>> float(foible.explain.vargrad(8)(net, torch.rand(4, 3), 1).abs().max()) < 1e-12
    True
    """
    return VarGrad(samples, sigma)
