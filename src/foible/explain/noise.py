"""A map of pure noise: the control that every explanation figure stands beside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foible.core.access import Access
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.base import Explanation


@dataclass(frozen=True)
class RandomMap(Explanation):
    """Standard normal values that know nothing of the model or the input."""

    access = Access.LABELS
    differentiable = False

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """No model call."""
        return draw.normal(rows.shape, rows.x.dtype)


def random_map() -> RandomMap:
    """Return the random-noise control for explanations."""
    return RandomMap()
