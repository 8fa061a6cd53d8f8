"""Accuracy against eps: each sample's smallest breaking eps on a grid, by bisection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import Attack, check_batch, clean_scores
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.rows import Rows
from foible.core.solver import independent_verdict
from foible.models import as_model
from foible.parts.threats import Ball


@dataclass(frozen=True)
class CurveResult:
    """A curve.

    eps: the grid. smallest: (B,) the smallest grid eps that broke each sample, 0 for samples
    that were wrong before and inf for those that none broke. x: (B, *shape) what broke them.
    forwards, backwards: (B,) int64.
    """

    eps: tuple[float, ...]
    smallest: Tensor
    x: Tensor
    forwards: Tensor
    backwards: Tensor

    @property
    def accuracy(self) -> list[float]:
        """Return the accuracy at each eps, over all samples."""
        return [float((self.smallest > e).double().mean()) for e in self.eps]


@dataclass(frozen=True)
class Curve:
    """An attack and a grid; call it with (model, x, y)."""

    attack: Attack
    eps: tuple[float, ...]

    def __call__(
        self, model: Any, x: Tensor, y: Tensor, *, target: Tensor | None = None, seed: int = 0
    ) -> CurveResult:
        """Bisect every sample's place on the grid; arguments as for an attack.

        Assumes what the audit checks: that a larger eps is at least as strong.
        """
        held = as_model(model)
        check_batch(x, y, target, held.bounds)
        x = x.detach()
        oracle = Oracle(held, len(x), self.attack.access)
        index = torch.arange(len(x), device=x.device)
        rows = Rows(index, index, x, y.to(index), None if target is None else target.to(index))
        with oracle.session(seed):
            return self._run(oracle, rows, seed)

    def _run(self, oracle: Oracle, rows: Rows, seed: int) -> CurveResult:
        clean = clean_scores(oracle, rows)
        attack = replace(self.attack, stop="success")
        if attack.reach == "least_likely" and rows.target is None:
            rows = replace(rows, target=clean.argmin(1))
        rows = replace(rows, scores=clean)
        wrong = attack.goal(View(oracle, rows, rows.x, scores=clean))
        grid = torch.tensor(self.eps, dtype=torch.float64, device=rows.x.device)
        best = rows.x.clone()
        # Broken at grid[high] (len: at none), unbroken at grid[low] (-1: below the grid).
        low = torch.full((len(rows),), -1, device=rows.x.device)
        high = torch.full_like(low, len(grid))
        high[wrong], low[wrong] = -1, -1
        while True:
            left = (high - low > 1).nonzero().squeeze(1)
            if len(left) == 0:
                break
            # The largest eps first: a sample that survives it needs no second run, and those are
            # the expensive ones, since they use all steps.
            middle = (low[left] + high[left]) // 2
            middle = torch.where(high[left] == len(grid), len(grid) - 1, middle)
            some = replace(rows.take(left), eps=grid[middle].to(rows.x.dtype))
            threat = attack.threat.inside(oracle.bounds)
            problem = attack.problem(oracle, threat)
            if attack.prepare is not None:
                some = attack.prepare(oracle, some, seed)
            found, success, _ = attack.search_all(problem, some, seed)
            hit = success.nonzero().squeeze(1)
            success[hit] = independent_verdict(problem, some.take(hit), found[hit], oracle)[0]
            # A point that lies well inside its ball breaks smaller ones, too.
            size = threat.distance(some, found)
            enough = torch.searchsorted(grid, size).clamp_max(middle).maximum(low[left] + 1)
            high[left] = torch.where(success, enough, high[left])
            low[left] = torch.where(success, low[left], middle)
            best[left[success]] = found[success]
        smallest = torch.cat([grid, grid.new_tensor([float("inf"), 0.0])])[high]
        meter = oracle.meter
        return CurveResult(self.eps, smallest, best, meter.forwards, meter.backwards)


def curve(attack: Attack, eps: Sequence[float]) -> Curve:
    """Return the accuracy curve of a budget attack over a grid of eps, in one run.

    Each sample is bisected on the grid, so m values cost about log2(m) runs of the attack
    instead of m; fooled samples stop at once.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> c = foible.attacks.curve(foible.attacks.fgsm(foible.Linf(0.1)), eps=[0.01, 0.1])
    >>> a, b = c(foible.zoo.load("standard"), x[:64], y[:64]).accuracy
    >>> a >= b
    True
    """
    grid = tuple(float(e) for e in eps)
    if not grid or not all(a < b for a, b in pairwise((0.0, *grid))):
        raise InputError(f"eps is {list(eps)}: give a rising list of positive values")
    if not isinstance(attack.threat, Ball):
        raise InputError(f"{attack.name} has no eps to vary: a curve needs a norm ball")
    return Curve(replace(attack, threat=replace(attack.threat, eps=grid[-1])), grid)
