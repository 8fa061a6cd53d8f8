"""The only attack loop.

It judges every point, the last included; keeps each sample's best; and drops finished samples
from the batch while waiting ones take their place, so that work is spent only where it is
needed and the batch stays full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.problem import Closest, Problem, View
from foible.core.progress import tick
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows, join, take
from foible.core.search import Evaluation, Search
from foible.core.threat import Steepest


@dataclass(frozen=True)
class Outcome:
    """The best point of each row: x (N, *shape), success (N,), value (N,), steps (N,) int64.

    z: (N, ...) the parameters behind x, of a parametric threat; else None.
    """

    x: Tensor
    success: Tensor
    value: Tensor
    steps: Tensor
    z: Tensor | None = None


class _Best:
    """Each row's best point, ranked by (goal and inside the threat, prefer)."""

    def __init__(self, rows: Rows) -> None:
        self.x = rows.x.clone()
        held = rows.extra.get("z")
        self.z = None if held is None else held.clone()
        self.success = torch.zeros(len(rows), dtype=torch.bool, device=rows.x.device)
        self.rank = torch.full_like(self.success, float("-inf"), dtype=torch.float64)

    def offer(
        self,
        index: Tensor,
        x: Tensor,
        success: Tensor,
        rank: Tensor,
        *,
        repeats: bool = False,
        z: Tensor | None = None,
    ) -> None:
        """Take each point that is better than the one held; repeats: rows may come twice."""
        rank = rank.double()
        held, held_rank = self.success[index], self.rank[index]
        better = torch.where(success == held, rank > held_rank, success)
        where = better.nonzero().squeeze(1)
        if where.numel() == 0:
            return
        index, rank, success = index[where], rank[where], success[where]
        if repeats and index.unique().numel() < index.numel():
            # One query may hold several points of a row: keep the best of them.
            order = torch.argsort(rank, stable=True)
            order = order[torch.argsort(success[order].int(), stable=True)]
            order = order[torch.argsort(index[order], stable=True)]
            last = torch.ones_like(order, dtype=torch.bool)
            last[:-1] = index[order][1:] != index[order][:-1]
            pick = order[last]
            index, rank, success, where = index[pick], rank[pick], success[pick], where[pick]
        self.x[index] = x[where]
        if self.z is not None and z is not None:
            self.z[index] = z[where]
        self.rank[index], self.success[index] = rank, success


