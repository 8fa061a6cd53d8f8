"""What attacks on the linearised model share: its planes, and the way back to the boundary.

The label is lost on the far side of any of the planes; a target is reached where its logit beats
every other one, on the far side of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foible.core.errors import KindError
from foible.core.problem import Problem
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate, Evaluation
from foible.parts.corners import inside
from foible.parts.objectives import others
from foible.parts.planes import closest
from foible.parts.threats import Ball

_NORMS = ("linf", "l2", "l1")


def ball_of(problem: Problem) -> Ball:
    """Return the threat, a ball whose planes can be measured; refuse any other."""
    threat = problem.threat
    if not isinstance(threat, Ball) or threat.norm not in _NORMS:
        raise KindError(
            f"{type(threat).__name__} has no way onto a plane here: attacks on the linearised "
            "model need Linf, L2 or L1"
        )
    return threat


def rivals(scores: Tensor, rows: Rows, most: int) -> Tensor:
    """Return classes (B, C): the target or the label, then the others of the largest scores."""
    own = rows.y if rows.target is None else rows.target
    top = others(scores, own).topk(min(most, scores.shape[1]) - 1, dim=1).indices
    return torch.cat([own[:, None], top], 1)


def margin(scores: Tensor, rows: Rows) -> Tensor:
    """Return how far (B,) the goal is reached: above 0 where it is."""
    own = rows.y if rows.target is None else rows.target
    gap = others(scores, own).amax(1) - scores.gather(1, own[:, None])[:, 0]
    return gap if rows.target is None else -gap


def slack(scores: Tensor, start: Tensor) -> Tensor:
    """Return how far beyond a plane to aim (B, M), or rounding may leave a point just before it.

    scores: (B, K) here; start: (B, M), the gaps at the clean input.
    """
    rounding = 8 * torch.finfo(scores.dtype).eps * scores.abs().amax(1, keepdim=True)
    return (1e-4 * start.abs()).maximum(rounding)


def planes(seen: Evaluation, rows: Rows, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return normals (B, C - 1, D) and gaps (B, C - 1): beyond plane j, normal . step >= gap."""
    assert seen.grad is not None and seen.scores is not None and rows.scores is not None
    side = 1.0 if rows.target is None else -1.0
    normals = side * (seen.grad[:, 1:] - seen.grad[:, :1]).flatten(2)
    here, start = (side * (s[:, :1] - s[:, 1:]) for s in (
        seen.scores.gather(1, classes), rows.scores.gather(1, classes)
    ))  # fmt: skip
    return normals, here + slack(seen.scores, start)


def onto_goal(
    norm: str, normals: Tensor, gaps: Tensor, low: Tensor, high: Tensor, every: bool
) -> Tensor:
    """Return the smallest step (B, D) onto the boundary of the goal's region, from either side.

    every: all planes must be crossed (a target); else any one.
    """
    if not every:
        return closest(norm, normals, gaps, low, high)
    outside = (gaps > 0).any(1)
    # From inside, the nearest way out is the nearest plane.
    step = torch.zeros_like(low)
    for which, way in ((outside, inside), (~outside, closest)):
        at = which.nonzero().squeeze(1)
        if at.numel():
            step[at] = way(norm, normals[at], gaps[at], low[at], high[at])
    return step


def pull_back(evaluate: Evaluate, rows: Rows, z: Tensor, reached: Tensor, rounds: int) -> Tensor:
    """Move adversarial points along their segments to the clean input, close to the boundary.

    z (B, *shape); reached (B,) > 0, the margins there. Costs `rounds` forwards, which record what
    they find, and returns one more point to judge. Regula falsi as in FAB's final search, with the
    remaining end's value halved (Illinois), and a little beyond the estimated crossing.
    """
    assert rows.scores is not None
    low, high = torch.zeros_like(reached), torch.ones_like(reached)
    below, above = margin(rows.scores, rows), reached
    for _ in range(rounds):
        at = _between(low, high, below, above)
        seen = evaluate(z * per_row(at, z), rows, need="scores")
        assert seen.scores is not None
        value = margin(seen.scores, rows)
        beyond = value > 0
        above = torch.where(beyond, value, above / 2)
        below = torch.where(beyond, below / 2, value)
        low, high = torch.where(beyond, low, at), torch.where(beyond, at, high)
    return z * per_row(_between(low, high, below, above), z)


def _between(low: Tensor, high: Tensor, below: Tensor, above: Tensor) -> Tensor:
    share = below / (below - above).clamp_max(-torch.finfo(below.dtype).tiny)
    return low + (high - low) * (share.nan_to_num(nan=0.5) + 2e-3).clamp(0.02, 0.99)
