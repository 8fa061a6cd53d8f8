"""APGD: projected gradient steps with momentum whose length adapts to each row's own progress.

Croce and Hein 2020 (Linf, L2); Croce and Hein 2021, *Mind the box* (L1, with sparse steps).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from foible.core.errors import KindError
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate, Search
from foible.parts.threats import Ball

# Percent of the steps: the first checkpoint, by how much the wait shrinks each time, the shortest.
FIRST, SHRINK, SHORTEST = 22, 3, 6
DENSITY = 0.2  # L1: the share of entries that the first steps move
SPARSER = 1.5  # L1: a step moves this many times fewer entries than the best point has changed


@lru_cache(maxsize=64)
def checkpoints(steps: int) -> tuple[int, ...]:
    """Return the steps after which the length of a step is looked at.

    >>> checkpoints(100), checkpoints(10)
    ((22, 41, 57, 70, 80, 87, 93, 99), (3, 5, 6, 7, 8, 9, 10))
    """
    found, at, wait = [], FIRST, FIRST
    while at <= 100:
        found.append(-(-at * steps // 100))
        wait = max(wait - SHRINK, SHORTEST)
        at += wait
    return tuple(sorted(set(found)))


@lru_cache(maxsize=64)
def _waits(steps: int) -> Tensor:
    """Return (steps,) int64: at a checkpoint, how many steps since the last one; else 0."""
    waits, last = torch.zeros(steps + 1, dtype=torch.int64), 0
    for at in checkpoints(steps):
        waits[at], last = at - last, at
    return waits[:steps]


@lru_cache(maxsize=64)
def phases(steps: int, wide: tuple[float, ...] = (3.0, 2.0)) -> tuple[tuple[int, float], ...]:
    """Return where each phase of L1 begins and its radius in eps: 0.3 of the steps each, the rest.

    >>> phases(100), phases(2)
    (((0, 3.0), (30, 2.0), (60, 1.0)), ((0, 1.0),))
    """
    length = 3 * steps // 10
    if length == 0:
        return ((0, 1.0),)
    begun = [(place * length, times) for place, times in enumerate(wide)]
    return (*begun, (len(wide) * length, 1.0))


@lru_cache(maxsize=64)
def _plan(steps: int, widen: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return for every step of L1: the radius in eps, whether it is a checkpoint, and the radius
    of the phase that begins after it (0: none does).
    """
    begun = phases(steps) if widen else ((0, 1.0),)
    times, check = torch.ones(steps), torch.zeros(steps, dtype=torch.bool)
    after = torch.zeros(steps)
    ends = [*(start for start, _ in begun[1:]), steps]
    for (start, radius), end in zip(begun, ends, strict=True):
        times[start:end] = radius
        check[start + 1 : end] = True
        check[start:end] &= torch.arange(end - start) % max(1, (end - start) // 25) == 0
        if start:
            after[start - 1] = radius
    return times, check, after


def _ball(problem: Problem) -> Ball:
    threat = problem.threat
    if not isinstance(threat, Ball) or threat.norm not in ("linf", "l2", "l1"):
        raise KindError(
            f"{type(threat).__name__} has no APGD: use a ball in Linf, L2 or L1; in L0 use pgd"
        )
    return threat


class DenseState(NamedTuple):
    """z, before (B, *shape): this point and the last; best, grad: the best point, its gradient.

    value, last, seen (B,): of the best point, of the last point, of the best at the last
    checkpoint. share (B,): length of a step in eps. rose (B,) int64: how often the value rose since
    then. halved (B,): whether the step was halved there.
    """

    z: Tensor
    before: Tensor
    best: Tensor
    grad: Tensor
    value: Tensor
    last: Tensor
    seen: Tensor
    share: Tensor
    rose: Tensor
    halved: Tensor


class SparseState(NamedTuple):
    """z, best, grad (B, *shape), value (B,): the next point; this phase's best point, its gradient.

    share (B,): length of a step in the phase's radius. density (B,): the share of entries that a
    step moves. held (B,): how many entries the best point changed at the last checkpoint.
    """

    z: Tensor
    best: Tensor
    grad: Tensor
    value: Tensor
    share: Tensor
    density: Tensor
    held: Tensor


S = TypeVar("S", DenseState, SparseState)


@dataclass(frozen=True)
class APGD(Search):
    """Ascent whose steps, and in L1 whose sparsity, adapt at checkpoints to each row's progress.

    Linf and L2: a first step of twice eps. At a checkpoint a row halves its step and returns to
    its best point if its value rose in fewer than `rho` of the steps since the last one, or if
    neither step nor best value changed there. momentum: the weight of the new step against the
    last move. L1: a step moves few entries by equal amounts, 1.5 times fewer than the best point
    has changed; where that falls by 5 % the step's length returns to the radius and the row to
    its best point, else it shrinks by 1.5, down to a tenth.

    widen: the first 0.3 of the steps search the ball of three times eps, the next 0.3 that of
    twice eps, each phase from the last one's best point, projected (L1 only).
    start: "random" (of full size in the norm, then cut by the box; in L1 a projected Gaussian) or
    "clean".
    """

    steps: int = 100
    widen: bool = False
    momentum: float = 0.75
    rho: float = 0.75
    start: str = "random"

    @property
    def strays(self) -> bool:
        """Wider balls than the threat are searched first."""
        return self.widen

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> DenseState | SparseState:
        """Place z at random on the ball or at the clean input."""
        threat = _ball(problem)
        sparse = threat.norm == "l1"
        times = phases(self.steps)[0][1] if sparse and self.widen else 1.0
        ball = replace(rows, eps=rows.radius().flatten() * times)
        z = threat.clean(rows)
        if self.start != "clean":
            z = _noise(threat, ball, draw.split(3))
        none = torch.zeros(len(rows), dtype=z.dtype, device=z.device)
        lowest = torch.full_like(none, float("-inf"))
        if sparse:
            held = none + z[0].numel()
            return SparseState(z, z, torch.zeros_like(z), lowest, none + 1, none + DENSITY, held)
        count = torch.zeros_like(rows.index)
        return DenseState(
            z, z, z, torch.zeros_like(z), lowest, -lowest, lowest, none + 2, count, none > 0
        )

    def step(
        self,
        problem: Problem,
        rows: Rows,
        evaluate: Evaluate,
        state: DenseState | SparseState,
        draw: Draw,
    ) -> DenseState | SparseState:
        """One forward, one backward, one move."""
        threat, at = _ball(problem), draw.step.to(rows.x.device)
        found = evaluate(state.z, need="grad")
        value, grad = found.value.to(state.value.dtype), found.grad
        if grad is None:  # beyond the cap of queries: the row leaves
            return state
        if isinstance(state, SparseState):
            return self._sparse_step(threat, rows, _better(state, value, grad), grad, at)
        fresh, rose = state.value == float("-inf"), state.rose + (value > state.last)
        state = _better(state, value, grad)
        seen = torch.where(fresh, value, state.seen)
        state = state._replace(seen=seen, rose=rose, last=value)
        return self._dense_step(threat, rows, state, grad, at)

    def _dense_step(
        self, threat: Ball, rows: Rows, state: DenseState, grad: Tensor, at: Tensor
    ) -> DenseState:
        waits = _waits(self.steps).to(at.device)[at]
        if bool((waits > 0).any()):
            state, grad = self._halved(state, grad, waits)
        size = per_row(state.share, state.z) * rows.radius()
        ahead = threat.project(rows, state.z + threat.steepest(rows, state.z, grad) * size)
        # There is no last move at the first step: it is taken whole.
        new = per_row(torch.where(at > 0, self.momentum, 1.0).to(size.dtype), size)
        moved = state.z + new * (ahead - state.z) + (1 - new) * (state.z - state.before)
        return state._replace(z=threat.project(rows, moved), before=state.z)

    def _halved(self, state: DenseState, grad: Tensor, waits: Tensor) -> tuple[DenseState, Tensor]:
        """Halve the steps of the rows that stand at a checkpoint and should; restart them."""
        now = waits > 0
        idle = ~state.halved & (state.value <= state.seen)
        halve = now & ((state.rose < self.rho * waits) | idle)
        back = per_row(halve, state.z)
        state = state._replace(
            z=torch.where(back, state.best, state.z),
            share=torch.where(halve, state.share / 2, state.share),
            halved=torch.where(now, halve, state.halved),
            seen=torch.where(now, state.value, state.seen),
            rose=torch.where(now, 0, state.rose),
        )
        return state, torch.where(back, state.grad, grad)

    def _sparse_step(
        self, threat: Ball, rows: Rows, state: SparseState, grad: Tensor, at: Tensor
    ) -> SparseState:
        times, check, after = (t.to(at.device)[at] for t in _plan(self.steps, self.widen))
        if bool(check.any()):
            state, grad = _resparsed(state, grad, check)
        ball = replace(rows, eps=rows.radius().flatten() * times.to(grad.dtype))
        move = sparse_sign(grad.flatten(1), state.density).view_as(grad)
        size = per_row(state.share, grad) * ball.radius()
        state = state._replace(z=threat.project(ball, state.z + move * size))
        ends = after > 0
        if not bool(ends.any()):
            return state
        ball = replace(rows, eps=rows.radius().flatten() * after.to(grad.dtype))
        first, begins = threat.project(ball, state.best), per_row(ends, grad)
        held = _changed(first)
        return SparseState(
            torch.where(begins, first, state.z),
            torch.where(begins, first, state.best),
            state.grad,
            torch.where(ends, float("-inf"), state.value),
            torch.where(ends, 1.0, state.share),
            torch.where(ends, held / (grad[0].numel() * SPARSER), state.density),
            torch.where(ends, held, state.held),
        )  # fmt: skip


def _better(state: S, value: Tensor, grad: Tensor) -> S:
    """Return the state whose best point may be z, with its value and gradient."""
    better = value > state.value
    pick = per_row(better, state.z)
    return state._replace(
        best=torch.where(pick, state.z, state.best),
        grad=torch.where(pick, grad, state.grad),
        value=torch.where(better, value, state.value),
    )


def _resparsed(state: SparseState, grad: Tensor, check: Tensor) -> tuple[SparseState, Tensor]:
    """Set the sparsity and the length of a step at a checkpoint."""
    held = _changed(state.best)
    fewer = held < 0.95 * state.held
    back = per_row(check & fewer, grad)
    share = torch.where(fewer, 1.0, (state.share / SPARSER).clamp_min(0.1))
    state = state._replace(
        z=torch.where(back, state.best, state.z),
        share=torch.where(check, share, state.share),
        density=torch.where(check, held / (grad[0].numel() * SPARSER), state.density),
        held=torch.where(check, held, state.held),
    )
    return state, torch.where(back, state.grad, grad)


def _changed(z: Tensor) -> Tensor:
    return (z.flatten(1) != 0).sum(1).to(z.dtype)


def sparse_sign(grad: Tensor, density: Tensor) -> Tensor:
    """Return the signs (B, D) of the largest `density` (B,) of a gradient, at unit L1 length.

    >>> sparse_sign(torch.tensor([[1.0, -4.0, 2.0, 0.5]]), torch.tensor([0.5]))
    tensor([[ 0.0000, -0.5000,  0.5000,  0.0000]])
    """
    size, width = grad.abs(), grad.shape[1]
    count = (density * width).long().clamp(1, width)
    least = size.sort(1, descending=True).values.gather(1, count[:, None] - 1)
    sign = torch.where(size >= least, grad, 0.0).sign()
    return sign / sign.abs().sum(1, keepdim=True).clamp_min(1.0)


def _noise(threat: Ball, rows: Rows, draw: Draw) -> Tensor:
    """Draw AutoAttack's start."""
    shape, dtype = rows.shape, rows.x.dtype
    if threat.norm == "l1":
        # Theirs is for boxes of width 1; in other units the noise is as wide beside the box.
        width = 1.0 if threat.box is None else threat.box.width
        return threat.project(rows, draw.normal(shape, dtype) * width)
    if threat.norm == "linf":
        noise = draw.uniform(shape, dtype) * 2 - 1
    else:
        noise = draw.normal(shape, dtype)
    size = threat.length(noise.flatten(1)).clamp_min(torch.finfo(dtype).tiny)
    low, high = threat._room(rows)
    noise = noise / per_row(size, noise) * rows.radius()
    return threat.project(rows, noise.clamp(low, high))
