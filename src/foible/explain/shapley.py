"""Shapley values by removal: all coalitions of a few segments, or a weighted regression on some."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.removal import (
    Baseline,
    Partition,
    Segments,
    as_segments,
    check_baseline,
    filling,
    masked_values,
    plain,
    some_of,
)
from foible.explain.surrogate import Local, LocalFit, few, r_squared, together

_MOST = 16  # segments of which all coalitions are still a table that can be held


class Coalitions(NamedTuple):
    """Halves of pairs: half (R, P, M) bool, each with its complement; weight (P,), of sum 1.

    R = 1 where every row has the same ones, which is where none was drawn.
    """

    half: Tensor
    weight: Tensor


def coalitions(count: int, samples: int, draw: Draw) -> Coalitions:
    """Return pairs of coalitions of `count` segments under the Shapley kernel.

    Sizes are taken whole, from the outside in, while the kernel would draw each of their
    coalitions at least once (Lundberg's implementation); what is left of the samples is drawn
    from the other sizes. With samples >= 2 ** count nothing is drawn. Two samples are set aside
    for the whole and the empty coalition.
    """
    left = max(0, samples - 2) // 2
    sizes = range(1, count // 2 + 1)
    # The kernel's mass on a size and on its complement: (M - 1) / (s (M - s)), up to a factor.
    mass = {s: (1.0 if 2 * s == count else 2.0) / (s * (count - s)) for s in sizes}
    pairs = {s: math.comb(count, s) // (2 if 2 * s == count else 1) for s in sizes}
    rest, whole, weights = sum(mass.values()), [], []
    scale = max(rest, 1e-300)
    for s in sizes:
        if left * mass[s] < pairs[s] * rest * (1 - 1e-9):
            break
        whole.append(_all_of(count, s))
        weights.append(torch.full((pairs[s],), mass[s] / pairs[s] / scale, dtype=torch.float64))
        left, rest = left - pairs[s], rest - mass[s]
    begun = len(whole)
    empty = torch.zeros(0, count, dtype=torch.bool)
    half = torch.cat([empty, *whole])[None].to(draw.ids.device)
    if begun < len(sizes) and left > 0:
        open_sizes = list(sizes)[begun:]
        drawn = _drawn(count, open_sizes, [mass[s] for s in open_sizes], left, draw)
        half = torch.cat([half.expand(len(drawn), -1, -1), drawn], 1)
        weights.append(torch.full((left,), rest / left / scale, dtype=torch.float64))
    none = torch.zeros(0, dtype=torch.float64)
    return Coalitions(half, torch.cat([none, *weights]).to(half.device))


def _all_of(count: int, size: int) -> Tensor:
    """Return all coalitions (P, M) of a size; of half the segments only those with the first."""
    if 2 * size == count:
        chosen = [(0, *rest) for rest in combinations(range(1, count), size - 1)]
    else:
        chosen = list(combinations(range(count), size))
    where = torch.tensor(chosen)
    return torch.zeros(len(where), count, dtype=torch.bool).scatter_(1, where, True)


def _drawn(count: int, sizes: list[int], mass: list[float], number: int, draw: Draw) -> Tensor:
    """Draw coalitions (B, number, M): a size by its mass, then a random set of that size."""
    u = draw.uniform((number, count + 1), torch.float64)
    edges = torch.tensor(mass, dtype=torch.float64, device=u.device).cumsum(0)
    place = torch.searchsorted(edges / edges[-1], u[..., -1].contiguous(), right=True)
    size = torch.tensor(sizes, device=u.device)[place.clamp_max(len(sizes) - 1)]
    rank = u[..., :-1].argsort(-1).argsort(-1)
    return rank < size[..., None]


class Shapley(Local):
    """Values of segments that sum to F(x) - F(baseline), and a map that sums to the same."""

    segments: Segments | int
    baseline: Baseline
    additive = True
    verb = "delete"

    @abstractmethod
    def _some(
        self, field: Field, rows: Rows, draw: Draw, part: Partition, fill: Tensor
    ) -> LocalFit:
        """Return the fit of rows that have as many segments as the partition."""

    def local(self, field: Field, rows: Rows, draw: Draw) -> LocalFit:
        """Return the fit of every row."""
        part = as_segments(self.segments).of(rows)
        fill = filling(self.baseline, rows, part)

        def some(which: Tensor, cut: Partition) -> LocalFit:
            base = some_of(fill, which, rows.x)
            return self._some(field, rows.take(which), draw.take(which), cut, base)

        return by_count(part, rows, some)

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """A segment's value is spread evenly over its features."""
        return shared_out(self.local(field, rows, draw), rows)


@dataclass(frozen=True)
class KernelShap(Shapley):
    """Shapley values by a weighted regression (Lundberg and Lee 2017) on pairs of coalitions.

    samples: forwards at most, the whole and the empty coalition included; where 2 ** segments
    fits, all coalitions are taken and the values are exact. segments, baseline: as of `Lime`; the
    one baseline stands for the paper's mean over a background set.

    The weights of a fit sum to F(x) - F(baseline), its intercept is F(baseline). The constraint is
    solved exactly, where the authors' code gives it a large weight. Coalitions come in pairs with
    their complement (Covert and Lee 2021), which halves the regression. The map spreads a
    segment's value evenly over its features, so that it sums to the same difference.
    """

    samples: int = 1000
    segments: Segments | int = 4
    baseline: Baseline = 0.0

    def __post_init__(self) -> None:
        if self.samples < 4:
            raise InputError(f"samples={self.samples}: at least 4, a pair of coalitions and ends")
        as_segments(self.segments)
        check_baseline(self.baseline)

    def _some(
        self, field: Field, rows: Rows, draw: Draw, part: Partition, fill: Tensor
    ) -> LocalFit:
        """Return the fit of rows that have as many segments as the partition."""
        fits = []
        for group in few(field, rows, self.samples, part.count):
            some, own = rows.take(group), part.take(group)
            half, weight = coalitions(part.count, self.samples, draw.take(group))
            ends = torch.tensor([True, False], device=half.device)[None, :, None]
            keep = torch.cat([half, ~half, ends.expand(len(half), 2, part.count)], 1)
            base = some_of(fill, group, rows.x)
            values = masked_values(field, some, keep, own, base).double()
            fits.append(LocalFit(*constrained(half.double(), weight, values), own.label))
        return together(fits)


def constrained(half: Tensor, weight: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve the Shapley regression on pairs under its sum constraint, all rows at once.

    half: (R, P, M) float64, R = 1 or B; weight: (P,); values: (B, 2 P + 2), of the halves, their
    complements, the whole and the empty coalition. Returns (B, M), the empty one's value (B,), R^2.

    With c = z - |z| / M, whose entries sum to 0, the constrained model is a straight part that is
    known, total |z| / M, plus c . g with g orthogonal to 1. A complement has -c: so a pair tells of
    g only by half the difference of what it leaves, and the regression has P rows instead of 2 P.
    """
    pairs, count = half.shape[1], half.shape[2]
    first, second = values[:, :pairs], values[:, pairs : 2 * pairs]
    whole, empty = values[:, -2:-1], values[:, -1:]
    total, size = whole - empty, half.sum(2)
    odd = (first - second - total * (2 * size / count - 1)) / 2
    around = half - size[:, :, None] / count
    weighted = (around * weight[:, None]).transpose(1, 2)
    # Its null space is at least the ones; larger where samples are fewer than segments: then the
    # smallest solution is taken, which leaves unknown segments their equal share.
    inverse = torch.linalg.pinv(weighted @ around, rtol=1e-10, hermitian=True)
    found = (inverse @ (weighted @ odd[:, :, None])).squeeze(2) + total / count
    straight = (half @ found[:, :, None]).squeeze(2) + empty
    other = 2 * empty + total - straight  # the model at the complements
    seen, fitted = torch.cat([first, second], 1), torch.cat([straight, other], 1)
    share = torch.cat([weight, weight])[None] / (2 * weight.sum()).clamp_min(1e-300)
    return found, empty.squeeze(1), r_squared(seen - fitted, seen, share)


@dataclass(frozen=True)
class ExactShapley(Shapley):
    """Shapley values from all 2 ** segments coalitions (Shapley 1953): for at most 16 segments.

    segments, baseline: as of `KernelShap`; the same weights, intercept and map, without a
    regression.
    """

    segments: Segments | int = 7
    baseline: Baseline = 0.0

    def __post_init__(self) -> None:
        as_segments(self.segments)
        check_baseline(self.baseline)

    def _some(
        self, field: Field, rows: Rows, draw: Draw, part: Partition, fill: Tensor
    ) -> LocalFit:
        """Return the values; R^2 is of the additive model under equal weights."""
        return _table(field, rows, part, fill)


def _table(field: Field, rows: Rows, part: Partition, fill: Tensor) -> LocalFit:
    """Return the values from the table of all coalitions."""
    count = part.count
    if count > _MOST:
        raise InputError(
            f"{count} segments have 2 ** {count} coalitions: at most {_MOST} here, so take larger "
            "segments, or kernel_shap, which draws"
        )
    places = torch.arange(2**count, device=rows.x.device)[:, None]
    keep = (places >> torch.arange(count, device=rows.x.device)) % 2 == 1
    size, shown = keep.sum(1), keep.double()
    # w(s) = s! (M - s - 1)! / M!, of a set of s segments that another one joins.
    joins = [1 / (count * math.comb(count - 1, s)) for s in range(count)]
    weight = torch.tensor([0.0, *joins, 0.0], dtype=torch.float64, device=rows.x.device)
    gain = shown * weight[size][:, None] - (1 - shown) * weight[size + 1][:, None]
    fits = []
    for group in few(field, rows, len(keep), 1):
        some, own = rows.take(group), part.take(group)
        base = some_of(fill, group, rows.x)
        values = masked_values(field, some, keep[None], own, base).double()
        found, empty = values @ gain, values[:, 0]
        left = values - empty[:, None] - found @ shown.T
        share = torch.full_like(values[:1], 1 / len(keep))
        r2 = r_squared(left, values, share)
        fits.append(LocalFit(found, empty, r2, own.label))
    return together(fits)


def by_count(
    part: Partition, rows: Rows, work: Callable[[Tensor, Partition], LocalFit]
) -> LocalFit:
    """Fit rows that have equally many segments together, and put them back in order.

    work(positions, partition) gives the fit of some rows; a partition that all rows share is one
    group.
    """
    everyone = torch.arange(len(rows), device=rows.x.device)
    if len(part.label) == 1:
        return work(everyone, part)
    counts = part.present.sum(1)
    groups = [everyone[counts == count] for count in counts.unique()]
    fits = [
        work(group, Partition(part.label[group], part.present[group, : int(counts[group[0]])]))
        for group in groups
    ]
    joined, back = together(fits), torch.cat(groups).argsort()
    return LocalFit(joined.weights[back], joined.intercept[back], joined.r2[back], part.label)


def shared_out(fit: LocalFit, rows: Rows) -> Tensor:
    """Return the map (B, *shape) that gives each feature its part of its segment's value."""
    present = torch.ones_like(fit.weights[:1], dtype=torch.bool).expand(len(fit.label), -1)
    part = Partition(fit.label, present)
    return part.spread(fit.weights / part.sizes(rows.shape), rows.shape).to(rows.x.dtype)


def kernel_shap(
    samples: int = 1000, segments: Segments | int = 4, baseline: Baseline = 0.0
) -> KernelShap:
    """Return KernelSHAP (B11, Lundberg and Lee 2017): scores only, the sum always comes out.

    segments: a cell's side, or `Superpixels()`, `EveryFeature()`, `LabelMap(...)` of
    `foible.explain.removal`. baseline: a number, a tensor of one input, "mean", "segment" or
    "blur". With 2 ** segments <= samples the values are exact.

    >>> import torch
    >>> net, x = torch.nn.Linear(4, 2).double(), torch.rand(3, 4).double()
    >>> torch.allclose(kernel_shap(16)(net, x, 1), net.weight[1] * x)
    True
    """
    return KernelShap(samples, segments, plain(baseline))


def exact_shapley(segments: Segments | int = 7, baseline: Baseline = 0.0) -> ExactShapley:
    """Return Shapley values by enumeration (B11, Shapley 1953), for at most 16 segments.

    The default cuts a 28 x 28 image into 16 cells: 65,536 forwards a sample.

    >>> import torch
    >>> net, x = torch.nn.Linear(4, 2).double(), torch.rand(3, 4).double()
    >>> torch.allclose(exact_shapley()(net, x, 1), net.weight[1] * x)
    True
    """
    return ExactShapley(segments, plain(baseline))
