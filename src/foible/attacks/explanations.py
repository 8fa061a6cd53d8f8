"""Attacks on explanations: the label stays, the map goes where it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.attacks.base import check_batch, needs_eps
from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.problem import Kept, Problem, View
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.search import Search
from foible.core.solver import solve
from foible.core.threat import Threat
from foible.explain.base import Explanation
from foible.models import as_model, softplus_twin
from foible.parts.objectives import Logit
from foible.parts.searches import Ascent


@dataclass(frozen=True)
class MapSimilarity:
    """The cosine of |map| at x_adv and `rows.extra["target_map"]`, (B,) in [0, 1]."""

    explainer: Explanation

    def __call__(self, view: View) -> Tensor:
        """One explanation; on the graph where x_adv is."""
        rows = view.rows.at(view.x_adv)
        around = Field(view.oracle, Logit(), view.oracle.chunk(view.x_adv))
        keep = view.x_adv.requires_grad and torch.is_grad_enabled()
        draw = Rng(0).split(5).at(rows.id)
        found = self.explainer.attribute(around, rows, draw, create_graph=keep)
        target = view.rows.extra["target_map"]
        return F.cosine_similarity(found.abs().flatten(1), target.abs().flatten(1))


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
class Bend:
    """Bend a map to order; call it with (model, x, y, target_map)."""

    threat: Threat
    explainer: Explanation
    search: Search = field(default_factory=lambda: Ascent(100, None, 0.05))
    beta: float = 10.0

    def __post_init__(self) -> None:
        if not self.explainer.differentiable:
            raise InputError(
                f"{type(self.explainer).__name__} is not differentiable, and bending follows the "
                "map's own gradient: choose another, e.g. foible.explain.saliency()"
            )

    def __call__(
        self, model: Any, x: Tensor, y: Tensor, target_map: Tensor, *, seed: int = 0
    ) -> Bent:
        """Search a softplus twin; judge label and map on the true model.

        x: (B, *shape), y: (B,) the labels to keep and to explain, target_map: (B, *shape) the
        order, of which the absolute value counts.
        """
        held = as_model(model)
        check_batch(x, y, None, held.bounds)
        if target_map.shape != x.shape:
            raise InputError(
                f"target_map has shape {tuple(target_map.shape)} and x {tuple(x.shape)}: order one "
                "map a sample, of its shape"
            )
        asked = max(Access.GRADIENTS, self.explainer.access)
        twin = Oracle(softplus_twin(held, self.beta), len(x), asked)
        judge = Oracle(held, len(x), asked)
        threat = self.threat.inside(held.bounds)
        index = torch.arange(len(x), device=x.device)
        rows = Rows(index, index, x.detach(), y.to(index), None, threat.radii(len(x), x))
        rows.extra["target_map"] = target_map.detach().to(x)
        similar = MapSimilarity(self.explainer)
        problem = Problem(twin, threat, similar, Kept(), prefer=similar, judge=judge)
        with twin.session(seed), judge.session(seed):
            best = solve(problem, rows, self.search, seed=seed)
            before = similar(View(judge, rows, rows.x)).detach()
            after = similar(View(judge, rows, best.x)).detach()
        return Bent(best.x, after, before, best.success)


def bend(threat: Threat, explainer: Explanation, steps: int = 100, beta: float = 10.0) -> Bend:
    """Return the attack that bends a map to order while the label stays.

    Dombrowski et al. 2019 (X4): a ReLU net's map has no useful derivative, so a softplus copy
    with sharpness `beta` is searched, and success is measured on the true net. We maximise the
    cosine of absolute maps inside a ball instead of penalising a squared distance.
    """
    return Bend(needs_eps(threat), explainer, Ascent(steps, None, 5 / steps), beta)
