"""Influence functions: which training points made this prediction?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError, KindError
from foible.core.progress import tick
from foible.explain.base import check_inputs
from foible.explain.curvature import (
    ConjugateGradient,
    Curvature,
    Divide,
    Explicit,
    Lissa,
    Loss,
    Solver,
    cross_entropy,
    flat,
)
from foible.models import TorchModel, as_model

Points = tuple[Tensor, Tensor]


class Influences:
    """The influence of each training point of one model; made by `influence(...).fit`.

    All answers are first-order: by how much a quantity would change if the model were trained
    again to its minimum. Positive: it would rise.
    """

    def __init__(self, curvature: Curvature, solver: Solver) -> None:
        self.curvature, self.solver = curvature, solver
        self.count = len(curvature.x)

    def removed(self, which: int | Tensor) -> Tensor:
        """Return the change of the parameters (P,) if these training points were not there.

        The survey's first question: (1 / n) H^-1 times the sum of their gradients.
        """
        chosen = torch.as_tensor(which).reshape(-1)
        with self.curvature.session() as c:
            slope = c.gradient(c.x[chosen], c.y[chosen]) * len(chosen)
            return self._divided(slope) / self.count

    def on(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the change of each test loss by the absence of each training point: (T, N).

        The survey's second question: g_t H^-1 g_z / n. One solve and three passes a test point.
        """
        check_inputs(x)
        out = []
        with self.curvature.session() as c:
            for t in range(len(x)):
                toward = self._divided(c.gradient(x[t : t + 1], y[t : t + 1]))
                out.append(c.along(c.x, c.y, toward) / self.count)
                tick(1)
        return torch.stack(out)

    def changed(self, which: int, new: Points, test: Points) -> Tensor:
        """Return the change of each test loss (T,) if one training point became another.

        The survey's third question. new: (x, y) of one point, with the batch dimension.
        """
        with self.curvature.session() as c:
            before = c.gradient(c.x[which : which + 1], c.y[which : which + 1])
            moved = self._divided(before - c.gradient(*new)) / self.count
            return c.along(*test, moved)

    def pushed(self, which: int, test: Points) -> Tensor:
        """Return the gradient of the mean test loss by one training input, of that input's shape.

        The limit of `changed` for small changes: which features of the training point to move.
        """
        with self.curvature.session() as c:
            toward = self._divided(c.gradient(*test))
            x, y = c.x[which : which + 1].detach().clone(), c.y[which : which + 1]
            with torch.enable_grad():
                x.requires_grad_()
                values, oracle, rows = c.losses(x, y)
                slope = flat(oracle.grad(values, c.parameters, rows, create_graph=True))
                dot = (slope * toward).sum()
            (by_input,) = oracle.grad(dot, (x,), rows)
            return -by_input[0].detach() / self.count

    def itself(self) -> Tensor:
        """Return how much each training point's own loss would rise without it: (N,).

        Large where a point is learnt by heart: mislabelled points come first. One solve a point,
        so take `explicit()` or a last layer.
        """
        out = []
        with self.curvature.session() as c:
            for i in range(self.count):
                slope = c.gradient(c.x[i : i + 1], c.y[i : i + 1])
                out.append(slope @ self._divided(slope) / self.count)
                tick(1)
        return torch.stack(out)

    def suspects(self) -> Tensor:
        """Return the training points (N,) int64, the most likely mislabelled first."""
        return self.itself().argsort(descending=True, stable=True)

    @cached_property
    def _divided(self) -> Divide:
        return self.solver.of(self.curvature)


@dataclass(frozen=True)
class Influence:
    """Settings of influence functions; `fit` binds them to a model and its training data."""

    solver: Solver = field(default_factory=ConjugateGradient)
    layers: tuple[str, ...] | None = None
    l2: float = 0.0
    damping: float = 0.0
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        if self.l2 < 0 or self.damping < 0:
            raise InputError(f"l2={self.l2}, damping={self.damping}: at least 0")

    def fit(self, model: Any, data: Points) -> Influences:
        """Bind to a trained model and the data that it was trained on: x (N, *shape), y (N,)."""
        held = as_model(model)
        if not isinstance(held, TorchModel):
            raise KindError(f"{type(model).__name__} has no parameters here: pass an nn.Module")
        x, y = data
        check_inputs(x)
        if y.shape != (len(x),) or len(x) == 0:
            raise InputError(f"y has shape {tuple(y.shape)} for {len(x)} inputs: one label each")
        made = Curvature(held, (x.detach(), y), self.layers, self.loss, self.l2, self.damping)
        return Influences(made, self.solver)


def influence(
    solver: Solver | None = None, layers: Sequence[str] | None = None, l2: float = 0.0,
    damping: float = 0.0,
) -> Influence:  # fmt: skip
    """Return influence functions (B8; Koh and Liang 2017): what a training point has done.

    `.fit(model, (x, y))` gives the answers to the survey's three questions, `removed`, `on` and
    `changed`, and `suspects`, the search for mislabelled points. solver: `conjugate_gradient()`
    (the default), `lissa()`, or `explicit()`, which is exact and quick for few parameters. layers:
    names of modules, the last one, say; None takes all parameters. l2: the weight of the penalty
    l2 / 2 |w|^2 in training. damping: added to the Hessian, which must be positive definite; a net
    that is not at a minimum needs some, and its answers are less sure.

    >>> import foible, torch
    >>> x, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 0])
    >>> net = torch.nn.Linear(1, 2).double()
    >>> found = influence(explicit(), l2=0.1).fit(net, (x.double(), y))
    >>> int(found.suspects()[0]) in range(4), found.on(x.double()[:2], y[:2]).shape
    (True, torch.Size([2, 4]))
    """
    chosen = ConjugateGradient() if solver is None else solver
    return Influence(chosen, None if layers is None else tuple(layers), l2, damping)


def conjugate_gradient(steps: int = 200, tolerance: float = 1e-8) -> ConjugateGradient:
    """Return the solver by conjugate gradients (Martens 2010), one pass over the data a step."""
    return ConjugateGradient(steps, tolerance)


def lissa(depth: int = 1000, scale: float = 10.0, batch: int = 32, repeats: int = 1) -> Lissa:
    """Return the stochastic solver LiSSA (Agarwal et al. 2017); scale above H's largest eigenvalue.

    Koh and Liang take depth 10,000, scale 10 and one point a step.
    """
    return Lissa(depth, scale, batch, repeats)


def explicit() -> Explicit:
    """Return the exact solver, which factorises the Hessian (up to 6,000 parameters)."""
    return Explicit()
