"""Box-constrained L-BFGS (Szegedy et al. 2014): scipy's L-BFGS-B, with a weight a row."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.errors import MissingExtra
from foible.core.problem import Problem, View
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate, Search
from foible.parts.objectives import Nearest
from foible.parts.searches.penalty import ball, linearised, middle, shorten


@dataclass(frozen=True)
class Tempered:
    """A smooth hinge on the margin: minus the cross-entropy at a temperature T, above its value
    on a boundary.

    T is `share` of the clean margin, so the loss is straight far from the boundary and gone
    beyond it. Targeted it is the target's cross-entropy, of logits divided by T. Untargeted it is
    that of two classes, the label and the nearest other one, in units of distance as `Nearest`
    has them. Positive only where the goal is reached.
    """

    share: float = 0.05

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        rows, scores = view.rows, view.scores
        assert rows.scores is not None
        clean = View(view.oracle, rows, rows.x, scores=rows.scores)
        gap = Nearest()(clean).detach().abs()
        heat = (self.share * gap).clamp_min(torch.finfo(scores.dtype).tiny ** 0.5)
        if rows.target is None:
            loss = F.softplus(-Nearest()(view) / heat)
        else:
            loss = F.cross_entropy(scores / heat[:, None], rows.target, reduction="none")
        return heat * (torch.full_like(loss, 2.0).log() - loss)


TOGETHER = 256  # rows, and so threads, at once
LINE = 10  # points of one line search; scipy looks at its limits between two of them


class Runs(NamedTuple):
    """z, best (B, *shape); size (B,) of the best; slope, unit, weight, low, high (B,); run (B,)."""

    z: Tensor
    best: Tensor
    size: Tensor
    slope: Tensor
    unit: Tensor
    weight: Tensor
    low: Tensor
    high: Tensor
    run: Tensor


@dataclass(frozen=True)
class BoxLBFGS(Search):
    """Minimise weight * loss + |d|^2 inside the box, one run of scipy a step, then bisect.

    The loss is minus the objective in units of distance, as in `penalty`. iterations: at most so
    many in a run; polish: label queries that shorten the best point at the end. Float64 inside;
    each point that scipy tries is judged in the dtype of x, and so is the one that is returned.
    """

    searches: int = 10
    iterations: int = 20
    weight: float = 5.0
    polish: int = 8
    steps: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", self.searches)

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> Runs:
        """Place z at the clean input; the rest is known after the first look at the model."""
        ball(problem)
        _minimise()
        one = torch.ones(len(rows), dtype=torch.float64, device=rows.x.device)
        nothing, endless = torch.zeros_like(rows.x), one * float("inf")
        return Runs(
            nothing, nothing.clone(), endless, one, one.clone(), one.clone(), one * 0,
            endless.clone(), one.long() * 0,
        )  # fmt: skip

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: Runs, draw: Draw
    ) -> Runs:
        """One run of scipy for each row, from the best point or from where the last one ended."""
        new = (state.run == 0).nonzero().squeeze(1)
        if len(new):
            state = self._begin(problem, rows, evaluate, state, new)
        low, high = (room.double() for room in ball(problem)._room(rows))
        scale = per_row(state.unit, state.z)
        start = torch.where(per_row(state.size.isfinite(), state.z), state.best, state.z).double()
        asks = _Asks(problem, rows, evaluate, state)
        bounds = torch.stack([low / scale, high / scale], -1).flatten(1, -2)
        options = {"maxiter": self.iterations, "maxfun": self.iterations, "maxls": LINE}
        minimise = partial(_minimise(), options=options)
        starts = list(
            zip((start / scale).flatten(1).cpu().numpy(), bounds.cpu().numpy(), strict=True)
        )
        found: list[np.ndarray] = []
        for part in range(0, len(rows), TOGETHER):
            found += together(minimise, starts[part : part + TOGETHER], partial(asks, part))
        ends = torch.from_numpy(np.stack(found)).to(state.unit)
        z = (ends.view(state.z.shape) * scale).to(state.z.dtype)
        fell, best, size = asks.fooled, asks.best, asks.size
        bound_low = torch.where(fell, state.low, state.weight)
        bound_high = torch.where(fell, state.weight, state.high)
        state = state._replace(
            z=z, best=best, size=size, low=bound_low, high=bound_high,
            weight=middle(bound_low, bound_high), run=state.run + 1,
        )  # fmt: skip
        last = (self.ended(state) & size.isfinite()).nonzero().squeeze(1)
        if len(last) and self.polish:
            short = shorten(evaluate, rows.take(last), best[last], self.polish)
            state = state._replace(z=z.index_copy(0, last, short))
        return state

    def _begin(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: Runs, new: Tensor
    ) -> Runs:
        """Measure the linearised model of fresh rows at the clean input."""
        some = rows.take(new)
        got = evaluate(state.z[new], some, need="grad")
        assert got.grad is not None
        unit, slope, _ = linearised(problem, some, got.value.double(), got.grad)
        return state._replace(
            unit=state.unit.index_copy(0, new, unit),
            slope=state.slope.index_copy(0, new, slope),
            weight=state.weight.index_copy(0, new, self.weight * unit),
        )

    def ended(self, state: Runs) -> Tensor:
        """Return which rows have used all their runs, or are bracketed to half a percent."""
        return (state.run >= self.searches) | (state.high < state.low * 1.005)


class _Asks:
    """What scipy minimises, for many rows at once; keeps the best point of each row.

    fooled: whether the last point that was asked, near which a run ends, had reached the goal.
    """

    def __init__(self, problem: Problem, rows: Rows, evaluate: Evaluate, state: Runs) -> None:
        self.problem, self.rows, self.evaluate, self.state = problem, rows, evaluate, state
        self.best, self.size = state.best.clone(), state.size.clone()
        self.fooled = torch.zeros_like(state.run, dtype=torch.bool)

    def __call__(
        self, first: int, which: list[int], points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return losses (n,) and gradients (n, D) at points (n, D), in units of the distance.

        which: the rows that the points are of, counted from `first`.
        """
        i = first + torch.tensor(which, device=self.rows.x.device)
        flat = torch.from_numpy(points).to(self.state.unit)
        unit = self.state.unit[i][:, None]
        z = (flat * unit).to(self.rows.x.dtype).view(-1, *self.rows.shape)
        got = self.evaluate(z, self.rows.take(i), need="grad")
        assert got.grad is not None
        fooled = got.success | (got.value > 0)
        size = ball(self.problem).length(z.flatten(1).double())
        better = fooled & (size < self.size[i])
        self.best[i[better]], self.size[i[better]] = z[better], size[better]
        self.fooled[i] = fooled
        pull = (self.state.weight / self.state.slope)[i]
        loss = flat.square().sum(1) - pull * got.value.double() / unit[:, 0].square()
        grad = 2 * flat - (pull[:, None] / unit) * got.grad.flatten(1).double()
        return loss.cpu().numpy(), grad.cpu().numpy()


