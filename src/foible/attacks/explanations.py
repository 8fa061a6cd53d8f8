"""Attacks on explanations: the prediction stays, the map goes where it is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.attacks.base import check_batch, check_labels, needs_eps
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.problem import Goal, Kept, Problem, View
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.explain.base import Explanation
from foible.explain.moving import Hunted, MapSearch, OfMap
from foible.models import as_model
from foible.parts.searches import Ascent


@dataclass(frozen=True)
class KeptWithin(Goal):
    """The prediction is still the row's label, and its probability is as it was at x.

    tolerance: how far the probability may move, with `rows.scores` the scores at x; None: anywhere.
    """

    tolerance: float | None = None

    def __call__(self, view: View) -> Tensor:
        """Return (B,) bool."""
        kept = Kept()(view)
        return kept if self.tolerance is None else kept & (change(view) <= self.tolerance)


def change(view: View) -> Tensor:
    """Return how far (B,) the label's probability is from that at x; on the graph of x_adv."""
    assert view.rows.scores is not None
    now, then = (
        s.softmax(1).gather(1, view.rows.y[:, None]).squeeze(1)
        for s in (view.scores, view.rows.scores)
    )
    return (now - then).abs()


@dataclass(frozen=True)
class MapSimilarity(OfMap):
    """The cosine of |map| at x_adv and `rows.extra["target_map"]`, (B,) in [0, 1].

    tolerance: as of `KeptWithin`; beyond half of it the probability's change is taken off.
    """

    tolerance: float | None = None

    def __call__(self, view: View) -> Tensor:
        """One explanation, and one forward where there is a tolerance."""
        value = super().__call__(view)
        if self.tolerance is None:
            return value
        # Its slope is that of a similarity that falls by 1 within half a tolerance.
        return value - (2 * change(view) / self.tolerance - 1).clamp(min=0)

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
        check_batch(x, y, given.get("target"), as_model(model).bounds)
        return super().hunt(model, x, y, wish, given, seed)

    def _looked_at(self, judge: Oracle, rows: Rows, labels: Tensor | None) -> Rows:
        rows = super()._looked_at(judge, rows, labels)
        check_labels(rows, judge.classes)
        return rows


@dataclass(frozen=True)
class Bent:
    """What bending found.

    x: (B, *shape) the bent inputs, clean where no point that keeps the label had a better map,
    and of samples of another label; similarity: (B,) of the true model's map to the order,
    and `before` that of the clean one; kept: (B,) bool, the label stayed, and its probability
    within the tolerance.
    """

    x: Tensor
    similarity: Tensor
    before: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Bend(MapAttack):
    """Bend a map to order; call it with (model, x, y, target_map)."""

    tolerance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None and not self.tolerance > 0:
            raise InputError(f"tolerance={self.tolerance}: above 0, or None")

    def posed(self, twin: Oracle, judge: Oracle | None, threat: Threat, wish: OfMap) -> Problem:
        """Return the problem: keep label and probability, and please the wish."""
        return replace(super().posed(twin, judge, threat, wish), goal=KeptWithin(self.tolerance))

    def __call__(
        self, model: Any, x: Tensor, y: Tensor, target_map: Tensor, *, seed: int = 0
    ) -> Bent:
        """Search a softplus twin; judge label, probability and map on the true model.

        x: (B, *shape), y: (B,) the labels to keep and to explain, target_map: (B, *shape) the
        order, of which the absolute value counts.
        """
        same_shape("target_map", target_map, x)
        wish = MapSimilarity(self.explainer, self.tolerance)
        given = {"target_map": target_map.detach().to(x)}
        hunted = self.hunt(model, x, y, wish, given, seed)
        return Bent(hunted.x, hunted.after, hunted.before, hunted.success)


def bend(
    threat: Threat, explainer: Explanation, steps: int = 100, beta: float | None = 30.0,
    tolerance: float | None = 0.05,
) -> Bend:  # fmt: skip
    """Return the attack that bends a map to order while the prediction stays.

    Dombrowski et al. 2019 (X4): a ReLU net's map has no useful derivative, so a softplus copy
    with sharpness `beta` is searched (None: the net itself), and success is measured on the true
    net: the label stays, and its probability moves by at most `tolerance` (None: only the label
    counts). What does not move so is a map of the copy itself with a small beta:
    `foible.explain.smoothed`.

    We maximise the cosine of absolute maps inside a ball, by sign steps with momentum, instead of
    penalising a squared distance by Adam; beta stays as it is, where the authors let it grow.
    """
    search = Ascent(steps, None, min(1.0, 10 / max(steps, 1)), "clean", 0.9)
    return Bend(needs_eps(threat), explainer, search, beta, tolerance)


def same_shape(name: str, given: Tensor, x: Tensor) -> None:
    """Refuse what is not one tensor a sample, of its shape, of numbers."""
    if given.shape != x.shape:
        raise InputError(
            f"{name} has shape {tuple(given.shape)} and x {tuple(x.shape)}: give one a sample, of "
            "its shape"
        )
    if not bool(torch.isfinite(given).all()):
        raise InputError(f"{name} is NaN or infinite in places: give numbers")
