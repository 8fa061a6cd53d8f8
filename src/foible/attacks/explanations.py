"""Attacks on explanations: the label stays, the map goes where it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from foible.attacks.base import check_batch, needs_eps
from foible.core.errors import InputError
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.explain.base import Explanation
from foible.explain.moving import Hunted, MapSearch, OfMap
from foible.models import as_model
from foible.parts.searches import Ascent


@dataclass(frozen=True)
class MapSimilarity(OfMap):
    """The cosine of |map| at x_adv and `rows.extra["target_map"]`, (B,) in [0, 1]."""

    def value(self, found: Tensor, rows: Rows) -> Tensor:
        """Return the cosine (B,)."""
        target = rows.extra["target_map"]
        return F.cosine_similarity(found.abs().flatten(1), target.abs().flatten(1))


@dataclass(frozen=True)
class MapAttack(MapSearch):
    """A search over maps with an attack's checks of its inputs."""

    def hunt(
        self, model: Any, x: Tensor, y: Tensor | int | None, wish: OfMap,
        given: dict[str, Tensor], seed: int = 0,
    ) -> Hunted:  # fmt: skip
        """Search as `MapSearch`, after the checks."""
        check_batch(x, y, None, as_model(model).bounds)
        return super().hunt(model, x, y, wish, given, seed)


@dataclass(frozen=True)
class Bent:
    """What bending found.

    x: (B, *shape) the bent inputs; similarity: (B,) of the true model's map to the order,
    and `before` that of the clean one; kept: (B,) bool, the label stayed.
    """

    x: Tensor
    similarity: Tensor
    before: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Bend(MapAttack):
    """Bend a map to order; call it with (model, x, y, target_map)."""

    def __call__(
        self, model: Any, x: Tensor, y: Tensor, target_map: Tensor, *, seed: int = 0
    ) -> Bent:
        """Search a softplus twin; judge label and map on the true model.

        x: (B, *shape), y: (B,) the labels to keep and to explain, target_map: (B, *shape) the
        order, of which the absolute value counts.
        """
        same_shape("target_map", target_map, x)
        wish = MapSimilarity(self.explainer)
        given = {"target_map": target_map.detach().to(x)}
        hunted = self.hunt(model, x, y, wish, given, seed)
        return Bent(hunted.x, hunted.after, hunted.before, hunted.success)


def bend(
    threat: Threat, explainer: Explanation, steps: int = 100, beta: float | None = 10.0
) -> Bend:
    """Return the attack that bends a map to order while the label stays.

    Dombrowski et al. 2019 (X4): a ReLU net's map has no useful derivative, so a softplus copy
    with sharpness `beta` is searched (None: the net itself), and success is measured on the true
    net. We maximise the cosine of absolute maps inside a ball instead of penalising a squared
    distance.
    """
    return Bend(needs_eps(threat), explainer, Ascent(steps, None, 5 / steps), beta)


def same_shape(name: str, given: Tensor, x: Tensor) -> None:
    """Refuse what is not one tensor a sample, of its shape."""
    if given.shape != x.shape:
        raise InputError(
            f"{name} has shape {tuple(given.shape)} and x {tuple(x.shape)}: give one a sample, of "
            "its shape"
        )
