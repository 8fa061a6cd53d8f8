"""Ascent along a gradient that is estimated from scores alone.

NES (Ilyas et al. 2018) probes along Gaussian directions, SPSA (Uesato et al. 2018) along random
signs; both in pairs, u and -u. All probes of all rows go to the model in full batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import KindError
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate, Search
from foible.core.threat import Steepest, Threat

_PLATEAU = 5  # steps without a rise, after which NES halves its step


class EstimateState(NamedTuple):
    """z, first, second (B, *shape): the point and the moments of the estimate.

    share (B,): of the step's length that is left. recent (B, 5): the objective at the last steps,
    the latest last.
    """

    z: Tensor
    first: Tensor
    second: Tensor
    share: Tensor
    recent: Tensor


@dataclass(frozen=True)
class EstimatedAscent(Search):
    """Estimate the gradient by `samples` probes (two a direction), then move.

    last: the probes of the last step, which has what is left of the queries. width: of a probe,
    a share of the box. length: of a move, absolute, or None for `share` times eps. momentum: of
    the steepest steps. signs: probe along random signs, and move by Adam.
    """

    steps: int = 1
    samples: int = 50
    last: int = 50
    width: float = 0.001
    length: float | None = None
    share: float = 0.2
    momentum: float = 0.9
    signs: bool = False
    access = Access.SCORES

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> EstimateState:
        """Begin at the clean input, without momentum."""
        threat = problem.threat
        if not isinstance(threat, Steepest) or (self.signs and _unit(threat, rows) is None):
            raise KindError(
                f"{type(threat).__name__} has no steps for an estimated gradient: use a norm ball, "
                "for SPSA one in Linf, L2 or L1"
            )
        z, zeros = threat.clean(rows), torch.zeros_like(rows.x)
        share = torch.ones(len(rows), dtype=z.dtype, device=z.device)
        recent = torch.full((len(rows), _PLATEAU), float("-inf"), dtype=z.dtype, device=z.device)
        second = zeros if self.signs else zeros.new_zeros(len(rows), 0)
        return EstimateState(z, zeros, second, share, recent)

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: EstimateState, draw: Draw
    ) -> EstimateState:
        """Judge the point, probe around it where that is not the end, and move."""
        step = draw.step.to(rows.x.device)
        # The clean input is known: at the first step it is not worth a query.
        moved = (step > 0).nonzero().squeeze(1)
        reached = torch.zeros(len(rows), dtype=torch.bool, device=rows.x.device)
        if len(moved):
            found = evaluate(state.z[moved], rows.take(moved), need="scores")
            reached[moved] = problem.done(found.success)
            state = self._slowed(state, moved, found.value)
        left = (~reached).nonzero().squeeze(1)
        if len(left) == 0:
            return state
        pairs = torch.where(step + 1 >= self.steps, self.last // 2, self.samples // 2)[left]
        grad = torch.zeros_like(state.z)
        grad[left] = self._estimate(
            problem, rows.take(left), evaluate, state.z[left], draw.take(left), pairs
        )
        return self._moved(problem.threat, rows, state, grad, step)

    def _estimate(
        self,
        problem: Problem,
        rows: Rows,
        evaluate: Evaluate,
        z: Tensor,
        draw: Draw,
        pairs: Tensor,
    ) -> Tensor:
        """Return the mean over pairs of u (f(z + width u) - f(z - width u)) / (2 width)."""
        box = problem.threat.box
        width = self.width * (1.0 if box is None else box.width)
        total, used = torch.zeros_like(z), torch.zeros_like(pairs)
        chunk, most = max(1, problem.oracle.chunk(rows.x)), int(pairs.max())
        block = max(1, chunk // (2 * len(rows)))
        for start in range(0, most, block):
            numbers = range(start, min(start + block, most))
            # A stream for every pair: the numbers must not depend on how many fit a batch.
            u = torch.cat([self._direction(draw.split(16 + k), z) for k in numbers])
            row = torch.arange(len(rows), device=z.device).repeat(len(numbers))
            number = torch.tensor(list(numbers), device=z.device).repeat_interleave(len(rows))
            asked = number < pairs[row]
            row, u = row[asked], u[asked]
            above, below = self._both(problem, rows.take(row), evaluate, (z[row], u * width))
            rise = (above - below) / (2 * width)
            # A point beyond the cap has no value: its pair says nothing.
            known = torch.isfinite(above) & torch.isfinite(below)
            total.index_add_(0, row, u * per_row(torch.where(known, rise, 0.0), u))
            used.index_add_(0, row, known.to(used.dtype))
        return total / per_row(used.clamp_min(1), total)

    def _both(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, around: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the objective at z + u and z - u, in one query if both fit."""
        z, u = around
        points = [problem.threat.project(rows, z + sign * u) for sign in (1, -1)]
        if 2 * len(z) > problem.oracle.chunk(rows.x):
            first, second = (evaluate(at, rows, need="scores").value for at in points)
        else:
            both = evaluate(torch.cat(points), rows.repeat(2), need="scores").value
            first, second = both[: len(z)], both[len(z) :]
        return first.to(z.dtype), second.to(z.dtype)

    def _direction(self, draw: Draw, like: Tensor) -> Tensor:
        shape = tuple(like.shape[1:])
        if self.signs:
            return (draw.uniform(shape, like.dtype) < 0.5).to(like.dtype) * 2 - 1
        return draw.normal(shape, like.dtype)

    def _slowed(self, state: EstimateState, moved: Tensor, value: Tensor) -> EstimateState:
        """Note the objective; halve the step where it is lower than five steps ago (Ilyas et al.).

        Only of NES: Adam has steps of its own.
        """
        recent, share = state.recent.clone(), state.share.clone()
        recent[moved] = torch.cat([recent[moved][:, 1:], value[:, None].to(recent.dtype)], 1)
        if not self.signs:
            # -inf: fewer than five steps since the last halving.
            flat = torch.isfinite(recent[:, 0]) & (recent[:, -1] < recent[:, 0])
            share = torch.where(flat, (share / 2).clamp_min(0.005), share)
            recent = recent.masked_fill(flat[:, None], float("-inf"))
        return state._replace(recent=recent, share=share)

    def _moved(
        self, threat: Threat, rows: Rows, state: EstimateState, grad: Tensor, step: Tensor
    ) -> EstimateState:
        assert isinstance(threat, Steepest)
        if not self.signs:
            first = self.momentum * state.first + (1 - self.momentum) * grad
            length = threat.step_size(rows, self.share) if self.length is None else self.length
            move = threat.steepest(rows, state.z, first) * length * per_row(state.share, grad)
            return state._replace(z=threat.project(rows, state.z + move), first=first)
        first = 0.9 * state.first + 0.1 * grad
        second = 0.999 * state.second + 0.001 * grad.square()
        count = per_row((step + 1).to(grad.dtype), grad)
        move = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-9)
        if self.length is None:
            move = move * rows.radius() * (self.share / (_unit(threat, rows) or 1.0))
        else:
            move = move * self.length
        return state._replace(z=threat.project(rows, state.z + move), first=first, second=second)


def _unit(threat: Threat, rows: Rows) -> float | None:
    """Return the norm of a change by one everywhere, by which Adam's steps are measured."""
    norm, features = getattr(threat, "norm", ""), rows.x[0].numel()
    return {"linf": 1.0, "l2": features**0.5, "l1": float(features)}.get(norm)
