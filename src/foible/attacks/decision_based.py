"""Attacks that see labels only. A query is a forward of one sample; their number is capped.

`queries` is the most that a sample may cost, the clean look and the verification of the result
included. Without an eps all of them are spent on making the change smaller; with one, a sample
stops once it is found within it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from foible.attacks.base import Attack
from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.problem import Closest
from foible.core.rows import Rows
from foible.core.search import Search
from foible.core.threat import Threat
from foible.parts.searches.border import Flipped
from foible.parts.searches.boundary import BoundaryWalk
from foible.parts.searches.hop_skip_jump import HopSkipJump

MOST = 500  # candidates: finding the nearest of very many would cost more than the attack


@dataclass(frozen=True)
class Starts:
    """A `prepare`: the nearest other input of the call that may lie beyond a row's border.

    Fills `rows.extra["start"]` (B, *shape): with a target, the nearest sample that the model gives
    that label (one forward a sample); without, the nearest one of another class, which is only
    tried where random inputs fail. x itself where there is none. norm: that of the distance. Of a
    large call the first 500 candidates are looked at.
    """

    norm: str
    access: ClassVar[Access] = Access.LABELS

    def __call__(self, oracle: Oracle, rows: Rows, seed: int) -> Rows:
        """Return the rows with "start"."""
        start, flat, labels = rows.x.clone(), rows.x.flatten(1), rows.y
        if rows.target is not None:
            parts = torch.arange(len(rows), device=rows.x.device).split(oracle.chunk(rows.x))
            labels = torch.cat([oracle.labels(rows.x[p], rows.take(p)) for p in parts])
        aims = rows.y if rows.target is None else rows.target
        power = float("inf") if self.norm == "linf" else 2.0
        for aim in aims.unique().tolist():
            wanted = labels != aim if rows.target is None else labels == aim
            pool = wanted.nonzero().squeeze(1)[:MOST]
            for which in (aims == aim).nonzero().squeeze(1).split(MOST) if len(pool) else ():
                apart = torch.cdist(flat[which], flat[pool], power)
                start[which] = rows.x[pool[apart.argmin(1)]]
        return replace(rows, extra={**rows.extra, "start": start})


def _labels_only(name: str, threat: Threat, search: Search, queries: int) -> Attack:
    return Attack(
        name, threat, search, Flipped(), prefer=Closest(threat),
        prepare=Starts(getattr(threat, "norm", "")), cap=queries,
        stop="never" if getattr(threat, "eps", None) is None else "success",
    )  # fmt: skip


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name}={value}: it must be at least 1")


def boundary(threat: Threat, queries: int = 5000, tries: int = 100, plain: bool = False) -> Attack:
    """Return the boundary attack: a random walk along the border, ever closer to x (S6).

    Brendel et al. 2018. threat: `L2()` for the smallest change, or `L2(eps)`. queries: the most
    forwards a sample may cost. tries: random inputs to begin at, until one lies beyond the border.
    plain: white noise only, as in the paper.

    A proposal is a step across, at equal distance from x, then one towards x. Of each step's
    length every sample adapts its own: across, so that half of the proposals hold; towards x, so
    that a fifth do. Departures: both steps are judged together and the first alone once in ten,
    which saves almost half the queries; unless `plain`, each sample takes the kind of noise that
    wins it most: low frequencies, values that already changed, or all alike. A targeted attack
    begins at the nearest sample of the call that the model gives the target; where random inputs
    fail, an untargeted one begins at the nearest of another label. A sample without a start
    survives.

    Raises InputError for numbers out of range, KindError for a threat that is no ball in L2.

    >>> import foible
    >>> net, (x, y) = foible.zoo.load("standard"), foible.zoo.sample()
    >>> found = foible.attacks.boundary(foible.L2(), queries=60)(net, x[:4], y[:4])
    >>> bool(found.success.all()), int(found.forwards.max()) <= 60
    (True, True)
    """
    _positive(tries=tries)
    search = BoundaryWalk(max(1, queries), plain=plain, tries=tries)
    return _labels_only("boundary", threat, search, queries)


def hop_skip_jump(
    threat: Threat,
    queries: int = 5000,
    probes: int = 30,
    plain: bool = False,
    tries: int = 100,
) -> Attack:
    """Return HopSkipJump: the border's normal from labels, a step along it, a bisection (S6).

    Chen et al. 2020. threat: `L2()` or `Linf()` for the smallest change, or either with an eps.
    queries: the most forwards a sample may cost. probes: of the first estimate, B_0; the t-th
    takes B_0 sqrt(t). plain: white noise only; with probes=100 it is nearest to the paper. tries:
    random inputs to begin at, until one lies beyond the border.

    Departures, each measured on the bundled models. Unless `plain`, probes are low frequencies,
    values that already changed, or white noise: each sample takes the kind that last won it most,
    and needs about a third of the queries. Fewer probes at first. They are 0.036 of the change
    long, not 1 / D of it, below which float32 decides. Bisections end at 1e-3 of the distance,
    the last at 1e-6. Starts are as in `boundary`.

    Raises InputError for numbers out of range, KindError for a threat that is no ball in L2 or
    Linf.

    >>> import foible
    >>> net, (x, y) = foible.zoo.load("standard"), foible.zoo.sample()
    >>> found = foible.attacks.hop_skip_jump(foible.Linf(), queries=100)(net, x[:4], y[:4])
    >>> bool(found.success.all()), int(found.forwards.max()) <= 100
    (True, True)
    """
    _positive(tries=tries, probes=probes)
    search = HopSkipJump(max(1, queries), probes, plain=plain, tries=tries)
    return _labels_only("hop_skip_jump", threat, search, queries)
