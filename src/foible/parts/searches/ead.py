"""EAD (Chen et al. 2018): shrinkage and thresholding on hinge, L1 and squared L2 together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foible.core.problem import Closest, Problem, View
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate
from foible.parts.searches.penalty import Penalty, Trial, choose, decayed, prune


@dataclass(frozen=True)
class ElasticNet(Closest):
    """Prefer the smallest beta * |d|_1 + |d|_2^2: the paper's other decision rule.

    beta: in the units of the input.
    """

    beta: float = 0.01

    def __call__(self, view: View) -> Tensor:
        """Return minus the elastic-net size (B,)."""
        return -self.size((view.x_adv.detach().double() - view.rows.x.double()).flatten(1))

    def size(self, change: Tensor) -> Tensor:
        """Return the size (B,) of changes (B, D)."""
        return self.beta * change.abs().sum(1) + change.square().sum(1)


@dataclass(frozen=True)
class ElasticDescent(Penalty):
    """FISTA on weight * hinge + |d|_1 + |d|_2^2 / beta, d cut by the box.

    beta: in the units of the input; None is 20 times the largest entry of the linearised step,
    row by row. rate, last: the first and the last step of a run, as shares of that entry. leap:
    the first run begins at the threat's start, and not at the clean input, which is only looked
    at first for the scale of things. pruning: label queries that let small entries fall away at
    the end, before the rest is shortened.
    """

    beta: float | None = None
    rate: float = 0.1
    last: float = 0.002
    weight: float = 2.0
    leap: bool = False
    pruning: int = 0
    factor: ClassVar[float] = 4.0

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> Trial:
        """Place z at the clean input, and remember where to leap from there."""
        state = super().init(problem, rows, draw)
        if not self.leap:
            return state
        start = problem.threat.start(rows, draw)
        return state._replace(memory={**state.memory, "start": start})

    def fresh(self, rows: Rows) -> dict[str, Tensor]:
        """Return no momentum; before: the last point without it."""
        return {"before": torch.zeros_like(rows.x)}

    def begin(self, state: Trial, pull: Tensor) -> Trial:
        """Begin with a weight that holds on a linear model, where 1 is the least in L1."""
        return state._replace(weight=torch.full_like(state.weight, self.weight))

    def finish(self, evaluate: Evaluate, rows: Rows, best: Tensor) -> Tensor:
        """Return the last point: the best, pruned and shortened."""
        if self.pruning:
            best = prune(evaluate, rows, best, self.pruning)
        return super().finish(evaluate, rows, best)

    def again(self, rows: Rows, state: Trial, over: Tensor) -> Trial:
        """Begin the next run; after a leap, steps are a share of the best and not of the leap."""
        state = super().again(rows, state, over)
        far = over & state.size.isfinite()
        return choose(far, resized(state, state.z), state) if self.leap else state

    def softness(self, state: Trial) -> Tensor:
        """Return the beta (B,) of each row."""
        return 20 * state.peak if self.beta is None else torch.full_like(state.peak, self.beta)

    def length_of(self, problem: Problem, z: Tensor) -> Tensor:
        """Return the size by the decision rule."""
        if isinstance(problem.prefer, ElasticNet):
            return problem.prefer.size(z.flatten(1).double())
        return super().length_of(problem, z)

    def cost(self, state: Trial) -> Tensor:
        """Return |d|_1 + |d|_2^2 / beta."""
        change = state.z.flatten(1).double()
        return change.abs().sum(1) + change.square().sum(1) / self.softness(state)

    def move(self, room: tuple[Tensor, Tensor], state: Trial, pull: Tensor) -> Trial:
        """Step down the smooth part, shrink, cut, and run on by k / (k + 3) of the way made."""
        if self.leap:
            new = (state.run == 0) & (state.inner == 0)
            leapt = resized(state, state.memory["start"])
            # A start may be the clean input itself, where nothing else is allowed; and what the
            # loss was at the clean input is no mark for a run that begins far from it.
            leapt = leapt._replace(
                peak=leapt.peak.maximum(state.peak), loss=torch.full_like(state.loss, float("inf"))
            )
            state = choose(new, leapt, state)
            pull = pull.masked_fill(per_row(new, pull), 0.0)  # that of the clean input
        z, dtype, beta = state.z, pull.dtype, self.softness(state)
        # A step beyond beta / 2 would overshoot the minimum of the squared term.
        step = decayed(self.rate, self.last, state, self.length) * state.peak
        step = step.minimum(beta / 4)
        if self.term is not None:
            step = step.clamp_max(self.term.reach)
        grad = per_row(state.weight.to(dtype), z) * pull + per_row((2 / beta).to(dtype), z) * z
        size = per_row(step.to(dtype), z)
        moved = z - size * grad
        moved = (moved.sign() * (moved.abs() - size).clamp_min(0.0)).clamp(*room)
        before = torch.where(per_row(state.inner == 0, z), z, state.memory["before"])
        done = state.inner.double()
        ahead = per_row((done / (done + 3)).to(dtype), z)
        further = (moved + ahead * (moved - before)).clamp(*room)
        return state._replace(z=further, memory={**state.memory, "before": moved})


def resized(state: Trial, z: Tensor) -> Trial:
    """Return the state at z, with steps that are shares of its largest entry."""
    return state._replace(z=z, peak=z.flatten(1).double().abs().amax(1).clamp_min(1e-12))
