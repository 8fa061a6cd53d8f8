"""How far an input's activations are from those of the nearest class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State
from foible.detect.features.activations import Layers, activations, check_layers, in_chunks


@dataclass(frozen=True)
class MahalanobisDistance(Feature):
    """min over classes c of (a - m_c)' S^-1 (a - m_c), for each layer: (B, layers).

    m_c: the mean activation of clean inputs of class c; S: the covariance within classes, one for
    all, pulled by `shrinkage` towards a multiple of the identity with the same trace. Maps are
    averaged over positions first.
    """

    layers: Layers = 3
    shrinkage: float = 0.01
    access = Access.INTERNALS

    def __post_init__(self) -> None:
        check_layers(self.layers)
        if not 0 < self.shrinkage <= 1:
            raise InputError(f"shrinkage={self.shrinkage}: in (0, 1], so that S has an inverse")

    def learn(self, oracle: Oracle, rows: Rows, draw: Draw) -> State:
        """Learn the means (classes, F) and the inverse covariance (F, F) of each layer."""
        state: State = {}
        found = in_chunks(oracle, rows, lambda some: activations(oracle, some, self.layers))
        classes, which = rows.y.unique(return_inverse=True)
        for i, a in enumerate(found):
            data = a.double()
            sums = torch.zeros(len(classes), data.shape[1], dtype=data.dtype, device=data.device)
            means = sums.index_add(0, which, data) / which.bincount()[:, None]
            away = data - means[which]
            cov = away.T @ away / len(data)
            level = cov.diagonal().mean().clamp_min(1e-12)
            eye = torch.eye(len(cov), dtype=cov.dtype, device=cov.device)
            cov = (1 - self.shrinkage) * cov + self.shrinkage * level * eye
            state |= {f"mean{i}": means, f"inverse{i}": torch.linalg.inv(cov)}
        return state

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, layers) float64, at least 0."""
        found = activations(oracle, rows, self.layers, create_graph=create_graph)
        apart = []
        for i, a in enumerate(found):
            away = a.double()[:, None] - state[f"mean{i}"]
            apart.append(((away @ state[f"inverse{i}"]) * away).sum(2).amin(1))
        return torch.stack(apart, 1)
