"""Curvature of a training loss, and three ways to divide by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import InputError, ModelError
from foible.core.oracle import Oracle
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.models import TorchModel

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy (B,) of logits (B, K) and labels (B,)."""
    return F.cross_entropy(scores, y, reduction="none")


class Curvature:
    """Gradients and Hessian products of a loss over a data set, by some of a net's parameters.

    The loss is the mean of `loss` over (x, y) plus l2 / 2 times the squared parameters; `product`
    adds damping times the vector. All sums go over blocks that fit one forward. Call inside
    `session`.
    """

    def __init__(
        self, held: TorchModel, data: tuple[Tensor, Tensor], layers: Sequence[str] | None,
        loss: Loss, l2: float, damping: float,
    ) -> None:  # fmt: skip
        self.held, (self.x, self.y), self.loss = held, data, loss
        self.l2, self.damping = l2, damping
        self.parameters = _chosen(held.net, layers)
        self.size = sum(p.numel() for p in self.parameters)

    @contextmanager
    def session(self) -> Iterator[Curvature]:
        """Hold the model still, with gradients on by the chosen parameters and no others."""
        mine = {id(p) for p in self.parameters}
        flags = [(p, p.requires_grad) for p in self.held.net.parameters()]
        with self.held.session(freeze=False):
            try:
                for p, _ in flags:
                    p.requires_grad_(id(p) in mine)
                yield self
            finally:
                for p, flag in flags:
                    p.requires_grad_(flag)

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Oracle, Rows]:
        """Return the losses (B,) on the graph, without the penalty, and the door for gradients."""
        oracle = Oracle(self.held, len(x), Access.GRADIENTS)
        index = torch.arange(len(x), device=x.device)
        rows = Rows(index, index, x, y)
        with torch.enable_grad():
            return self.loss(oracle.scores(x, rows), y), oracle, rows

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the gradient (P,) of the mean loss of these points, without the penalty."""
        total = torch.zeros(self.size, dtype=self.x.dtype, device=self.x.device)
        for xs, ys in self.blocks(x, y):
            values, oracle, rows = self.losses(xs, ys)
            total += flat(oracle.grad(values, self.parameters, rows))
        return total / len(x)

    def product(self, vector: Tensor, which: Tensor | None = None) -> Tensor:
        """Return (H + damping) v, (P,); which: (m,) points that stand for all of them."""
        x, y = (self.x, self.y) if which is None else (self.x[which], self.y[which])
        total = torch.zeros_like(vector)
        for xs, ys in self.blocks(x, y):
            values, oracle, rows = self.losses(xs, ys)
            with torch.enable_grad():
                slope = flat(oracle.grad(values, self.parameters, rows, create_graph=True))
                along = (slope * vector).sum()
            total += flat(oracle.grad(along, self.parameters, rows))
        return total / len(x) + (self.l2 + self.damping) * vector

    def along(self, x: Tensor, y: Tensor, vector: Tensor) -> Tensor:
        """Return the product (B,) of each point's own gradient with a vector (P,).

        The gradient by the points' weights of the weighted gradient along v: two backwards, and
        no gradient of a single point is ever stored.
        """
        out = []
        for xs, ys in self.blocks(x, y):
            values, oracle, rows = self.losses(xs, ys)
            with torch.enable_grad():
                weights = torch.ones_like(values, requires_grad=True)
                weighted = weights * values
                slope = flat(oracle.grad(weighted, self.parameters, rows, create_graph=True))
                dot = (slope * vector).sum()
            out.append(oracle.grad(dot, (weights,), rows)[0].detach())
        return torch.cat(out)

    def dense(self) -> Tensor:
        """Return H + damping, (P, P); one backward through the gradient a parameter and block."""
        if self.size > 6000:
            raise InputError(
                f"a dense Hessian of {self.size:,} parameters takes {8 * self.size**2 / 2**30:.0f} "
                "GiB: name the last layer with layers=(...), or take conjugate_gradient()"
            )
        total = torch.zeros(self.size, self.size, dtype=self.x.dtype, device=self.x.device)
        for xs, ys in self.blocks(self.x, self.y):
            values, oracle, rows = self.losses(xs, ys)
            with torch.enable_grad():
                slope = flat(oracle.grad(values, self.parameters, rows, create_graph=True))
            for k in range(self.size):
                one = oracle.grad(slope[k], self.parameters, rows, retain_graph=True)
                total[k] += flat(one)
        eye = torch.eye(self.size, dtype=total.dtype, device=total.device)
        return total / len(self.x) + (self.l2 + self.damping) * eye

    def blocks(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut points into blocks that fit one forward."""
        width = max(1, self.held.chunk(self.x))
        yield from zip(x.split(width), y.split(width), strict=True)


