"""Attacks that see labels only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from foible.attacks.base import Attack
from foible.core.access import Access
from foible.core.oracle import Oracle
from foible.core.problem import Closest
from foible.core.rows import Rows
from foible.core.search import Search
from foible.core.threat import Threat
from foible.parts.searches.border import Flipped
from foible.parts.searches.boundary import BoundaryWalk
from foible.parts.searches.hop_skip_jump import HopSkipJump


@dataclass(frozen=True)
class Starts:
    """A `prepare`: the nearest other input of the call that may lie beyond a row's border.

    Fills `rows.extra["start"]` (B, *shape): with a target, the nearest sample that the model gives
    that label (one forward a sample); without, the nearest one of another class. x itself where
    there is none.
    """

    norm: str
    access: ClassVar[Access] = Access.LABELS

    def __call__(self, oracle: Oracle, rows: Rows, seed: int) -> Rows:
        """Return the rows with "start"."""
        start, flat, labels = rows.x.clone(), rows.x.flatten(1), rows.y
        if rows.target is not None:
            width = max(1, oracle.chunk(rows.x))
            parts = torch.arange(len(rows), device=rows.x.device).split(width)
            labels = torch.cat([oracle.labels(rows.x[p], rows.take(p)) for p in parts])
        aims = rows.y if rows.target is None else rows.target
        for aim in aims.unique().tolist():
            wanted = labels != aim if rows.target is None else labels == aim
            pool, which = wanted.nonzero().squeeze(1), (aims == aim).nonzero().squeeze(1)
            if len(pool):
                apart = torch.cdist(
                    flat[which], flat[pool], 2.0 if self.norm == "l2" else torch.inf
                )
                start[which] = rows.x[pool[apart.argmin(1)]]
        return replace(rows, extra={**rows.extra, "start": start})


def _labels_only(name: str, threat: Threat, search: Search, queries: int) -> Attack:
    return Attack(
        name, threat, search, Flipped(), prefer=Closest(threat),
        prepare=Starts(getattr(threat, "norm", "")), cap=queries,
        stop="never" if getattr(threat, "eps", None) is None else "success",
    )  # fmt: skip


def hop_skip_jump(
    threat: Threat,
    queries: int = 5000,
    probes: int = 30,
    plain: bool = False,
    tries: int = 100,
) -> Attack:
    """Return HopSkipJump: a smaller and smaller change, from labels alone (Chen et al. 2020, S6).

    L2 or Linf. A bisection to the border, the border's direction from random probes, a step along
    it, and again. queries: the most forwards a sample may cost, the clean look and the
    verification included. probes: of the first direction; later ones take more. scales: lengths
    of the steps that are tried. tries: random points for a first misclassified one; another
    sample of the same call with the wanted label is tried before.

    Raises KindError for another norm. A sample without any start survives.
    """
    return _labels_only(
        "hop_skip_jump", threat, HopSkipJump(queries, probes, plain=plain, tries=tries), queries
    )


def boundary(
    threat: Threat, queries: int = 5000, plain: bool = False, tries: int = 100
) -> Attack:
    """Return the boundary attack: a random walk along the border in L2 (Brendel et al. 2018, S6).

    Labels only. Every proposal moves along the sphere around the clean input and then towards
    it; both lengths adapt to each sample's own luck. queries, tries: as for `hop_skip_jump`.
    """
    return _labels_only("boundary", threat, BoundaryWalk(queries, plain=plain, tries=tries), queries)
