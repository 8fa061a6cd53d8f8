"""Take features out of a sparse change that already works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foible.core.randomness import Draw
from foible.core.rows import Rows, join, per_row, take
from foible.core.search import Evaluate
from foible.parts.projections import places
from foible.parts.threats import Ball


class Kept(NamedTuple):
    """The sparsest success: z (B, *shape); many (B,), its features, inf for none; tries (B,)
    int64 the rounds of pruning that found nothing.
    """

    z: Tensor
    many: Tensor
    tries: Tensor

    @classmethod
    def nothing(cls, z: Tensor) -> Kept:
        """Return what is kept before the first success."""
        none = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return cls(z, torch.full_like(none, float("inf"), dtype=z.dtype), none)

    def offered(self, z: Tensor, won: Tensor) -> Kept:
        """Return the better of what is kept and z, where won (B,)."""
        count = (z != 0).flatten(1).sum(1).to(z.dtype)
        better = won & (count < self.many)
        return Kept(
            torch.where(per_row(better, z), z, self.z),
            torch.where(better, count, self.many),
            self.tries,
        )


def reach(threat: Ball, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the least and the largest change (B, D) inside the box; its width where endless."""
    width = 1.0 if threat.box is None else threat.box.width
    low, high = (room.flatten(1) for room in threat._room(rows))
    return (
        torch.where(low.isfinite(), low, -width),
        torch.where(high.isfinite(), high, width),
    )


def by_phase(
    first: Callable[[Rows, Any, Draw], Any],
    second: Callable[[Rows, Any, Draw], Any],
    late: Tensor,
    rows: Rows,
    state: Any,
    draw: Draw,
) -> Any:
    """Apply `second` to the rows that are late (B,), `first` to the others."""
    late = late.to(rows.x.device)
    if not bool(late.any()):
        return first(rows, state, draw)
    if bool(late.all()):
        return second(rows, state, draw)
    here, there = (~late).nonzero().squeeze(1), late.nonzero().squeeze(1)
    one = first(rows.take(here), take(state, here), draw.take(here.cpu()))
    two = second(rows.take(there), take(state, there), draw.take(there.cpu()))
    return take(join(one, two), torch.cat([here, there]).argsort())


def prune(threat: Ball, rows: Rows, evaluate: Evaluate, kept: Kept) -> Kept:
    """Make one round on the rows that have something to prune: two queries, the second of many.

    With one gradient at the point that is kept, features are left out in the order of how little
    they do, exchanged for better ones, or pushed to the end of the box, where they do most. The
    sparsest success is kept, and of equal ones that of the largest objective, from which
    the next round may lose one more.
    """
    which = (kept.many.isfinite() & (kept.many > 1)).nonzero().squeeze(1)
    if len(which) == 0:
        return kept
    some, z, tries = rows.take(which), kept.z[which], kept.tries[which]
    seen = evaluate(z, some, need="grad")
    assert seen.grad is not None
    points = _variants(z.flatten(1), seen.grad.flatten(1), reach(threat, some), tries)
    many = len(points) // len(z)
    tried = evaluate(points.view(-1, *rows.shape), some.repeat(many), need="scores")
    count = (points != 0).sum(1).view(many, -1)
    success = tried.success | (tried.value > 0)
    rank = _rank(tried.value.view(many, -1), count)
    rank = rank.masked_fill(~success.view(many, -1), float("-inf"))
    best, at = rank.max(0)
    old = (z != 0).flatten(1).sum(1)
    better = best > _rank(seen.value, old) + 1e-6
    fewer = better & (count.gather(0, at[None])[0] < old)
    pick = points.view(many, *z.shape)[at, torch.arange(len(z), device=z.device)]
    new = Kept(
        torch.where(per_row(better, z), pick, z),
        torch.where(fewer, count.gather(0, at[None])[0], old).to(kept.many.dtype),
        torch.where(fewer, 0, tries + 1),
    )
    return Kept(*(a.index_copy(0, which, b) for a, b in zip(kept, new, strict=True)))


def _rank(value: Tensor, count: Tensor) -> Tensor:
    """Return a number that is larger for fewer features, then for larger values."""
    value = value.double()
    return value / (1 + value.abs()) - 2.0 * count


def _variants(change: Tensor, grad: Tensor, room: tuple[Tensor, Tensor], tries: Tensor) -> Tensor:
    """Return many times (B, D) changes, one block after the other."""
    far = torch.where(grad > 0, room[1], room[0])
    gain = grad * far
    used = change != 0
    full = torch.where(used, torch.where(gain > 0, far, change), 0.0)
    none = float("-inf")
    # Places of the used features, the least useful first, as they are and at the box's end; of
    # the others and of all, the most useful first.
    weak = places(torch.where(used, -grad * change, none))
    weak_full = places(torch.where(used, -grad * full, none))
    fresh = places(torch.where(used, none, gain))
    top = places(gain)
    count = used.sum(1, keepdim=True)
    # Every vain round looks at other features.
    turn = 2 * tries[:, None]

    def without(d: Tensor, lost: Tensor) -> Tensor:
        return torch.where(lost, 0.0, d)

    made = [
        full,
        without(change, weak < 1),
        without(change, weak < 2),
        without(full, weak_full < 1),
        without(full, weak_full < (count // 8).clamp_min(2)),
        without(change, weak == turn + 1),
        without(change, weak == turn + 2),
        without(full, weak_full == turn // 2 + 1),
        torch.where(fresh < 1, far, without(full, weak_full < 1)),
        torch.where(fresh < 1, far, without(full, weak_full < 2)),
        torch.where(fresh < 1, far, without(change, weak < 2)),
        torch.where(top < count - 1, far, 0.0),
    ]
    return torch.cat(made)