Answer = tuple[float, np.ndarray]
_STOP = (float("nan"), np.zeros(0))


def together(
    minimise: Callable[..., Any],
    starts: list[tuple[np.ndarray, np.ndarray]],
    asks: Callable[[list[int], np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> list[np.ndarray]:
    """Run one scipy minimisation a row, in step, and return where each ended.

    starts: of each row the first point (D,) and the bounds (D, 2). scipy calls a function and
    waits, one point of one row at a time; a thread a row lets the calls of all rows be answered
    in one batch. The threads hold nothing but scipy, and no batch is formed before every row has
    asked or ended, so the result does not depend on their order.
    """
    asked: SimpleQueue[tuple[int, np.ndarray | None]] = SimpleQueue()
    answers: list[SimpleQueue[Answer]] = [SimpleQueue() for _ in starts]

    def ask(i: int, point: np.ndarray) -> Answer:
        asked.put((i, point.copy()))
        answer = answers[i].get()
        if answer is _STOP:
            raise StopIteration
        return answer

    def run(i: int) -> np.ndarray:
        try:
            point, bounds = starts[i]
            found = minimise(partial(ask, i), point, jac=True, method="L-BFGS-B", bounds=bounds)
            return np.asarray(found.x)
        finally:
            asked.put((i, None))

    with ThreadPoolExecutor(max(1, len(starts))) as pool:
        runs = [pool.submit(run, i) for i in range(len(starts))]
        live = len(runs)
        try:
            while live:
                heard = sorted((asked.get() for _ in range(live)), key=lambda said: said[0])
                waiting = [(i, point) for i, point in heard if point is not None]
                live = len(waiting)
                if waiting:
                    which = [i for i, _ in waiting]
                    losses, grads = asks(which, np.stack([point for _, point in waiting]))
                    for i, loss, grad in zip(which, losses, grads, strict=True):
                        answers[i].put((float(loss), grad))
        finally:
            # An error in the model, or Ctrl-C: let the threads go.
            for answer in answers:
                answer.put(_STOP)
        return [run.result() for run in runs]


def _minimise() -> Any:
    """Return scipy's minimiser, which foible does not depend on."""
    try:
        from scipy.optimize import minimize  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra("lbfgs needs scipy: run `pip install scipy`") from error
    return minimize
