"""Carlini and Wagner 2017 in L2, Linf and L0: Adam on `weight * hinge + size`, a weight a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.parts.projections import places
from foible.parts.searches.penalty import Penalty, Trial, decayed, grown

FIRST, SECOND = 0.9, 0.999  # Adam's decays


class Moved(Protocol):
    """What Adam must know: how many moves were made, and its moments "first" and "second"."""

    @property
    def inner(self) -> Tensor:
        """(B,) int64."""

    @property
    def memory(self) -> dict[str, Tensor]:
        """Each of z's shape."""


def adam(state: Moved, grad: Tensor, step: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return Adam's move (B, *shape) and its moments; step (B,): the size of an entry's move."""
    first = FIRST * state.memory["first"] + (1 - FIRST) * grad
    second = SECOND * state.memory["second"] + (1 - SECOND) * grad.square()
    count = (state.inner + 1).double()
    rate = step * (1 - SECOND**count).sqrt() / (1 - FIRST**count)
    size = second.sqrt().clamp_min(torch.finfo(grad.dtype).tiny ** 0.5)
    return per_row(rate.to(grad.dtype), grad) * first / size, {"first": first, "second": second}


@dataclass(frozen=True)
class CarliniL2(Penalty):
    """Adam on weight * hinge + |d|^2 (their Section VI.A), d cut by the box.

    rate, last: the first and the last step of a run, as shares of the distance. The paper moves
    w in x + d = tanh(w). There a value at the end of the box has no gradient and the step of 0.01
    means another length in every box, so d itself is moved and cut, the first way that the paper
    lists.
    """

    rate: float = 0.4
    last: float = 0.004
    weight: float = 4.0

    def fresh(self, rows: Rows) -> dict[str, Tensor]:
        """Return moments of zero."""
        return {"first": torch.zeros_like(rows.x), "second": torch.zeros_like(rows.x)}

    def begin(self, state: Trial, pull: Tensor) -> Trial:
        """Begin with a weight that holds on a linear model, where 2 units are the least."""
        return state._replace(weight=self.weight * state.unit)

    def cost(self, state: Trial) -> Tensor:
        """Return |d|^2."""
        size: Tensor = state.z.flatten(1).double().square().sum(1)
        return size

    def reach(self, state: Trial) -> Tensor:
        """Return what steps are a share of: the best distance, or the weight's, an entry."""
        size = state.size
        if self.term is not None:  # then the size by which the best is kept is no distance
            length = torch.linalg.vector_norm(state.best.flatten(1).double(), dim=1)
            size = torch.where(size.isinf(), size, length)
        size = torch.where(size.isinf(), state.weight / self.weight, size)
        share: float = state.z[0].numel() ** -0.5
        return size * share

    def move(self, room: tuple[Tensor, Tensor], state: Trial, pull: Tensor) -> Trial:
        """Take one step of Adam and cut it by the box."""
        grad = per_row(state.weight.to(pull.dtype), pull) * pull + 2 * state.z
        step = decayed(self.rate, self.last, state, self.length) * self.reach(state)
        move, memory = adam(state, grad, step)
        return state._replace(z=(state.z - move).clamp(*room), memory=memory)


@dataclass(frozen=True)
class CarliniLinf(Penalty):
    """Adam on weight * hinge + sum_i max(|d_i| - tau, 0) (their Section VI.C), d cut by the box.

    tau shrinks to a tenth below the best change after a run that holds, as in the paper. Once a
    run has failed (at `low`), it is bisected between that and the best: the paper stops there.
    The weight is half of what would push the strongest entry past tau; it doubles, and tau too,
    until a first run holds. A run that holds ends at once.
    """

    rate: float = 0.1
    last: float = 0.002
    shrink: float = 0.9
    first: float = 1.2

    def fresh(self, rows: Rows) -> dict[str, Tensor]:
        """Return moments of zero."""
        none = torch.zeros(len(rows), dtype=torch.float64, device=rows.x.device)
        moments = {"first": torch.zeros_like(rows.x), "second": torch.zeros_like(rows.x)}
        return {**moments, "tau": none}

    def begin(self, state: Trial, pull: Tensor) -> Trial:
        """Begin with a tau that holds on a linear model."""
        peak = pull.flatten(1).double().abs().amax(1).clamp_min(torch.finfo(pull.dtype).tiny)
        memory = {**state.memory, "tau": self.first * state.unit}
        return state._replace(weight=0.5 / peak, memory=memory)

    def cost(self, state: Trial) -> Tensor:
        """Return the sum of what is beyond tau."""
        change = state.z.flatten(1).double().abs()
        return (change - state.memory["tau"][:, None]).clamp_min(0.0).sum(1)

    def move(self, room: tuple[Tensor, Tensor], state: Trial, pull: Tensor) -> Trial:
        """Take one step of Adam and cut it by the box."""
        tau = state.memory["tau"]
        beyond = state.z.abs() > per_row(tau.to(pull.dtype), pull)
        grad = per_row(state.weight.to(pull.dtype), pull) * pull
        grad = grad + torch.where(beyond, state.z.sign(), 0.0)
        step = decayed(self.rate, self.last, state, self.length) * tau
        move, memory = adam(state, grad, step)
        memory["tau"] = tau
        return state._replace(z=(state.z - move).clamp(*room), memory=memory)

    def over(self, problem: Problem, state: Trial) -> tuple[Tensor, Trial]:
        """Return which runs end: also those that hold, with no entry beyond tau."""
        over, state = super().over(problem, state)
        held = state.size <= state.memory["tau"] * 1.002
        return over | held, state._replace(fell=held)

    def turn(self, problem: Problem, rows: Rows, state: Trial, over: Tensor) -> Trial:
        """Set the next tau and start again from the best, cut to it."""
        tau, none = state.memory["tau"], state.size.isinf()
        low = torch.where(over & ~state.fell, tau, state.low)
        low = torch.where(low < state.size, low, 0.0)
        between = (low * torch.where(none, 1.0, state.size)).sqrt()
        next_tau = torch.where(low > 0, between, self.shrink * state.size)
        next_tau = torch.where(over, torch.where(none, grown(tau, 2.0), next_tau), tau)
        weight = torch.where(over & none, grown(state.weight, 2.0), state.weight)
        state = self.again(rows, state._replace(low=low, weight=weight), over)
        cut = per_row(next_tau.to(state.z.dtype), state.z)
        z = torch.where(per_row(over, state.z), state.z.clamp(-cut, cut), state.z)
        return state._replace(z=z, memory={**state.memory, "tau": next_tau})

    def ended(self, state: Trial) -> Tensor:
        """Return which rows have used all their runs, or are bracketed to half a percent."""
        return super().ended(state) | (state.size < state.low * 1.005)


@dataclass(frozen=True)
class CarliniL0(CarliniL2):
    """Their L2 attack on fewer and fewer features (their Section VI.B).

    After a run that holds, the features with the least |gradient * change| are frozen: a share
    of them at once, not one (`share`, which halves whenever a run fails and its features come
    back). A row has ended when no single one can be spared.
    """

    rate: float = 0.2
    share: float = 0.3

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> Trial:
        """Begin with all features free."""
        state = super().init(problem, rows, draw)
        free = torch.ones_like(rows.x, dtype=torch.bool)
        share = torch.full_like(state.size, self.share)
        more = {
            "free": free, "held": free.clone(), "point": state.z.clone(), "share": share,
            "worth": state.z.clone(), "skip": state.run.clone(), "stuck": state.fell.clone(),
        }  # fmt: skip
        return state._replace(memory={**state.memory, **more})

    def length_of(self, problem: Problem, z: Tensor) -> Tensor:
        """Return the Euclidean length: a run keeps its smallest change, on the free features."""
        size: Tensor = torch.linalg.vector_norm(z.flatten(1).double(), dim=1)
        return size

    def reach(self, state: Trial) -> Tensor:
        """Return the last length that held, at first the linearised one, a free entry."""
        return state.unit / state.memory["free"].flatten(1).sum(1).clamp_min(1).sqrt()

    def keep(self, size: Tensor, state: Trial, fooled: Tensor, grad: Tensor) -> Trial:
        """Keep the smallest change of this run, and what each feature is worth there."""
        new = super().keep(size, state, fooled, grad)
        better = per_row(new.size < state.size, grad)
        worth = torch.where(better, (grad * state.z).abs(), state.memory["worth"])
        return new._replace(memory={**new.memory, "worth": worth})

    def move(self, room: tuple[Tensor, Tensor], state: Trial, pull: Tensor) -> Trial:
        """Take one step of Adam on the free features."""
        free = state.memory["free"]
        moved = super().move(room, state, pull * free)
        return moved._replace(z=moved.z * free, memory={**state.memory, **moved.memory})

    def over(self, problem: Problem, state: Trial) -> tuple[Tensor, Trial]:
        """Return which runs end; fewer features need a larger weight, which grows as it fails."""
        over, state = super().over(problem, state)
        look = (state.inner % max(5, self.length // 5) == 0) & state.size.isinf()
        over = (over & ~look) | (state.inner >= self.length)
        return over, state._replace(
            weight=torch.where(look, grown(state.weight, 4.0), state.weight)
        )

    def turn(self, problem: Problem, rows: Rows, state: Trial, over: Tensor) -> Trial:
        """Freeze more features where the run held, fewer where it failed."""
        m, fell = state.memory, over & state.size.isfinite()
        began = m["point"].flatten(1).any(1)
        wide = per_row(fell, state.z)
        held = torch.where(wide, state.best != 0, m["held"])
        point = torch.where(wide, state.best, m["point"])
        count = held.flatten(1).sum(1)
        gone = (m["share"] * count).long().clamp_min(1)
        failed = over & ~fell & began
        share = torch.where(failed, m["share"] / 2, m["share"])
        # One by one, the next least is tried in turn: a set that can lose none is the answer.
        skip = torch.where(fell, 0, m["skip"] + (failed & (gone == 1)).long())
        stuck = m["stuck"] | (over & (skip >= count)) | (fell & (count == 1))
        gone = (share * count).long().clamp_min(1)
        place = places(torch.where(held, m["worth"], -1.0).flatten(1)).view_as(held)
        last = per_row(count - skip, held)
        free = held & ~((place < last) & (place >= last - per_row(gone, held)))
        go = per_row(fell | failed, state.z)
        free = torch.where(go, free, m["free"])
        endless = torch.full_like(state.size, float("inf"))
        state = state._replace(
            unit=torch.where(fell, state.size, state.unit),
            size=torch.where(over, endless, state.size),
            z=torch.where(go, point * free, state.z),
            memory={
                **m, "free": free, "held": held, "point": point, "share": share, "skip": skip,
                "stuck": stuck,
            },
        )  # fmt: skip
        return self.again(rows, state, over)

    def ended(self, state: Trial) -> Tensor:
        """Return which rows have used all their runs, or can spare no feature."""
        return super().ended(state) | state.memory["stuck"]
