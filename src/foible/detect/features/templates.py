"""How far a map is from the mean map of the class that is seen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State, gathered
from foible.detect.features.maps import Maps


@dataclass(frozen=True)
class Template(Feature):
    """One minus the similarity of an input's map and its predicted class's template: (B, 1).

    The template is the mean, over clean inputs of a class, of their maps of that class, each at
    unit length, so that no single one outweighs the others. maps: what is compared. kind: "cosine",
    or "correlation", which takes each map's own mean away first. A class without clean inputs has
    the mean of the other classes' templates.
    """

    maps: Maps = dataclasses.field(default_factory=lambda: Maps(image=False))
    kind: str = "cosine"

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "correlation"):
            raise InputError(f"kind={self.kind!r}: choose cosine or correlation")

    @property
    def access(self) -> Access:  # type: ignore[override]
        """As the maps'."""
        return self.maps.access

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """As the maps."""
        return self.maps.differentiable

    @property
    def looks(self) -> int:
        """As the maps'."""
        return self.maps.looks

    @property
    def held(self) -> int:
        """As the maps."""
        return self.maps.held

    def soft(self) -> Feature:
        """Return the distance of the smoothed maps, from the same templates."""
        maps = self.maps.soft()
        assert isinstance(maps, Maps)
        return self if maps == self.maps else replace(self, maps=maps)

    def learn(self, oracle: Oracle, rows: Rows, draw: Draw) -> State:
        """Learn the templates (K, D) of the true classes."""
        found = self._unit(gathered(self.maps, oracle, rows, {}, draw))
        classes = max(oracle.classes, int(rows.y.max()) + 1)
        total = found.new_zeros(classes, found.shape[1]).index_add(0, rows.y, found)
        seen = torch.bincount(rows.y, minlength=classes) > 0
        total[~seen] = torch.nn.functional.normalize(total[seen], dim=1).mean(0)
        return {"template": self._unit(total)}

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, 1) in [0, 2]."""
        found = self._unit(self.maps(oracle, rows, {}, draw, create_graph=create_graph))
        return 1 - (found * state["template"][rows.y].to(found)).sum(1, keepdim=True)

    def _unit(self, maps: Tensor) -> Tensor:
        flat = maps.flatten(1)
        if self.kind == "correlation":
            flat = flat - flat.mean(1, keepdim=True)
        return torch.nn.functional.normalize(flat, dim=1)