class _Evaluator:
    """`evaluate` for the rows that are active now."""

    def __init__(self, problem: Problem, best: _Best, rng: Rng, strays: bool) -> None:
        self.problem, self.best, self.rng, self.strays = problem, best, rng, strays
        self.places = torch.zeros(len(problem.oracle.meter.forwards), dtype=torch.int64)

    def hold(self, rows: Rows, slots: Tensor, step: Tensor) -> None:
        """Say which rows are active, which of the best they write, and their steps."""
        self.rows, self.slots, self.step = rows, slots, step

    def __call__(
        self,
        z: Tensor,
        rows: Rows | None = None,
        need: str = "labels",
        classes: Tensor | None = None,
    ) -> Evaluation:
        slots, step, repeats = self.slots, self.step, rows is not None
        if rows is None:
            rows = self.rows
        else:
            index = self.rows.index.cpu()
            self.places[index] = torch.arange(len(index))
            places = self.places[rows.index.cpu()].to(slots.device)
            slots, step = slots[places], step[places]
        allowed = self._allowed(rows, repeats)
        if allowed is None:
            return self._query(z, rows, slots, step, need, classes, repeats)
        n, which = len(rows), allowed.nonzero().squeeze(1)
        value = torch.full((n,), float("-inf"), dtype=z.dtype, device=z.device)
        if len(which) == 0:
            return Evaluation(value, torch.zeros_like(value, dtype=torch.bool), None, None)
        asked = None if classes is None else classes[which]
        some = self._query(
            z[which], rows.take(which), slots[which], step[which], need, asked, repeats
        )

        def spread(part: Tensor | None) -> Tensor | None:
            if part is None:
                return None
            return part.new_zeros((n, *part.shape[1:])).index_copy(0, which, part)

        success = spread(some.success)
        assert success is not None
        value = value.index_copy(0, which, some.value.to(value.dtype))
        return Evaluation(value, success, spread(some.scores), spread(some.grad))

    def _allowed(self, rows: Rows, repeats: bool) -> Tensor | None:
        """Return which points (B,) the cap still allows; None: all of them."""
        left = self.left(rows)
        if left is None:
            return None
        if not repeats or len(rows) == 1:
            once = left > 0
            return None if bool(once.all()) else once
        # The how-many-eth point of its row each one is, in this query.
        order = torch.argsort(rows.index, stable=True)
        ranked = rows.index[order]
        first = torch.searchsorted(ranked, ranked, side="left")
        nth = torch.empty_like(order).scatter_(
            0, order, torch.arange(len(order), device=order.device) - first
        )
        allowed: Tensor = nth < left
        return None if bool(allowed.all()) else allowed

    def left(self, rows: Rows) -> Tensor | None:
        """Return how many points (B,) each row may still ask, the final verification set aside."""
        cap, meter = self.problem.cap, self.problem.oracle.meter
        if cap is None:
            return None
        price = self.problem.price
        spent = meter.forwards[rows.index.cpu()]
        if self.problem.before is not None:
            spent = spent - self.problem.before[rows.index.cpu()]
        left = (cap - price - spent).to(rows.index.device)
        return left if price == 1 else left // price

    def _query(
        self,
        z: Tensor,
        rows: Rows,
        slots: Tensor,
        step: Tensor,
        need: str,
        classes: Tensor | None,
        repeats: bool,
    ) -> Evaluation:
        problem = self.problem
        grad: Tensor | None = None
        if need == "jacobian" or (need == "grad" and problem.direction is None):
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                view = View(problem.oracle, rows, problem.threat.render(rows, leaf), leaf)
                view.draw = self._draw(rows, step)
                value = problem.objective(view)
                if need == "jacobian":
                    assert classes is not None
                    grad = problem.oracle.class_grads(view.scores, classes, leaf, rows)
                else:
                    (grad,) = problem.oracle.grad(value, (leaf,), rows)
        else:
            with torch.no_grad():
                x_adv = problem.threat.render(rows, z)
                view = View(problem.oracle, rows, x_adv, z)
                view.draw = self._draw(rows, step)
                value = problem.objective(view)
            if need == "grad":
                grad = self._direction(rows, x_adv, step)
        if problem.keep == "last":
            found = None if view._scores is None else view._scores.detach()
            return Evaluation(
                value.detach(), torch.zeros_like(rows.index, dtype=torch.bool), found, grad
            )
        with torch.no_grad():
            success, scores = self._judge(view, slots, value.detach(), repeats)
        return Evaluation(value.detach(), success, scores, grad)

    def _direction(self, rows: Rows, x_adv: Tensor, step: Tensor) -> Tensor:
        explainer = self.problem.direction
        assert explainer is not None
        oracle = self.problem.oracle
        score, draws = self.problem.objective, self.problem.draws
        if hasattr(score, "draws"):
            at = dict(zip(rows.index.tolist(), step.tolist(), strict=True))

            def score(view: View) -> Tensor:
                steps = torch.tensor([at[place] for place in view.rows.index.tolist()])
                view.draw = self._draw(view.rows, steps)
                return self.problem.objective(view)

        field = Field(oracle, score, max(1, oracle.chunk(rows.x) // draws))
        draw = self.rng.split(7).at(rows.id, step)
        found = explainer.attribute(field, rows.at(x_adv), draw).detach()
        threat = self.problem.threat
        # A map is by x, as a gradient is; the search moves z.
        return threat.by_z(found) if isinstance(threat, Steepest) else found

    def _draw(self, rows: Rows, step: Tensor) -> Draw:
        """Return the randomness of this step, for an objective that averages over it."""
        return self.rng.split(11).at(rows.id, step)

    def _judge(
        self, view: View, slots: Tensor, value: Tensor, repeats: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the verdict and the scores behind it; offer the points to the best."""
        problem, rows, x_adv, draw = self.problem, view.rows, view.x_adv.detach(), view.draw
        if problem.threat.parametric and view.z is not None:
            view.rows = rows = replace(rows, extra={**rows.extra, "z": view.z.detach()})
        if problem.judge is not None:
            view = View(problem.judge, rows, x_adv, view.z)
            view.draw = draw
        success = problem.goal(view)
        if bool(success.any()):
            # The float64 verdict on the threat is only worth its cost where the goal holds.
            which = success.nonzero().squeeze(1)
            allowed = problem.threat.contains(rows.take(which), x_adv[which])
            success = success.clone()
            success[which] = allowed
        smallest = isinstance(problem.prefer, Closest)
        if smallest and view._scores is not None:
            success = success & _clear(view._scores.detach())
        if problem.prefer is None or (smallest and not bool(success.any())):
            rank = value
        else:
            rank = problem.prefer(view).detach()
        if self.strays and not smallest:
            # A stronger point outside of the threat is no answer.
            rank = rank.masked_fill(~problem.threat.contains(rows, x_adv), float("-inf"))
        if smallest:
            # A failure is no small perturbation: only successes have a distance.
            rank = rank.masked_fill(~success, float("-inf"))
        self.best.offer(slots, x_adv, success, rank, repeats=repeats, z=rows.extra.get("z"))
        return success, None if view._scores is None else view._scores.detach()


def solve(
    problem: Problem, rows: Rows, search: Search, *, seed: int = 0, restart: int = 0
) -> Outcome:
    """Run a search on every row and return each row's best point.

    problem: what is attacked and what counts. rows: N rows; their `index` places them in the
    oracle's meter. search: how z moves. seed, restart: with a row's id and step they fix all
    randomness. Call inside `problem.oracle.session()`.
    """
    n = len(rows)
    best, rng = _Best(rows), Rng(seed).split(restart)
    if n == 0:
        return Outcome(best.x, best.success, best.rank, torch.zeros(0, dtype=torch.int64))
    evaluate = _Evaluator(problem, best, rng, search.strays)
    width = max(1, problem.oracle.chunk(rows.x) // problem.draws)
    taken = torch.zeros(n, dtype=torch.int64, device=rows.x.device)
    waiting = 0
    active = torch.empty(0, dtype=torch.int64, device=rows.x.device)
    state: Any = None
    current = rows
    while True:
        room = min(width - len(active), n - waiting)
        # Refill in gulps: joining states for a handful of rows would cost more than it saves.
        if room > 0 and (len(active) == 0 or room >= width // 4 or waiting + room == n):
            fresh = torch.arange(waiting, waiting + room, device=rows.x.device)
            waiting += room
            new = search.init(problem, rows.take(fresh), rng.at(rows.id[fresh], 0))
            state = new if len(active) == 0 else join(state, new)
            active = torch.cat([active, fresh])
            current = rows.take(active) if len(active) < n else rows
        if len(active) == 0:
            break
        step = taken[active]
        evaluate.hold(current, active, step)
        state = search.step(problem, current, evaluate, state, rng.at(current.id, step))
        taken[active] = step + 1
        finished = problem.done(best.success[active])
        over = step + 1 >= search.steps
        left = evaluate.left(current)
        if left is not None:
            over = over | (left <= 0)
        ended = search.ended(state)
        if ended is not None:
            over = over | ended
        over = over & ~finished
        if bool(over.any()):
            # The point after the last move has not been judged yet.
            last = over.nonzero().squeeze(1)
            ending, point = current.take(last), take(state, last).z
            if problem.keep == "last":
                with torch.no_grad():
                    best.x[active[last]] = problem.threat.render(ending, point)
            else:
                evaluate.hold(ending, active[last], taken[active[last]])
                evaluate(point)
        gone = finished | over
        if bool(gone.any()):
            stay = (~gone).nonzero().squeeze(1)
            active, state, current = active[stay], take(state, stay), current.take(stay)
            tick(int(gone.sum()))
    return Outcome(best.x, best.success, best.rank, taken, best.z)


def _clear(scores: Tensor) -> Tensor:
    """Return which rows (B,) have a largest score that another batch's rounding would not undo.

    The smallest of many successes lies as close to the boundary as any did.
    """
    top = scores.topk(2, dim=1).values
    rounding = 8 * torch.finfo(scores.dtype).eps * scores.abs().amax(1)
    return (top[:, 0] - top[:, 1]) > rounding


def independent_verdict(
    problem: Problem, rows: Rows, x: Tensor, oracle: Oracle
) -> tuple[Tensor, Tensor]:
    """Judge returned points again: a fresh forward at another batch size, box and budget too.

    Returns the verdict (B,) bool and the labels (B,) of x; one forward a row.
    """
    width = max(1, min(oracle.chunk(rows.x), len(rows)) * 2 // 3)
    verdicts, labels = [], []
    with torch.no_grad():
        for part in torch.arange(len(rows), device=x.device).split(width):
            view = View(oracle, rows.take(part), x[part])
            verdicts.append(problem.goal(view) & problem.threat.contains(view.rows, x[part]))
            labels.append(view.labels)
    return torch.cat(verdicts), torch.cat(labels)
