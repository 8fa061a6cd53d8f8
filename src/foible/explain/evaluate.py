"""What an explanation is worth: agreement of maps, stability, completeness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.base import Explanation, each
from foible.explain.removal import as_segments, filling
from foible.parts.statistics import spearman


def topk_intersection(a: Tensor, b: Tensor, k: int = 100) -> Tensor:
    """Return the share (B,) of the k features of largest |a| that are among those of |b|.

    >>> a = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    >>> topk_intersection(a, -a, 2).item(), topk_intersection(a, a.flip(1), 2).item()
    (1.0, 0.0)
    """
    flat_a, flat_b = a.flatten(1).abs(), b.flatten(1).abs()
    if not 1 <= k <= flat_a.shape[1]:
        raise InputError(f"k={k} of {flat_a.shape[1]} features: choose 1 to {flat_a.shape[1]}")
    held = torch.zeros(flat_a.shape, dtype=torch.bool, device=a.device)
    held.scatter_(1, flat_a.topk(k, 1).indices, True)
    return held.gather(1, flat_b.topk(k, 1).indices).double().mean(1)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's correlation (B,) of |a| and |b|; NaN where a map is constant."""
    flat = [m.detach().flatten(1).abs().double().cpu().numpy() for m in (a, b)]
    return torch.from_numpy(spearman(*flat))


def stability(
    explainer: Explanation, model: Any, pair: tuple[Tensor, Tensor], target: Tensor, k: int = 100
) -> dict[str, Tensor]:
    """Compare the maps of x and of x_adv for the same target: both figures (B,) in [0, 1].

    pair: (x, x_adv). The same draws explain both, so a stochastic explainer's own noise does
    not count as instability. Beside it belongs the same figure under noise of equal size.
    """
    before, after = (explainer(model, x, target) for x in pair)
    return agreement(before, after, k)


def agreement(before: Tensor, after: Tensor, k: int = 100) -> dict[str, Tensor]:
    """Return "topk" and "rank", both (B,): how far two maps (B, *shape) name the same features.

    >>> a = torch.tensor([[3.0, 2.0, 1.0]])
    >>> {name: value.item() for name, value in agreement(a, a, 2).items()}
    {'topk': 1.0, 'rank': 1.0}
    """
    return {"topk": topk_intersection(before, after, k), "rank": rank_correlation(before, after)}


def completeness(
    explainer: Explanation, model: Any, x: Tensor, target: Tensor | int, maps: Tensor
) -> Tensor:
    """Return |sum of the map - (F(x) - F(baseline))| / |F(x) - F(baseline)|, (B,) float64.

    F is the target's logit, and the baseline is the explainer's own. Raises InputError for an
    explainer that is not additive, whose maps need not sum to anything.

    >>> import foible
    >>> net, x = torch.nn.Linear(4, 2), torch.rand(3, 4)
    >>> shapley = foible.explain.exact_shapley(4)
    >>> bool(completeness(shapley, net, x, 1, shapley(net, x, 1)).max() < 1e-3)
    True
    """
    if not explainer.additive:
        raise InputError(
            f"{type(explainer).__name__} is not additive: its maps need not sum to F(x) - F(b)"
        )
    # Every additive explainer has a baseline, and some fill it in segment by segment.
    baseline: Any = explainer.baseline  # type: ignore[attr-defined]
    segments: Any = getattr(explainer, "segments", None)

    def work(field: Field, rows: Rows, _: Draw) -> Tensor:
        part = None if segments is None else as_segments(segments).of(rows)
        base = filling(baseline, rows, part).to(rows.x).expand_as(rows.x)
        return field.values(rows.x, rows).double() - field.values(base, rows).double()

    with torch.no_grad():
        parts = each(explainer, model, x, target, work)
    gap = torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.float64)
    residual = (maps.detach().flatten(1).double().sum(1) - gap).abs()
    return residual / gap.abs().clamp_min(1e-12)
