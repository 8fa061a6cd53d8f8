"""What penalty methods share: runs of descent on `weight * hinge + size`, the weight bisected.

The hinge is how far the objective is below 0, in the threat's unit of distance: it is divided by
the slope of the linearised model at the clean input. Weights and step lengths then mean the same
for a sample that one step of 0.0003 breaks and for one that needs 0.25.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from foible.core.errors import KindError
from foible.core.problem import Problem, View
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate, Search
from foible.parts.planes import nearest
from foible.parts.residual import ClosestReconstructed, Residual
from foible.parts.threats import Ball


class Trial(NamedTuple):
    """Where each row is: its point, its best so far, its weight with brackets, its place in a run.

    z, best (B, *shape); size (B,) of the best, inf for none; slope, unit, peak (B,): see
    `linearised`; weight, low, high (B,): low failed, high held; inner, run (B,) int64: steps of
    this run, runs done; fell (B,) bool: fooled since the last look; loss, mark (B,): the least
    of this run, now and at the last look; memory: what the descent keeps, by name, each (B, ...).
    """

    z: Tensor
    best: Tensor
    size: Tensor
    slope: Tensor
    unit: Tensor
    peak: Tensor
    weight: Tensor
    low: Tensor
    high: Tensor
    inner: Tensor
    run: Tensor
    fell: Tensor
    loss: Tensor
    mark: Tensor
    memory: dict[str, Tensor]


@dataclass(frozen=True)
class Penalty(Search):
    """Runs of at most `length` steps each, `searches` of them, with a weight a row.

    polish: label queries that shorten the best point towards the clean one at the end, by
    bisection; a run ends early once its loss stands still. Rows at different steps of different
    runs share the batch. term: a price of x_adv that is descended beside the size; it calls no
    model, but its gradient counts as one backward. Whether the best is chosen with it as well,
    `problem.prefer` says.
    """

    length: int = 100
    searches: int = 9
    polish: int = 8
    term: Residual | None = field(default=None, kw_only=True)
    steps: int = field(init=False, default=0)
    factor: ClassVar[float] = 10.0  # by which the weight grows until it holds

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", max(0, self.length) * max(0, self.searches))

    @abstractmethod
    def fresh(self, rows: Rows) -> dict[str, Tensor]:
        """Return the memory of a run that begins."""

    @abstractmethod
    def begin(self, state: Trial, pull: Tensor) -> Trial:
        """Return the state with its first weight; pull: as in `move`, at the clean input."""

    @abstractmethod
    def cost(self, state: Trial) -> Tensor:
        """Return the size term (B,) of the loss at z."""

    @abstractmethod
    def move(self, room: tuple[Tensor, Tensor], state: Trial, pull: Tensor) -> Trial:
        """Return the state after one move; pull: the gradient (B, *shape) of the hinge."""

    def length_of(self, problem: Problem, z: Tensor) -> Tensor:
        """Return the size (B,) float64 by which the best is kept."""
        return ball(problem).length(z.flatten(1).double())

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> Trial:
        """Place z at the clean input; the rest is known after the first look at the model."""
        ball(problem)
        one = torch.ones(len(rows), dtype=torch.float64, device=rows.x.device)
        none, nothing = torch.zeros_like(one, dtype=torch.int64), torch.zeros_like(rows.x)
        endless = one * float("inf")
        return Trial(
            nothing, nothing.clone(), endless, one, one.clone(), one.clone(), one.clone(), one * 0,
            endless.clone(), none, none.clone(), one < 0, endless.clone(), endless.clone(),
            self.fresh(rows),
        )  # fmt: skip

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: Trial, draw: Draw
    ) -> Trial:
        """One forward, one backward, one move; at the end of a run, the next weight."""
        got = evaluate(state.z, need="grad")
        # Not `success` alone: with an eps, a point beyond it has still crossed the boundary.
        value, fooled = got.value.double(), got.success | (got.value > 0)
        grad = torch.zeros_like(state.z) if got.grad is None else got.grad
        room = ball(problem)._room(rows)
        new = (state.run == 0) & (state.inner == 0)
        if bool(new.any()):
            unit, slope, peak = linearised(problem, rows, value, grad)
            state = state._replace(
                unit=torch.where(new, unit, state.unit),
                slope=torch.where(new, slope, state.slope),
                peak=torch.where(new, peak, state.peak),
            )
        hinge = torch.where(fooled, 0.0, -value / state.slope)
        share = torch.where(fooled, 0.0, 1 / state.slope)
        pull = -per_row(share.to(grad.dtype), grad) * grad
        if bool(new.any()):
            state = choose(new, self.begin(state, pull), state)
        size, price = self.length_of(problem, state.z), torch.zeros_like(hinge)
        if self.term is not None:
            price, slope = self.priced(self.term, problem, rows, state.z)
            # A move weighs the pull by the weight, which the price knows nothing of.
            pull = pull + slope / per_row(state.weight.to(grad.dtype), grad)
            if isinstance(problem.prefer, ClosestReconstructed):
                x_adv = problem.threat.render(rows, state.z)
                size = -problem.prefer(View(problem.oracle, rows, x_adv, state.z))
        state = self.keep(size, state, fooled, grad)
        loss = (state.weight * hinge + self.cost(state) + price).minimum(state.loss)
        state = self.move(room, state._replace(loss=loss), pull)
        state = state._replace(inner=state.inner + 1)
        over, state = self.over(problem, state)
        if bool(over.any()):
            state = self.turn(problem, rows, state, over)
            last = (over & self.ended(state)).nonzero().squeeze(1)
            if len(last) and self.polish:
                z = self.finish(evaluate, rows.take(last), state.best[last])
                state = state._replace(z=state.z.index_copy(0, last, z))
        return state

    def priced(
        self, term: Residual, problem: Problem, rows: Rows, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the term (B,) and its gradient (B, *shape) at z."""

        def price(at: Tensor) -> Tensor:
            return term(problem.threat.render(rows, at))

        found, slope = problem.oracle.value_and_grad(price, z, rows)
        return found.double(), slope

    def keep(self, size: Tensor, state: Trial, fooled: Tensor, grad: Tensor) -> Trial:
        """Note which rows are fooled at z, and keep the smallest such z; size: of z, (B,)."""
        better = fooled & (size < state.size)
        return state._replace(
            best=torch.where(per_row(better, state.z), state.z, state.best),
            size=torch.where(better, size, state.size),
            fell=state.fell | fooled,
        )

    def over(self, problem: Problem, state: Trial) -> tuple[Tensor, Trial]:
        """Return which runs end: all steps used, or no progress since the last look."""
        look = state.inner % max(5, self.length // 5) == 0
        still = look & (state.loss > 0.999 * state.mark)
        mark = torch.where(look, state.loss, state.mark)
        over = (state.inner >= self.length) | still
        # A run begins at a fooled point: only where it stays says whether its weight holds.
        fell = state.fell & (over | ~look)
        return over, state._replace(mark=mark, fell=fell)

    def finish(self, evaluate: Evaluate, rows: Rows, best: Tensor) -> Tensor:
        """Return the last point of rows whose runs are over, from the best of each."""
        return shorten(evaluate, rows, best, self.polish)

    def turn(self, problem: Problem, rows: Rows, state: Trial, over: Tensor) -> Trial:
        """Bisect the weight of the rows whose run is over and start again from their best."""
        low = torch.where(over & ~state.fell, state.weight, state.low)
        high = torch.where(over & state.fell, state.weight, state.high)
        weight = torch.where(over, middle(low, high, self.factor), state.weight)
        return self.again(rows, state._replace(low=low, high=high, weight=weight), over)

    def again(self, rows: Rows, state: Trial, over: Tensor) -> Trial:
        """Begin the next run of some rows at their best; without one, where they are."""
        from_best = per_row(over & state.size.isfinite(), state.z)
        memory = self.fresh(rows)
        endless = torch.full_like(state.loss, float("inf"))
        return state._replace(
            z=torch.where(from_best, state.best, state.z),
            inner=torch.where(over, 0, state.inner),
            run=state.run + over.long(),
            fell=state.fell & ~over,
            loss=torch.where(over, endless, state.loss),
            mark=torch.where(over, endless, state.mark),
            memory={**state.memory, **choose(over, memory, {n: state.memory[n] for n in memory})},
        )

    def ended(self, state: Trial) -> Tensor:
        """Return which rows have used all their runs."""
        return state.run >= self.searches


def choose(which: Tensor, new: Any, old: Any) -> Any:
    """Take the chosen rows (B,) of one tree of tensors and the others of another."""
    if isinstance(old, Tensor):
        return torch.where(per_row(which, old), new, old)
    if isinstance(old, dict):
        return {name: choose(which, new[name], kept) for name, kept in old.items()}
    return type(old)(*(choose(which, a, b) for a, b in zip(new, old, strict=True)))


def ball(problem: Problem) -> Ball:
    """Return the problem's threat; refuse what is no norm ball."""
    if not isinstance(problem.threat, Ball):
        raise KindError(
            f"{type(problem.threat).__name__} has no norm to make small: penalty methods need a "
            "ball, e.g. L2()"
        )
    return problem.threat


def linearised(
    problem: Problem, rows: Rows, value: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (unit, slope, peak), each (B,) float64, of the smallest step inside the box at whose
    end the linearised objective reaches 0: its length in the threat's norm (L2 for L0), how much
    the objective rises on the way for each unit of length, and its largest entry.

    Where the gradient is zero, a tenth of the longest change that the box allows.
    """
    threat, flat = ball(problem), grad.flatten(1).double()
    norm = "l2" if threat.norm == "l0" else threat.norm
    low, high = (room.flatten(1).double() for room in threat._room(rows))
    width = threat.box.width if threat.box is not None else 1.0
    gap = (-value).maximum(1e-6 * width * torch.linalg.vector_norm(flat, dim=1))
    gap = gap.clamp_min(torch.finfo(grad.dtype).tiny)
    way = nearest(norm, flat, gap, low, high)
    longest = torch.full_like(flat, 0.1 * width)
    way = torch.where((way != 0).any(1, keepdim=True), way, longest)
    size = torch.linalg.vector_norm(way, dim=1) if norm == "l2" else threat.length(way)
    return size, gap / size, way.abs().amax(1)


def middle(low: Tensor, high: Tensor, factor: float = 10.0) -> Tensor:
    """Return the next weight between `low`, which failed, and `high`, which held.

    The geometric mean; ten times more where none held yet, half where none failed yet.
    """
    inner = torch.where(low > 0, (low * high).sqrt(), high / 2)
    return torch.where(high.isinf(), grown(low, factor), inner)


def grown(weight: Tensor, factor: float) -> Tensor:
    """Return a larger weight, which stays far from what float32 can hold."""
    return (factor * weight).minimum(weight.clamp_min(1e12))


def shorten(evaluate: Evaluate, rows: Rows, z: Tensor, tries: int) -> Tensor:
    """Bisect between the clean input and z for the last fooled point; return one to judge next.

    `tries` points in all, the returned one included. The best is kept by `evaluate`.
    """
    low = torch.zeros(len(z), dtype=z.dtype, device=z.device)
    high = torch.ones_like(low)
    for _ in range(tries - 1):
        share = (low + high) / 2
        got = evaluate(z * per_row(share, z), rows, need="labels")
        fooled = got.success | (got.value > 0)
        low, high = torch.where(fooled, low, share), torch.where(fooled, share, high)
    return z * per_row((low + high) / 2, z)


def prune(evaluate: Evaluate, rows: Rows, z: Tensor, tries: int) -> Tensor:
    """Bisect for the most of the smallest entries that may fall away; return what is left.

    `tries` label queries, whose points `evaluate` keeps where they are better.
    """
    low = torch.zeros(len(z), dtype=z.dtype, device=z.device)
    high = z.flatten(1).abs().amax(1)
    for _ in range(tries):
        level = (low + high) / 2
        got = evaluate(z * (z.abs() > per_row(level, z)), rows, need="labels")
        fooled = got.success | (got.value > 0)
        low, high = torch.where(fooled, level, low), torch.where(fooled, high, level)
    return z * (z.abs() > per_row(low, z))


def decayed(start: float, end: float, state: Trial, length: int) -> Tensor:
    """Return a step (B,) that falls geometrically from `start` to `end` over a run."""
    return start * (end / start) ** (state.inner.double() / max(1, length))
