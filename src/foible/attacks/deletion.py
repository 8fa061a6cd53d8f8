"""Attacks that delete features in the order of a map."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from foible.attacks.base import Attack
from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.explainer import Explainer, Field
from foible.core.oracle import Oracle
from foible.core.problem import Closest
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.explain import IntegratedGradients
from foible.explain.removal import (
    Baseline,
    EveryFeature,
    Segments,
    as_segments,
    check_baseline,
    filling,
    plain,
)
from foible.parts.objectives import Logit, Margin
from foible.parts.searches import DeleteInOrder, EraseGreedily
from foible.parts.threats import Deletion


@dataclass(frozen=True)
class MapOfLabel:
    """Put an explainer's map of the label, and the baseline, into the rows."""

    explainer: Explainer
    baseline: float | str

    @property
    def access(self) -> Access:
        """What the explainer asks of the model."""
        return self.explainer.access

    def __call__(self, oracle: Oracle, rows: Rows, seed: int) -> Rows:
        """Return the rows with extra["map"] and extra["baseline"]."""
        if self.baseline == "mean":
            base = rows.x.mean(0, keepdim=True).expand_as(rows.x)
        else:
            base = torch.full_like(rows.x, float(self.baseline))
        width = max(1, oracle.chunk(rows.x))
        maps: list[Tensor] = []
        for part in torch.arange(len(rows), device=rows.x.device).split(width):
            some = replace(rows.take(part), target=None)
            field = Field(oracle, Logit(), width)
            maps.append(self.explainer.attribute(field, some, Rng(seed).split(5).at(some.id)))
        found = {"map": torch.cat(maps).detach(), "baseline": base}
        return replace(rows, extra={**rows.extra, **found})


def ig_deletion(
    explainer: Explainer | None = None, baseline: float | str = 0.0, most: int | None = None
) -> Attack:
    """Return the deletion attack on an explanation (A6, survey Eq. 12).

    Replaces features by the baseline, the largest of the map first, until the label changes;
    the distance of a result is the smallest number found. explainer: integrated gradients at
    50 steps unless another is given (`foible.explain.random_map()` is the control).
    baseline: a number, or "mean" for the batch's mean; where the baseline equals the input
    nothing can be deleted. most: how many features at most; None tries all that speak for the
    label.

    One forward a deleted feature; needs GRADIENTS only where the explainer does.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> r = foible.attacks.ig_deletion()(foible.zoo.load("standard"), x[:8], y[:8])
    >>> bool((r.distance[r.success] <= 784).all())
    True
    """
    if isinstance(baseline, str) and baseline != "mean":
        raise InputError(f'baseline={baseline!r}: give a number or "mean"')
    chosen = IntegratedGradients() if explainer is None else explainer
    threat = Deletion()
    search = DeleteInOrder() if most is None else DeleteInOrder(most)
    return Attack(
        "ig_deletion", threat, search, Margin(), stop="success", prefer=Closest(threat),
        prepare=MapOfLabel(chosen, baseline),
    )  # fmt: skip


@dataclass(frozen=True)
class Erasable:
    """A `prepare`: what may be erased, and what it shows then."""

    segments: Segments | int
    baseline: Baseline
    access: ClassVar[Access] = Access.LABELS

    def __call__(self, oracle: Oracle, rows: Rows, seed: int) -> Rows:
        """Return the rows with extra["segment"], "useful" and "baseline"."""
        part = as_segments(self.segments).of(rows)
        base = filling(self.baseline, rows, part).to(rows.x).expand_as(rows.x)
        label = part.label.expand(len(rows), *rows.shape)
        useful = torch.zeros(len(rows), part.count, dtype=torch.int64, device=rows.x.device)
        useful.scatter_add_(1, label.flatten(1), (rows.x != base).flatten(1).long())
        found = {"segment": label, "useful": useful > 0, "baseline": base}
        return replace(rows, extra={**rows.extra, **found})


def minimal_erasure(segments: Segments | int | None = None, baseline: Baseline = 0.0) -> Attack:
    """Return the search for a smallest set of features whose erasure changes the label.

    After Li et al. 2016 (B13), who learn such sets by reinforcement; here a greedy search erases
    the segment that helps most, one after the other, and then puts back what was not needed. The
    distance of a result counts the changed features. segments: None for every feature by itself,
    else a cell's side, or `Segments` of `foible.explain.removal`. baseline: a number, a tensor of
    one input, "mean", "segment" or "blur"; it must lie within the model's bounds.

    Needs SCORES only: at most segments * (segments + 1) / 2 forwards to erase, and as many to put
    back; few where few suffice.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> found = minimal_erasure(segments=7)(foible.zoo.load("standard"), x[:8], y[:8])
    >>> bool(found.success.all())
    True
    """
    check_baseline(baseline)
    chosen = EveryFeature() if segments is None else as_segments(segments)
    threat = Deletion()
    return Attack(
        "minimal_erasure", threat, EraseGreedily(), Margin(), prefer=Closest(threat),
        prepare=Erasable(chosen, plain(baseline)),
    )  # fmt: skip
