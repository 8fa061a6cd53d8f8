"""Explainers, and the scalar field over inputs that they explain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.randomness import Draw
from foible.core.rows import Rows

if TYPE_CHECKING:
    from foible.core.oracle import Oracle
    from foible.core.problem import View


class Field:
    """A number for every input: what an explainer explains.

    For a user it is the logit of the target; as a direction it is the attack's objective. So
    one implementation of a method serves both.
    """

    def __init__(self, oracle: Oracle, score: Callable[[View], Tensor], width: int) -> None:
        self.oracle, self.score, self.width = oracle, score, width

    def values(self, x: Tensor, rows: Rows) -> Tensor:
        """Return the field (B,) at x without a graph; one forward a row."""
        with torch.no_grad():
            return self._at(x, rows)

    def gradient(
        self, x: Tensor, rows: Rows, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the field (B,) and its gradient (B, *shape) at x."""
        return self.oracle.value_and_grad(
            lambda leaf: self._at(leaf, rows), x, rows, create_graph=create_graph
        )

    def at_layer(
        self, x: Tensor, rows: Rows, layer: str | None = None, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the field (B,), a layer's output and the field's gradient by it.

        layer: as in `Oracle.tap`. One forward and one backward a row; needs INTERNALS access.
        Raises InputError for an objective that averages over draws: it looks at other points.
        """
        from foible.core.problem import View

        if hasattr(self.score, "draws"):
            raise InputError(
                "a layer's gradient belongs to one point, and this objective averages over draws: "
                "explain the inner objective, or use a method that looks at x only"
            )
        with torch.enable_grad():
            at = x if create_graph else x.detach()
            scores, activation = self.oracle.tap(at, rows, layer)
            values = self.score(View(self.oracle, rows, at, scores=scores))
            (grad,) = self.oracle.grad(values, (activation,), rows, create_graph=create_graph)
        if create_graph:
            return values, activation, grad
        return values.detach(), activation.detach(), grad

    def blocks(self, rows: int, samples: int) -> list[range]:
        """Cut `samples` draws of `rows` rows each into blocks that fit one forward."""
        size = max(1, self.width // max(1, rows))
        return [range(i, min(i + size, samples)) for i in range(0, samples, size)]

    def groups(self, rows: Rows, samples: int) -> tuple[Tensor, ...]:
        """Cut rows, by position, so that all draws of a group together fill one forward.

        A method that holds `samples` draws of every row at once stays within the chunk so.
        """
        positions = torch.arange(len(rows), device=rows.x.device)
        groups: tuple[Tensor, ...] = positions.split(max(1, self.width // max(1, samples)))
        return groups

    def _at(self, x: Tensor, rows: Rows) -> Tensor:
        from foible.core.problem import View

        return self.score(View(self.oracle, rows, x))


class Explainer(ABC):
    """Gives a signed map of x's shape for a field.

    access: what it asks of the model; signed: whether its sign means for or against the target;
    differentiable: whether `create_graph` works; additive: whether its map should sum to a
    difference of the field; verb: "push" or "delete", what the map answers best.
    """

    access: ClassVar[Access] = Access.GRADIENTS
    signed: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    additive: ClassVar[bool] = False
    verb: ClassVar[str] = "push"

    @abstractmethod
    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return the map (B, *shape) of the field at rows.x."""
