"""The search: how z moves. It sees the model only through `evaluate`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from foible.core.access import Access
from foible.core.randomness import Draw
from foible.core.rows import Rows

if TYPE_CHECKING:
    from foible.core.problem import Problem


@dataclass(frozen=True)
class Evaluation:
    """What one query gave: all (B, ...) and off the graph; grad only where it was asked for.

    For need "jacobian", grad is (B, C, *shape): of each asked class's logit, not the objective.
    """

    value: Tensor
    success: Tensor
    scores: Tensor | None
    grad: Tensor | None


class Evaluate(Protocol):
    """The only query of a search; it judges, meters, caps and records each point."""

    def __call__(
        self,
        z: Tensor,
        rows: Rows | None = None,
        need: str = "labels",
        classes: Tensor | None = None,
    ) -> Evaluation:
        """Evaluate z for `rows` (None: the active ones; a row may come several times).

        need: "labels", "scores", "grad" (of the objective by z), or "jacobian" (of the logits of
        `classes` (B, C) by z: one forward and C backwards). A point beyond the cap of queries is
        not asked: it comes back as no success, value -inf, scores and gradients 0.
        """


class Search(ABC):
    """Moves z for at most `steps` steps.

    State is any tree (dataclass, tuple, dict) of tensors with a leading batch dimension; the
    solver slices and joins it. It has a field `z`, the point that is judged next. Rows in one
    batch may be at different steps: `draw.step` (B,) says which.
    """

    steps: int
    access: Access = Access.GRADIENTS

    @property
    def strays(self) -> bool:
        """Whether it may evaluate points outside of the threat; those are never kept."""
        return False

    @abstractmethod
    def init(self, problem: Problem, rows: Rows, draw: Draw) -> Any:
        """Return the state of fresh rows."""

    @abstractmethod
    def step(self, problem: Problem, rows: Rows, evaluate: Evaluate, state: Any, draw: Draw) -> Any:
        """Return the state after one step."""

    def ended(self, state: Any) -> Tensor | None:
        """Return which rows (B,) have nothing left to try, or None; most searches never know."""
        return None