# From right-hand sides (P,) to (H + damping)^-1 of them.
Divide = Callable[[Tensor], Tensor]


class Solver(ABC):
    """Divides by the curvature; a frozen value."""

    @abstractmethod
    def of(self, curvature: Curvature) -> Divide:
        """Return the division, after what all of its uses share; call both inside its session."""


@dataclass(frozen=True)
class ConjugateGradient(Solver):
    """Conjugate gradients on exact Hessian products; one pass over the data a step."""

    steps: int = 200
    tolerance: float = 1e-8

    def of(self, curvature: Curvature) -> Divide:
        """Stop at a residual of `tolerance` times |right|, or after `steps`."""
        return partial(self._solve, curvature)

    def _solve(self, curvature: Curvature, right: Tensor) -> Tensor:
        found, residual = torch.zeros_like(right), right.clone()
        way, power = residual.clone(), residual @ residual
        goal = self.tolerance**2 * float(power)
        for _ in range(self.steps):
            if float(power) <= goal:
                break
            image = curvature.product(way)
            bend = way @ image
            if float(bend) <= 0:
                raise ModelError(
                    "the loss curves downwards along some direction: the net is not at a minimum, "
                    "and H has no inverse that means anything. Raise damping=, or name the last "
                    "layer with layers=(...)"
                )
            length = power / bend
            found, residual = found + length * way, residual - length * image
            power, before = residual @ residual, power
            way = residual + (power / before) * way
        return found


@dataclass(frozen=True)
class Lissa(Solver):
    """The stochastic Taylor series of the inverse (Agarwal et al. 2017), as Koh and Liang use it.

    v <- r + v - (H_batch + damping) v / scale, `depth` times; the mean of `repeats` such series,
    divided by scale. scale must exceed the largest eigenvalue of H.
    """

    depth: int = 1000
    scale: float = 10.0
    batch: int = 32
    repeats: int = 1
    seed: int = 0

    def of(self, curvature: Curvature) -> Divide:
        """One pass over a batch a step."""
        return partial(self._solve, curvature)

    def _solve(self, curvature: Curvature, right: Tensor) -> Tensor:
        total = torch.zeros_like(right)
        count = len(curvature.x)
        size = min(self.batch, count)
        for repeat in range(self.repeats):
            draw = Rng(self.seed).split(23 + repeat)
            found = right
            limit = 1e6 * float(right.abs().max()) * self.scale
            for step in range(self.depth):
                which = (draw.at(torch.tensor([0]), step).scalars(size)[0] * count).long()
                found = right + found - curvature.product(found, which) / self.scale
                if not float(found.abs().max()) <= limit:
                    break
            if not float(found.abs().max()) <= limit:
                raise ModelError(
                    f"the series diverged: its scale {self.scale:g} is below the largest "
                    "eigenvalue of the Hessian. Raise scale="
                )
            total += found / self.scale
        return total / self.repeats


@dataclass(frozen=True)
class Explicit(Solver):
    """The Hessian itself, factorised: exact, for a linear model or a net's last layer."""

    def of(self, curvature: Curvature) -> Divide:
        """Factorise once (Cholesky), for every right-hand side."""
        factor, failed = torch.linalg.cholesky_ex(curvature.dense())
        if int(failed):
            raise ModelError(
                "the Hessian is not positive definite: raise damping= (or l2=, if the model was "
                "trained with a penalty)"
            )

        def divide(right: Tensor) -> Tensor:
            found: Tensor = torch.cholesky_solve(right[:, None], factor)[:, 0]
            return found

        return divide


def _chosen(net: nn.Module, layers: Sequence[str] | None) -> tuple[Tensor, ...]:
    if layers is None:
        return tuple(net.parameters())
    known = dict(net.named_modules())
    if missing := [name for name in layers if name not in known]:
        named = [name for name, m in known.items() if any(True for _ in m.parameters(False))]
        raise InputError(f"the net has no layer {missing[0]!r}: it has {', '.join(named)}")
    found = {id(p): p for name in layers for p in known[name].parameters()}
    if not found:
        raise InputError(f"the layers {', '.join(layers)} hold no parameters")
    return tuple(found.values())


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Return gradients by several parameters as one vector (P,)."""
    return torch.cat([part.reshape(-1) for part in parts])
