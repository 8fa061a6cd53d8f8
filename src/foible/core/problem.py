"""The problem: who is attacked, within what, for what, and what counts as success."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.explainer import Explainer
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.threat import Threat


class View:
    """One point of the search, lazily: rows, z, x_adv, and the scores at x_adv (on the graph).

    scores: what is already known of the point, so that it is not paid for twice. draw: the
    randomness of this step, for objectives that average over transformations; None outside of
    a search.
    """

    draw: Draw | None = None

    def __init__(
        self,
        oracle: Oracle,
        rows: Rows,
        x_adv: Tensor,
        z: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> None:
        self.oracle, self.rows, self.x_adv, self.z = oracle, rows, x_adv, z
        self._scores = scores
        self._labels: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """Logits (B, K); the first look costs one forward a row."""
        if self._scores is None:
            self._scores = self.oracle.scores(self.x_adv, self.rows)
        return self._scores

    @property
    def labels(self) -> Tensor:
        """Predicted classes (B,); works with LABELS access."""
        if self._labels is None:
            if self._scores is None and self.oracle.access == Access.LABELS:
                self._labels = self.oracle.labels(self.x_adv, self.rows)
            else:
                self._labels = self.scores.detach().argmax(1)
        return self._labels


# (B,) float, larger is better for the attacker.
Objective = Callable[[View], Tensor]


class Goal(ABC):
    """The only success rule: (B,) bool from a view."""

    @abstractmethod
    def __call__(self, view: View) -> Tensor:
        """Return which rows have reached the goal."""


@dataclass(frozen=True)
class Fooled(Goal):
    """The prediction is wrong, or, where rows have a target, is that target."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,) bool."""
        if view.rows.target is not None:
            return view.labels == view.rows.target
        return view.labels != view.rows.y


@dataclass(frozen=True)
class Kept(Goal):
    """The prediction is still the row's label: the goal of attacks on explanations."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,) bool."""
        return view.labels == view.rows.y


@dataclass(frozen=True)
class Closest:
    """Prefer the smallest change: the `prefer` of minimum-norm attacks."""

    threat: Threat

    def __call__(self, view: View) -> Tensor:
        """Return minus the distance (B,)."""
        return -self.threat.distance(view.rows, view.x_adv)


@dataclass(frozen=True)
class Problem:
    """Everything that a search may know.

    oracle: the model that is searched; judge: the model that gives the verdict, where that is
    another one (a surrogate, a softplus copy, a BPDA wrapper). direction: an explainer that
    replaces the gradient of the objective. prefer: ranks points of equal verdict; None is the
    objective itself; with `Closest` only successes are kept. stop: "never" or "success" (drop a
    sample once its goal is reached). cap: the most forwards a row may cost, clean forward and
    final verification included; None for no limit. before: (N,) forwards of each row that count
    against no cap, of earlier attacks on the same oracle. draws: how many forwards one look at a
    point costs, where the objective averages over draws. keep: "best", or "last" for the point
    that the search ends at, whatever it is worth: no point is judged, which is what training asks
    for (Madry et al. 2018), and success is False throughout.
    """

    oracle: Oracle
    threat: Threat
    objective: Objective
    goal: Goal
    stop: str = "never"
    prefer: Callable[[View], Tensor] | None = None
    judge: Oracle | None = None
    direction: Explainer | None = None
    cap: int | None = None
    before: Tensor | None = None
    draws: int = 1
    keep: str = "best"

    @property
    def price(self) -> int:
        """How many forwards one look at a point costs: the draws, times the model's own looks."""
        return self.draws * self.oracle.meter.looks

    def done(self, reached: Tensor) -> Tensor:
        """Return which rows leave the batch, from which have reached the goal."""
        return reached if self.stop == "success" else torch.zeros_like(reached)

    def with_threat(self, threat: Threat) -> Problem:
        """Return the same problem within another threat."""
        return replace(self, threat=threat)
