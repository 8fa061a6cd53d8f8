"""JSMA: change the pair of features that raises the target most and lowers all others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.problem import Problem, View
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate, Search
from foible.parts.objectives import Nearest
from foible.parts.searches.fmn import ball_of
from foible.parts.searches.pruning import Kept, by_phase, prune, reach
from foible.parts.threats import Ball


class SaliencyState(NamedTuple):
    """z (B, *shape); kept the best so far; left (B,) int64 the rounds of pruning that remain;
    stuck (B,) int64 how often no feature was left to change.
    """

    z: Tensor
    kept: Kept
    left: Tensor
    stuck: Tensor


@dataclass(frozen=True)
class Weighted:
    """The sum of the logits with the weights of `rows.extra["weights"]` (B, K), where they are
    given; else `Nearest`.
    """

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        weights = view.rows.extra.get("weights")
        if weights is None:
            return Nearest()(view)
        return (view.scores * weights).sum(1)


@dataclass(frozen=True)
class SaliencyPairs(Search):
    """Change one pair a step until the goal is reached, then prune.

    The pair comes from the `candidates` features of the largest single effect. theta: how far a
    feature moves, in widths of the box. gamma: the largest share of features that may change.
    prune: rounds of taking features out again. Needs the objective `Weighted`.
    """

    steps: int = 200
    theta: float = 1.0
    gamma: float = 1.0
    candidates: int = 64
    prune: int = 10

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> SaliencyState:
        """Begin at the clean input."""
        z = ball_of(problem).clean(rows)
        kept = Kept.nothing(z)
        return SaliencyState(z, kept, torch.full_like(kept.tries, self.prune), kept.tries)

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: SaliencyState, draw: Draw
    ) -> SaliencyState:
        """Two forwards and two backwards; pruning makes a query of many points."""

        def pair(rows: Rows, state: SaliencyState, draw: Draw) -> SaliencyState:
            return self._pair(problem, rows, evaluate, state)

        def clear(rows: Rows, state: SaliencyState, draw: Draw) -> SaliencyState:
            aimed = rows
            if rows.target is None:
                away = _one_hot(rows, _aim(rows)) - _one_hot(rows, rows.y)
                aimed = _weighing(rows, away)
            kept = prune(ball_of(problem), aimed, evaluate, state.kept)
            return state._replace(z=kept.z, kept=kept, left=state.left - 1)

        found = state.kept.many.isfinite()
        after: SaliencyState = by_phase(pair, clear, found, rows, state, draw)
        return after

    def ended(self, state: SaliencyState) -> Tensor:
        """Return the rows that are pruned or have no feature left."""
        found = state.kept.many.isfinite()
        return torch.where(found, (state.left <= 0) | (state.kept.many <= 1), state.stuck > 1)

    def _pair(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: SaliencyState
    ) -> SaliencyState:
        ball, b = ball_of(problem), len(rows)
        one = _one_hot(rows, _aim(rows))
        # Where all others together have led to nothing, a second try lowers the label alone.
        others = torch.where(state.stuck[:, None] > 0, _one_hot(rows, rows.y), 1 - one)
        twice = _weighing(rows.repeat(2), torch.cat([one, others]))
        seen = evaluate(torch.cat([state.z, state.z]), twice, need="grad")
        if seen.grad is None or seen.scores is None:  # beyond the cap
            return state
        label = seen.scores[:b].argmax(1)
        won = label != rows.y if rows.target is None else label == rows.target
        grad, flat = seen.grad.flatten(1), state.z.flatten(1)
        move, usable = self._effects(ball, rows, flat, grad[:b] - grad[b:])
        p, q = _best_pair(grad[:b] * move, grad[b:] * move, usable, self.candidates)
        both = torch.zeros_like(usable).scatter(1, p[:, None], True).scatter(1, q[:, None], True)
        new = torch.where(both & usable, flat + move, flat)
        low, high = reach(ball, rows)
        new = new.maximum(low).minimum(high)
        most = max(1, int(self.gamma * new.shape[1]))
        stuck = ~won & (~usable.any(1) | ((new != 0).sum(1) > most))
        kept = state.kept.offered(state.z, won)
        z = torch.where(stuck[:, None], 0.0, torch.where(won[:, None], flat, new))
        z, stuck = z.view_as(state.z), state.stuck + stuck.long()
        return SaliencyState(z, kept, state.left, stuck)

    def _effects(self, ball: Ball, rows: Rows, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return the move (B, D) of each feature and whether (B, D) it may be made.

        slope: of the target less all others. A feature is not moved back.
        """
        low, high = reach(ball, rows)
        length = self.theta * (1.0 if ball.box is None else ball.box.width)
        up, down = (high - z).clamp_max(length), (z - low).clamp_max(length)
        move = torch.where(slope > 0, up, -down)
        return move, (move * slope > 0) & (move * z >= 0)


def _best_pair(gain: Tensor, loss: Tensor, usable: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return two positions (B,): the pair that raises the target by a and the others by b < 0
    with the largest a |b|; twice the best feature where there is no such pair.
    """
    worth = torch.where(usable, gain - loss, float("-inf"))
    at = worth.topk(min(most, worth.shape[1]), dim=1).indices
    gain, loss, usable = (part.gather(1, at) for part in (gain, loss, usable))
    a, b = gain[:, :, None] + gain[:, None], loss[:, :, None] + loss[:, None]
    fine = (a > 0) & (b < 0) & usable[:, :, None] & usable[:, None]
    fine = fine & ~torch.eye(a.shape[1], dtype=torch.bool, device=a.device)
    best, pair = torch.where(fine, -a * b, float("-inf")).flatten(1).max(1)
    pair = torch.where(best.isfinite(), pair, 0)
    first, second = pair // a.shape[1], pair % a.shape[1]
    return at.gather(1, first[:, None])[:, 0], at.gather(1, second[:, None])[:, 0]


def _aim(rows: Rows) -> Tensor:
    """Return the class (B,) to reach: the target, or the nearest one."""
    if rows.target is not None:
        return rows.target
    return rows.extra["rank"][:, 0]


def _one_hot(rows: Rows, label: Tensor) -> Tensor:
    assert rows.scores is not None
    return F.one_hot(label, rows.scores.shape[1]).to(rows.x.dtype)


def _weighing(rows: Rows, weights: Tensor) -> Rows:
    return replace(rows, extra={**rows.extra, "weights": weights})
