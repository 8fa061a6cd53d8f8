"""Prediction and map attacked together: another class, and the map of the old one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from foible.attacks.base import check_batch, needs_eps
from foible.attacks.explanations import MapAttack, same_shape
from foible.attacks.fragility import mass, positions
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.problem import Fooled, Problem, View
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.explain.base import Explanation
from foible.explain.evaluate import rank_correlation, topk_intersection
from foible.explain.moving import OfMap
from foible.models import as_model
from foible.parts.objectives import others
from foible.parts.searches import Ascent


def reached(view: View) -> Tensor:
    """Return the class (B,) that is to be predicted: the target, or the best other than y."""
    if view.rows.target is not None:
        return view.rows.target
    return others(view.scores.detach(), view.rows.y).argmax(1)


def wanted(rows: Rows) -> Tensor:
    """Return the map (B, *shape) that shall be seen: `rows.extra["target_map"]`, or the clean."""
    return rows.extra.get("target_map", rows.extra["map"])


@dataclass(frozen=True)
class AsWanted(OfMap):
    """The cosine, in [0, 1], of the wanted map's mass and that of the new class's map."""

    def classes(self, view: View) -> Tensor:
        """Return the new class (B,): its map is what is seen once it is predicted."""
        return reached(view)

    def value(self, found: Tensor, rows: Rows) -> Tensor:
        """Return the cosine (B,)."""
        return F.cosine_similarity(mass(found).flatten(1), mass(wanted(rows)).flatten(1))


@dataclass(frozen=True)
class FooledAsWanted:
    """The margin of the new class up to `safe`, times `weight`, and the likeness of its map.

    The margin counts in units of the clean one, so that samples and models compare. Above `safe`
    it has no slope, and the map alone is left.
    """

    wish: OfMap
    safe: float
    weight: float

    def __call__(self, view: View) -> Tensor:
        """One forward for the scores, and one explanation."""
        new, clean = reached(view), view.rows.scores
        rest = others(view.scores, new).amax(1)
        margin = view.scores.gather(1, new[:, None]).squeeze(1) - rest
        assert clean is not None
        top = clean.topk(2, 1).values
        unit = (top[:, 0] - top[:, 1]).clamp_min(1e-6)
        return self.weight * (margin / unit).clamp(max=self.safe) + self.wish(view)


@dataclass(frozen=True)
class FooledBoth:
    """What fooling prediction and map together found; all figures are the true model's.

    x: (B, *shape), the clean input where no point of another class was found. success: (B,) bool,
    the class is the target, or not y. label: (B,) the class of x. attacked: (B,) bool, the goal did
    not hold from the start; the others come back as they are, so that rates count these. topk: (B,)
    the share of the k strongest positions of the wanted map that are among those of the map of
    `label` at x. rank: (B,) Spearman's correlation of the two. similarity: (B,) the cosine of their
    masses. clean_map, map: (B, *shape), of y at the clean input and of `label` at x; where x is the
    clean input both are the former. forwards, backwards: (B,) int64, of both models together.
    """

    x: Tensor
    success: Tensor
    label: Tensor
    attacked: Tensor
    topk: Tensor
    rank: Tensor
    similarity: Tensor
    clean_map: Tensor
    map: Tensor
    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True)
class FoolBoth(MapAttack):
    """Change the prediction and keep the map; call it with (model, x, y)."""

    k: int = 100
    safe: float = 0.1
    weight: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.safe >= 0 and self.weight > 0):
            raise InputError(
                f"safe={self.safe}, weight={self.weight}: a margin of at least 0, and a positive "
                "weight, or no sample leaves its class"
            )

    def posed(self, twin: Oracle, judge: Oracle | None, threat: Threat, wish: OfMap) -> Problem:
        """Return the problem: fool the true model, and among successes prefer the likest map."""
        both = FooledAsWanted(wish, self.safe, self.weight)
        return Problem(twin, threat, both, Fooled(), prefer=wish, judge=judge)

    def worth(self, started: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Every success is worth it, unless the clean input was one: then nothing is to be done."""
        return ~started

    def __call__(
        self, model: Any, x: Tensor, y: Tensor, target_map: Tensor | None = None, *,
        target: Tensor | None = None, seed: int = 0,
    ) -> FooledBoth:  # fmt: skip
        """Search a softplus twin; judge class and map on the true model.

        x: (B, *shape), y: (B,) the labels, target: (B,) the classes to reach, None for any other.
        target_map: (B, *shape), the map that shall be seen, of which the absolute value counts;
        None for the clean map of y.
        """
        check_batch(x, y, target, as_model(model).bounds)
        positions(x, self.k)
        given = {} if target is None else {"target": target.to(x.device)}
        if target_map is not None:
            same_shape("target_map", target_map, x)
            given["target_map"] = target_map.detach().to(x)
        hunted = self.hunt(model, x, y, AsWanted(self.explainer), given, seed)
        order, now = mass(wanted(hunted.rows)), mass(hunted.found)
        return FooledBoth(
            hunted.x, hunted.success, hunted.label, ~hunted.started,
            topk_intersection(order, now, self.k), rank_correlation(order, now),
            F.cosine_similarity(order.flatten(1), now.flatten(1)),
            hunted.clean, hunted.found, hunted.forwards, hunted.backwards,
        )  # fmt: skip


def fool_both(
    threat: Threat, explainer: Explanation, k: int = 100, steps: int = 100, safe: float = 0.1,
    weight: float = 3.0, beta: float | None = 100.0,
) -> FoolBoth:  # fmt: skip
    """Return the attack that changes the prediction and keeps the map.

    Zhang et al. 2020, "Interpretable Deep Learning under Fire" (ADV2, S17): a user who looks at
    the map of the predicted class, to see whether the prediction is sound, sees what was there
    before. Targeted or not; a softplus twin of sharpness `beta` is searched, and of the points
    that fool the true model the one with the likest map is returned.

    The paper adds the two losses with a weight that is found by hand. Here the margin counts only
    until it is `safe`, as a share of the clean margin, and weighs `weight` until then; after that
    the map alone is pulled back, so that each sample finds its own balance. The likeness is the
    cosine of the maps' masses instead of a squared distance. k: of the share of top positions
    that is told, not of the search.

    >>> import foible
    >>> net, x = foible.zoo.load("standard"), foible.zoo.sample()[0][:8]
    >>> attack = foible.attacks.fool_both(foible.Linf(0.1), foible.explain.saliency(), steps=20)
    >>> found = attack(net, x, net(x).argmax(1))
    >>> bool(found.success.all()), float(found.topk.mean()) > 0.4
    (True, True)
    """
    search = Ascent(steps, None, 0.1, "clean", 0.9)
    return FoolBoth(needs_eps(threat), explainer, search, beta, k, safe, weight)
