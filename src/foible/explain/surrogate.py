"""Explanations by a local linear surrogate: scores only, no gradient."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.base import Explanation, each
from foible.explain.removal import (
    Baseline,
    Partition,
    Segments,
    as_segments,
    check_baseline,
    filling,
    masked_values,
    plain,
    point_values,
    some_of,
)


@dataclass(frozen=True)
class LocalFit:
    """A linear model of the field around each row, in float64.

    weights: (B, S) one a segment, 0 for segments that a row does not have. intercept: (B,).
    r2: (B,) the share of the weighted variance of the field, over the samples of the fit, that the
    linear model explains: look here before you trust the weights. label: (1 or B, *shape), the
    segment of every feature.
    """

    weights: Tensor
    intercept: Tensor
    r2: Tensor
    label: Tensor

    def map(self, shape: tuple[int, ...]) -> Tensor:
        """Return the map (B, *shape) in which each feature carries its segment's weight."""
        return Partition(self.label, torch.ones_like(self.weights[:1])).spread(self.weights, shape)


def together(fits: list[LocalFit]) -> LocalFit:
    """Join fits of consecutive rows, which may have different numbers of segments."""
    most = max(fit.weights.shape[1] for fit in fits)
    weights = torch.cat([F.pad(fit.weights, (0, most - fit.weights.shape[1])) for fit in fits])
    label = fits[0].label
    # A group of one row has one label too: only equal ones are shared.
    alike = len(label) == 1 and all(torch.equal(fit.label, label) for fit in fits)
    if not alike:
        each = [fit.label.expand(len(fit.weights), *fit.label.shape[1:]) for fit in fits]
        label = torch.cat(each)
    return LocalFit(
        weights,
        torch.cat([fit.intercept for fit in fits]),
        torch.cat([fit.r2 for fit in fits]),
        label,
    )


class Local(Explanation):
    """An explainer that fits a linear model to values of the field around each row."""

    access = Access.SCORES
    differentiable = False

    @abstractmethod
    def local(self, field: Field, rows: Rows, draw: Draw) -> LocalFit:
        """Return the fit of every row."""

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """`samples` forwards; every feature carries the weight of its segment."""
        return self.local(field, rows, draw).map(rows.shape).to(rows.x.dtype)

    def fit(
        self, model: Any, x: Tensor, target: Tensor | int | None = None, *, seed: int = 0
    ) -> LocalFit:
        """Return weights, intercept and R^2 behind the map of the same call."""
        fits = each(self, model, x, target, self.local, seed=seed)
        if not fits:
            raise InputError("x holds no sample: there is nothing to fit")
        return together(fits)


