"""Searches over maps: the engine of attacks on explanations and of their worst-case scores.

An `OfMap` says what is wanted of the map at x_adv; a `MapSearch` looks for it on a softplus twin
and judges map and label on the true net.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.problem import Kept, Problem, View
from foible.core.randomness import Rng
from foible.core.rows import Rows, per_row
from foible.core.search import Search
from foible.core.solver import independent_verdict, solve
from foible.core.threat import Threat
from foible.explain.base import (
    Explanation,
    as_labels,
    check_bounds,
    check_classes,
    check_inputs,
)
from foible.models import as_model, softplus_twin
from foible.parts.searches import Ascent


def map_at(explainer: Explanation, view: View, labels: Tensor | None = None) -> Tensor:
    """Return the map (B, *shape) at x_adv, of the row's label or of other classes (B,).

    On the graph where x_adv is. Its randomness is that of a user's call with seed 0.
    """
    rows = view.rows.at(view.x_adv)
    # Maps are of the label to keep, or of the class that is said; a target is the attack's own.
    rows = replace(rows, target=None, y=rows.y if labels is None else labels)
    around = Field(view.oracle, explainer.explained(), view.oracle.chunk(view.x_adv))
    keep = view.x_adv.requires_grad and torch.is_grad_enabled()
    draw = Rng(0).split(5).at(rows.id)
    return explainer.attribute(around, rows, draw, create_graph=keep)


@dataclass(frozen=True)
class OfMap(ABC):
    """An objective over the map at x_adv: a subclass says how much it likes a map.

    `rows.extra` holds what the map is compared with: "map", the true model's map at x, and what
    the attack was called with.
    """

    explainer: Explanation

    def __call__(self, view: View) -> Tensor:
        """One explanation; on the graph where x_adv is."""
        return self.value(map_at(self.explainer, view, self.classes(view)), view.rows)

    def classes(self, view: View) -> Tensor | None:
        """Return the classes (B,) whose maps are meant at x_adv; None: the rows' labels."""
        return None

    @abstractmethod
    def value(self, found: Tensor, rows: Rows) -> Tensor:
        """Return how good (B,) maps (B, *shape) are for the attacker: larger is better."""


@dataclass(frozen=True)
class Hunted:
    """What a search over maps found, judged on the true model.

    x: (B, *shape), the clean input where nothing better was found. started: (B,) bool, the goal
    held at the clean input. success: (B,) bool, it holds at x, within the threat, in a forward of
    its own. label: (B,) the class of x. clean, found: (B, *shape) the maps of the input as it was
    and of x. before, after: (B,) what the wish says of both. rows: as searched. forwards,
    backwards: (B,) int64, of both models together.
    """

    x: Tensor
    started: Tensor
    success: Tensor
    label: Tensor
    clean: Tensor
    found: Tensor
    before: Tensor
    after: Tensor
    rows: Rows
    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True)
