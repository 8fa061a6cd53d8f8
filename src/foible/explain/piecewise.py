"""LEMNA: explanations by the one plane, of several around an input, that the input lies on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.mixture import Fit, fit_mixture
from foible.explain.nearby import Noise, check_noise, deviation, hidden_samples, moved_samples
from foible.explain.removal import (
    Baseline,
    EveryFeature,
    Segments,
    as_segments,
    check_baseline,
    filling,
    plain,
    some_of,
)
from foible.explain.surrogate import Local, LocalFit, r_squared, together

_HELD = 2**22  # values of samples that are fitted at once: what fits a cache decides the speed


@dataclass(frozen=True)
class Lemna(Local):
    """The weights of the regression, of a mixture of them, that owns x (Guo et al. 2018).

    samples: around x, one forward each. segments: what is hidden together, a number for the side
    of square cells, in the order in which the fused lasso holds neighbours together: cells row by
    row, a table's columns as they come. baseline: what a hidden segment shows. noise: move the
    segments instead of hiding them, by normal noise of this deviation, a share of the input's
    range (each row's own where the model's bounds are infinite); or one a feature, in its own
    unit, and then every feature is a segment. mixture: its components and penalties.
    """

    samples: int = 1000
    segments: Segments | int = 4
    baseline: Baseline = 0.0
    noise: Noise | None = None
    mixture: Fit = dataclasses.field(default_factory=Fit)

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InputError(f"samples={self.samples}: at least 2")
        as_segments(self.segments)
        check_baseline(self.baseline)
        if self.noise is not None:
            check_noise(self.noise)

    @property
    def verb(self) -> str:  # type: ignore[override]
        """Hidden features answer what is missed; moved ones which way to go."""
        return "delete" if self.noise is None else "push"

    def local(self, field: Field, rows: Rows, draw: Draw) -> LocalFit:
        """Return the plane of every row, a slope where features were moved; `samples` forwards."""
        each = isinstance(self.noise, tuple)
        part = (EveryFeature() if each else as_segments(self.segments)).of(rows)
        fill, fits = filling(self.baseline, rows, part), []
        positions = torch.arange(len(rows), device=rows.x.device)
        for group in positions.split(max(1, _HELD // (self.samples * part.count))):
            some, cut, own = rows.take(group), part.take(group), draw.take(group)
            unit = torch.ones(1, 1).to(rows.x)
            if self.noise is None:
                shows = some_of(fill, group, rows.x)
                x, y = hidden_samples(field, some, own, self.samples, cut, shows)
            else:
                unit = deviation(field, some, self.noise)
                x, y = moved_samples(field, some, own, self.samples, cut, unit)
            weight, offset, r2 = self._owning(x, y, own.split(2))
            there = cut.present.to(weight)
            fits.append(LocalFit(weight / unit.double() * there, offset, r2, cut.label))
        return together(fits)

    def _owning(self, x: Tensor, y: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight (B, S), offset and R^2 (B,) of the component that owns sample 0."""
        found = fit_mixture(x, y, self.mixture, draw)
        owned = torch.softmax(found.log_parts(x, y), 1)
        pick = owned[:, :, 0].argmax(1)[:, None]
        row = torch.arange(len(x), device=x.device)[:, None]
        weight, offset = found.weight[row, pick][:, 0], found.offset[row, pick][:, 0]
        share = owned[row, pick][:, 0]
        left = y - (x @ weight[:, :, None]).squeeze(2) - offset[:, None]
        return weight, offset, r_squared(left, y, share / share.sum(1, keepdim=True))


def lemna(
    samples: int = 1000,
    components: int = 3,
    fused: float = 0.1,
    limit: float | None = None,
    segments: Segments | int = 4,
    baseline: Baseline = 0.0,
    noise: Noise | Tensor | None = None,
) -> Lemna:
    """Return LEMNA (B6, Guo et al. 2018): a mixture of regressions by EM, with a fused lasso.

    Where the model bends near x, one plane through all samples fits none of its sides; the map
    is the weights of the component that x belongs to. Needs SCORES access only. samples: one
    forward each. components: K. fused: how strongly neighbouring weights are held equal, without
    a unit; 0 is the ordinary mixture. limit: instead of it the paper's S, the most that the sum of
    |b_j - b_(j+1)| may be, in the unit of the scores. segments, baseline: what is hidden
    together, and what it shows then; from one to half of the segments are hidden, as in the
    authors' code. noise: move features instead of hiding them: for tables, and for directions to
    push. `lemna().fit(model, x, y)` gives weights, intercept and R^2 of the plane.

    Departures: the paper gives one S for all data and its code fits no mixture at all; here the
    default is a penalty that scales with the noise, and the constraint is there to be asked for.

    >>> import foible
    >>> net, (x, y) = foible.zoo.load("standard"), foible.zoo.sample()
    >>> foible.explain.lemna(samples=60, segments=7)(net, x[:2], y[:2]).shape
    torch.Size([2, 1, 28, 28])
    """
    if components < 1 or fused < 0 or (limit is not None and limit < 0):
        raise InputError(
            f"components={components}, fused={fused}, limit={limit}: at least 1, and at least 0"
        )
    moved = None if noise is None else plain(noise)
    return Lemna(samples, segments, plain(baseline), moved, Fit(components, fused, limit))