def ridge_fit(
    z: Tensor, values: Tensor, kernel: Tensor, ridge: float, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve weighted ridge regressions with an unpunished intercept, all rows at once.

    z: (B, n, S), values, kernel: (B, n), all float64. most: how many columns may have a weight,
    the largest of a first fit with the ridge 0.01, as LIME's authors select. Returns weights
    (B, S), intercept (B,), R^2 (B,).
    """
    share = kernel / kernel.sum(1, keepdim=True)
    middle = (share[:, None] @ z).squeeze(1)
    level = (share * values).sum(1, keepdim=True)
    around, v = z - middle[:, None], values - level
    weighted = (around * kernel[:, :, None]).transpose(1, 2)
    gram, right = weighted @ around, weighted @ v[:, :, None]
    size = gram.shape[1]
    chosen = torch.ones_like(middle)
    if most is not None and most < size:
        first = _solved(gram, right, 0.01)
        chosen = torch.zeros_like(middle).scatter_(1, first.abs().topk(most, 1).indices, 1.0)
    gram = gram * (chosen[:, :, None] * chosen[:, None])
    weights = _solved(gram, right * chosen[:, :, None], ridge)
    left = v - (around @ weights[:, :, None]).squeeze(2)
    intercept = level.squeeze(1) - (middle * weights).sum(1)
    return weights, intercept, r_squared(left, values, share)


def r_squared(left: Tensor, values: Tensor, share: Tensor) -> Tensor:
    """Return 1 - residual over total variance (B,); 1 where there is nothing but rounding.

    left: (B, n) what a fit leaves of values (B, n); share: (B or 1, n) weights of sum 1.
    """
    if values.shape[1] == 0:
        return torch.ones_like(values.sum(1))
    level = (share * values).sum(1, keepdim=True)
    total = (share * (values - level) ** 2).sum(1)
    rounding = (16 * torch.finfo(values.dtype).eps * values.abs().amax(1)) ** 2
    flat = total <= rounding
    r2 = 1 - (share * left**2).sum(1) / total.masked_fill(flat, 1.0)
    return r2.masked_fill(flat, 1.0)


def _solved(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    found: Tensor = torch.linalg.solve(gram + ridge * eye, right)
    return found.squeeze(2)


def check_settings(samples: int, width: float | None, ridge: float, most: int | None) -> None:
    """Refuse settings with which nothing can be fitted."""
    if samples < 2 or ridge <= 0 or (width is not None and width <= 0):
        raise InputError(
            f"samples={samples}, width={width}, ridge={ridge}: at least 2 samples, and width and "
            "ridge above 0 (the ridge keeps the equations solvable)"
        )
    if most is not None and most < 1:
        raise InputError(f"most={most}: keep at least 1 segment, or None for all")


def few(field: Field, rows: Rows, samples: int, columns: int) -> list[Tensor]:
    """Cut rows, by position, so that a design (rows, samples, columns) is no larger than a chunk
    of inputs; one row at least.
    """
    return list(field.groups(rows, -(-samples * columns // max(1, rows.x[0].numel()))))


@dataclass(frozen=True)
class Lime(Local):
    """A weighted ridge regression on random maskings of segments (Ribeiro et al. 2016, Eq. 13).

    samples: maskings, one forward each; the first hides nothing. segments: what is hidden
    together, a number for the side of square cells (a table's features are a segment each).
    baseline: what a hidden segment shows. width: of the kernel sqrt(exp(-d^2 / width^2)) on the
    cosine distance of the masking to the whole. ridge: the penalty. most: how many segments keep
    a weight, the largest of a first fit; None for all.

    Departures: segments are a grid unless `Superpixels()` are asked for, the field is a logit
    where the authors take a probability, and their selection by forward search (6 features or
    fewer) is left out.
    """

    samples: int = 300
    segments: Segments | int = 4
    baseline: Baseline = 0.0
    width: float = 0.25
    ridge: float = 1.0
    most: int | None = None
    verb = "delete"

    def __post_init__(self) -> None:
        check_settings(self.samples, self.width, self.ridge, self.most)
        as_segments(self.segments)
        check_baseline(self.baseline)

    def local(self, field: Field, rows: Rows, draw: Draw) -> LocalFit:
        """Return the fit of every row; `samples` forwards."""
        part = as_segments(self.segments).of(rows)
        fill, fits = filling(self.baseline, rows, part), []
        for group in few(field, rows, self.samples, part.count):
            some, cut = rows.take(group), part.take(group)
            shown = draw.take(group).uniform((self.samples, part.count), rows.x.dtype) < 0.5
            shown[:, 0] = True  # the input itself anchors the fit
            shown &= cut.present[:, None]
            own = some_of(fill, group, rows.x)
            values = masked_values(field, some, shown, cut, own).double()
            z = shown.double()
            cosine = (z.sum(2) / cut.present.sum(1)[:, None]).sqrt()
            kernel = torch.exp(-((1 - cosine) ** 2) / self.width**2).sqrt()
            fits.append(LocalFit(*ridge_fit(z, values, kernel, self.ridge, self.most), cut.label))
        return together(fits)


@dataclass(frozen=True)
class TabularLime(Local):
    """LIME around a row of a table: a weighted ridge regression on Gaussian neighbours.

    Neighbours are x + scale * z with z standard normal, the first is x itself; z is the design, so
    a weight is the change of the field for one standard deviation of a feature. scale: the
    deviations of the features, one number or one a feature (of the training set). width: of the
    kernel sqrt(exp(-|z|^2 / width^2)); None is 0.75 sqrt(features), the authors'. samples, ridge,
    most: as of `Lime`. Neighbours may leave the box, as in the paper.

    Departures: continuous features are not cut at quartiles, neighbours lie around the row and
    not around the training mean, and a selection ranks |weight| and not |weight * feature|.
    """

    samples: int = 1000
    scale: float | tuple[float, ...] = 1.0
    width: float | None = None
    ridge: float = 1.0
    most: int | None = None

    def __post_init__(self) -> None:
        check_settings(self.samples, self.width, self.ridge, self.most)
        scale = torch.tensor(self.scale)
        if not bool((scale > 0).all() & torch.isfinite(scale).all()):
            raise InputError("scale holds values that are not above 0: give deviations, above 0")

    def local(self, field: Field, rows: Rows, draw: Draw) -> LocalFit:
        """Return the fit of every row; `samples` forwards."""
        size = rows.x[0].numel()
        scale = torch.tensor(self.scale, dtype=rows.x.dtype, device=rows.x.device).flatten()
        if len(scale) not in (1, size):
            raise InputError(f"scale has {len(scale)} values and an input {size} features")
        width = 0.75 * size**0.5 if self.width is None else self.width
        label = torch.arange(size, device=rows.x.device).view(1, *rows.shape)
        fits = []
        for group in few(field, rows, self.samples, size):
            some = rows.take(group)
            z = draw.take(group).normal((self.samples, size), rows.x.dtype)
            z[:, 0] = 0
            values = self._values(field, some, scale * z).double()
            z = z.double()
            kernel = torch.exp(-(z**2).sum(2) / width**2).sqrt()
            fits.append(LocalFit(*ridge_fit(z, values, kernel, self.ridge, self.most), label))
        return together(fits)

    def _values(self, field: Field, rows: Rows, moves: Tensor) -> Tensor:
        """Return the field (B, n) at rows.x plus each of the moves (B, n, D)."""
        x = rows.x.detach()

        def points(row: Tensor, which: Tensor) -> Tensor:
            return x[row] + moves[row, which].view(-1, *rows.shape)

        return point_values(field, rows, self.samples, points)


def lime(
    samples: int = 300,
    segments: Segments | int = 4,
    baseline: Baseline = 0.0,
    most: int | None = None,
) -> Lime:
    """Return LIME (B5, Ribeiro et al. 2016) on maskings of segments; needs SCORES access only.

    segments: a cell's side, or `Superpixels()`, `EveryFeature()`, `LabelMap(...)` of
    `foible.explain.removal`. baseline: a number, a tensor of one input, "mean", "segment" (the
    authors') or "blur". most: how many segments keep a weight. `lime().fit(model, x, y)` gives
    weights, intercept and R^2.

    >>> import foible, torch
    >>> net = torch.nn.Linear(4, 2).double()
    >>> fit = lime(200).fit(net, torch.ones(1, 4).double(), 1)
    >>> bool(fit.r2 > 0.98), fit.weights.shape
    (True, torch.Size([1, 4]))
    """
    return Lime(samples, segments, plain(baseline), most=most)


def tabular_lime(
    samples: int = 1000, scale: float | tuple[float, ...] | Tensor = 1.0, most: int | None = None
) -> TabularLime:
    """Return LIME for tables (B5, Ribeiro et al. 2016): Gaussian neighbours, scores only.

    scale: the features' standard deviations. A weight is the change for one deviation.

    >>> import torch
    >>> net = torch.nn.Linear(3, 2).double()
    >>> weights = tabular_lime(500, 0.1).fit(net, torch.rand(2, 3).double(), 1).weights
    >>> torch.allclose(weights, 0.1 * net.weight[1], rtol=0.02, atol=1e-4)
    True
    """
    return TabularLime(samples, plain(scale), most=most)