class MapSearch:
    """Search for a map: a softplus twin is searched, the true model judges.

    A ReLU net is linear in pieces: within one its gradient does not change, so that a map has no
    slope to follow. beta: the sharpness of the twin; None searches the model itself, for nets
    without ReLUs and for searches without gradients.
    """

    threat: Threat
    explainer: Explanation
    search: Search = field(default_factory=lambda: Ascent(100, None, 0.05))
    beta: float | None = 10.0

    def __post_init__(self) -> None:
        if self.search.access >= Access.GRADIENTS and not self.explainer.differentiable:
            raise InputError(
                f"{type(self.explainer).__name__} is not differentiable, and this search follows "
                "the map's own gradient: choose another, e.g. foible.explain.saliency()"
            )
        if self.threat.parametric:
            raise KindError(
                f"{type(self.threat).__name__} moves a few parameters, and maps are searched for "
                "among inputs: use a ball"
            )
        if self.search.steps < 1:
            raise InputError(f"steps={self.search.steps}: at least 1")

    def posed(self, twin: Oracle, judge: Oracle | None, threat: Threat, wish: OfMap) -> Problem:
        """Return the problem: keep the label, and please the wish.

        judge: None where the model itself is searched. Another search poses another problem.
        """
        return Problem(
            twin, threat, wish, Kept(), prefer=None if judge is None else wish, judge=judge
        )

    def hunt(
        self, model: Any, x: Tensor, y: Tensor | int | None, wish: OfMap,
        given: dict[str, Tensor], seed: int = 0,
    ) -> Hunted:  # fmt: skip
        """Search for the point whose map `wish` likes best among those that reach the goal.

        y: the labels whose maps are meant, None for the predicted ones. given: tensors (B, ...)
        for `rows.extra`; "map" is added, the true model's map at x. "target" (B,) is the class to
        reach, for goals that want one.

        Raises InputError for no inputs, and for inputs outside the model's bounds: they lie in no
        threat, so nothing would be found, as of a map that cannot be moved.
        """
        held = as_model(model)
        check_inputs(x)
        check_bounds(x, held.bounds)
        labels = as_labels(x, y)
        asked = max(self.search.access, self.explainer.access)
        judge = Oracle(held, len(x), asked)
        twin = judge
        if self.beta is not None:
            twin = Oracle(softplus_twin(held, self.beta), len(x), asked)
        oracles = (judge,) if twin is judge else (judge, twin)
        threat = self.threat.inside(held.bounds)
        index = torch.arange(len(x), device=x.device)
        target = given.get("target")
        rows = Rows(index, index, x.detach(), 0 * index, target, threat.radii(len(x), x))
        problem = self.posed(twin, None if twin is judge else judge, threat, wish)
        # A map made of many draws holds as many graphs: fewer rows share a batch.
        problem = replace(problem, draws=self.explainer.looks)
        with ExitStack() as stack:
            for oracle in oracles:
                stack.enter_context(oracle.session(seed))
            rows = self._looked_at(judge, rows, labels)
            check_classes(rows.y, judge.classes)
            clean = self._maps(judge, rows, rows.x)
            rows.extra.update(given, map=clean)
            started = problem.goal(View(judge, rows, rows.x, scores=rows.scores))
            best = solve(problem, rows, self.search, seed=seed)
            found = self._maps(judge, rows, best.x, wish)
            before = wish.value(clean, rows)
            better = best.success & self.worth(started, before, wish.value(found, rows))
            end, found = (
                torch.where(per_row(better, x), a, b) for a, b in ((best.x, rows.x), (found, clean))
            )
            success, label = independent_verdict(problem, rows, end, judge)
        forwards, backwards = (
            torch.stack([getattr(oracle.meter, of) for oracle in oracles]).sum(0)
            for of in ("forwards", "backwards")
        )
        after = wish.value(found, rows)
        return Hunted(
            end, started, success, label, clean, found, before, after, rows, forwards, backwards,
        )  # fmt: skip

    def worth(self, started: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Return which points (B,) that reach the goal are worth leaving the clean input for.

        started: where the goal held there; a label that was never there cannot be kept.
        """
        return started & (after > before)

    def _looked_at(self, judge: Oracle, rows: Rows, labels: Tensor | None) -> Rows:
        """Return the rows with their clean scores and labels; one forward a row."""
        with torch.no_grad():
            parts = rows.index.split(judge.chunk(rows.x))
            scores = torch.cat([judge.scores(rows.x[p], rows.take(p)) for p in parts])
        return replace(rows, scores=scores, y=scores.argmax(1) if labels is None else labels)

    def _maps(self, judge: Oracle, rows: Rows, x: Tensor, wish: OfMap | None = None) -> Tensor:
        found = []
        for part in rows.index.split(judge.chunk(x)):
            view = View(judge, rows.take(part), x[part])
            with torch.no_grad():
                labels = None if wish is None else wish.classes(view)
            found.append(map_at(self.explainer, view, labels).detach())
        return torch.cat(found)
