"""Decision trees: no gradient, and a way across that can be worked out exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from foible.attacks.base import Attack
from foible.core.access import Access
from foible.core.errors import KindError
from foible.core.oracle import Oracle
from foible.core.problem import Closest, View
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.models.standins import Leaves, leaves_of, stand_in
from foible.parts.objectives import Constant, CrossEntropy
from foible.parts.searches import Proposed
from foible.parts.threats import Ball

_CELLS = 2**22  # rows x leaves x features that are held at once


@dataclass(frozen=True)
class PathFlip:
    """A `prepare`: the smallest change into a leaf of another class, as rows.extra["proposed"]."""

    threat: Ball
    tree: Any
    spend: bool = False
    access: ClassVar[Access] = Access.LABELS

    def __call__(self, oracle: Oracle, rows: Rows, seed: int) -> Rows:
        """Return the rows with "proposed"."""
        threat, leaves = self.threat.inside(oracle.bounds), leaves_of(self.tree)
        assert leaves is not None
        flat = rows.x.flatten(1).cpu().double()
        width = max(1, _CELLS // max(1, leaves.above.numel()))
        parts = torch.arange(len(rows)).split(width)
        found = [_cheapest(leaves, threat, rows.take(part), flat[part]) for part in parts]
        change, leaf = (torch.cat(column) for column in zip(*found, strict=True))
        z = change.to(rows.x).view_as(rows.x)
        if self.spend and rows.eps is not None:
            z = self._spent(leaves, threat, rows, z, leaf)
        return replace(rows, extra={**rows.extra, "proposed": z})

    def _spent(self, leaves: Leaves, threat: Ball, rows: Rows, z: Tensor, leaf: Tensor) -> Tensor:
        """Spend what is left of eps on other features, up the soft tree, inside the leaf."""
        soft = stand_in(self.tree)
        assert soft is not None and rows.eps is not None
        inner = Oracle(soft, int(rows.index.max()) + 1)
        with inner.session():
            grad = inner.value_and_grad(
                lambda leaf_x: CrossEntropy()(View(inner, rows, leaf_x)), rows.x, rows
            )[1]
        used = threat.length(z.flatten(1).double()).to(rows.eps)
        reached = used <= rows.eps
        left = (rows.eps - used).clamp_min(0)
        if threat.norm == "linf":
            left = rows.eps
        elif threat.norm == "l2":
            left = (rows.eps**2 - used**2).clamp_min(0).sqrt()
        rest = replace(rows, eps=torch.where(reached, left, rows.eps))
        far = (~reached).view(-1, *([1] * (z.dim() - 1)))
        z = torch.where(far, 0.0, z)  # no leaf within eps: only the soft tree's direction is left
        grad = torch.where(z == 0, grad, 0.0)
        step = threat.steepest(rest, torch.zeros_like(z), grad) * threat.step_size(rest, 1.0)
        more = (z + threat.project(rest, step)).flatten(1)
        low, high = _inside(leaves, leaf, rows.x.flatten(1).cpu().double())
        kept = (rows.x.flatten(1) + more).clamp(low.to(more), high.to(more)) - rows.x.flatten(1)
        return torch.where(reached[:, None], kept, more).view_as(z)


def _inside(leaves: Leaves, leaf: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return a closed box (B, ...) inside leaves: as trees compare, in float32, rounding away.

    leaf: (B,) or (1, L) positions; flat: (B, D), or (B, 1, D) for all leaves at once.
    """
    above, below = leaves.above[leaf], leaves.below[leaf]

    def slack(bound: Tensor) -> Tensor:
        size = torch.maximum(bound.abs(), flat.abs())
        return 4 * torch.finfo(torch.float32).eps * torch.where(torch.isfinite(bound), size, 0.0)

    low, high = above + slack(above), below - slack(below)
    thin = low > high
    middle = (above + below) / 2
    return torch.where(thin, middle, low), torch.where(thin, middle, high)


def _cheapest(leaves: Leaves, threat: Ball, rows: Rows, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest change (B, D) float64 into a wanted leaf, and which leaf (B,)."""
    box, at = threat.box, flat[:, None]
    low, high = _inside(leaves, torch.arange(len(leaves.above))[None], at)
    if box is not None:
        low, high = low.clamp_min(box.low), high.clamp_max(box.high)
    change = torch.maximum(torch.minimum(at, high), low) - at
    possible = (low <= high).all(2)
    y = rows.y.cpu()[:, None]
    wanted = (
        leaves.label != y if rows.target is None else leaves.label == rows.target.cpu()[:, None]
    )
    cost = threat.length(change.flatten(0, 1)).view(len(flat), -1)
    cost = cost.masked_fill(~(wanted & possible), float("inf"))
    leaf = cost.argmin(1)
    found = change.gather(1, leaf[:, None, None].expand(-1, 1, flat.shape[1])).squeeze(1)
    none = torch.isinf(cost.amin(1))
    return found.masked_fill(none[:, None], 0.0), leaf


def path_flip(model: Any, threat: Threat, spend: bool = False) -> Attack:
    """Return the attack on a decision tree that moves to the nearest leaf of another class.

    After Papernot et al. 2016 (A10), who look for a leaf of another class beside the sample's
    own. Here all leaves are measured in the threat's norm, so that the change is the smallest
    there is, inside the box: the exact minimum of a tree. model: `foible.models.estimator` of a
    scikit-learn decision tree, whose splits are read (white box); the attack works on that tree.
    threat: a norm ball; without eps, or with it (then a farther leaf is no success). spend: put
    what is left of eps into features that the leaf does not ask about, uphill on a softened tree;
    the tree's answer stays, and the change carries over to other models. Costs one query.

    Raises KindError for a model that is no decision tree, and for a threat that is no norm ball.

    >>> import foible
    >>> path_flip(torch.nn.Linear(2, 2), foible.Linf(0.1))
    Traceback (most recent call last):
    ...
    foible.core.errors.KindError: Linear is no held decision tree: pass \
foible.models.estimator(tree)
    """
    if leaves_of(model) is None:
        raise KindError(
            f"{type(model).__name__} is no held decision tree: pass foible.models.estimator(tree)"
        )
    if not isinstance(threat, Ball):
        raise KindError(f"{type(threat).__name__} has no norm to measure leaves by: use a ball")
    prefer = Closest(threat) if threat.eps is None else None
    prepare = PathFlip(threat, model, spend)
    return Attack("path_flip", threat, Proposed(), Constant(), prefer=prefer, prepare=prepare)
