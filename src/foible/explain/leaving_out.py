"""Explanations by one removal at a time: a sliding window, each segment, and erasure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.problem import Objective
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.base import Explanation
from foible.explain.removal import (
    Baseline,
    EveryFeature,
    Segments,
    as_segments,
    check_baseline,
    filling,
    plain,
    point_values,
    some_of,
)
from foible.parts.objectives import LogProbability


@dataclass(frozen=True)
class Occlusion(Explanation):
    """What the field loses when a window is hidden (Zeiler and Fergus 2014).

    window, stride: height and width, or one number for both; of a table the last counts. Windows
    begin at multiples of the stride until the input is covered, the last may stick out; a feature
    carries the mean over the windows that hide it (captum's definition). All colours are hidden
    together. baseline: what a hidden feature shows.
    """

    window: int | tuple[int, int] = 4
    stride: int | tuple[int, int] = 2
    baseline: Baseline = 0.0
    access = Access.SCORES
    differentiable = False
    verb = "delete"

    def __post_init__(self) -> None:
        check_baseline(self.baseline)
        for size, step in zip(_pair(self.window), _pair(self.stride), strict=True):
            if not 1 <= step <= size:
                raise InputError(
                    f"window={self.window}, stride={self.stride}: a stride is at least 1, and at "
                    "most the window, or some features are never hidden"
                )

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """One forward for the input, one a window."""
        x, fill = rows.x.detach(), filling(self.baseline, rows)
        flat = len(rows.shape) == 1
        image = (1, *rows.shape) if flat else rows.shape[-2:]
        window, stride = _pair(self.window), _pair(self.stride)
        if flat:
            window, stride = (1, window[1]), (1, stride[1])
        if any(w > n for w, n in zip(window, image, strict=True)):
            raise InputError(f"window={self.window} is larger than the input {rows.shape}")
        sides = list(zip(image, window, stride, strict=True))
        down, right = (1 + -(-(n - w) // s) for n, w, s in sides)

        def points(row: Tensor, which: Tensor) -> Tensor:
            # Number 0 is the whole input: its window lies above the first line.
            top = torch.div(which - 1, right, rounding_mode="floor") * stride[0]
            top = torch.where(which == 0, -window[0], top)
            left = (which - 1) % right * stride[1]
            hidden = _inside(top, window[0], image[0], x)[:, :, None]
            hidden = hidden & _inside(left, window[1], image[1], x)[:, None]
            hidden = hidden.flatten(1) if flat else hidden
            shape = [len(row), *[1] * (len(rows.shape) - len(image)), *hidden.shape[1:]]
            return torch.where(hidden.view(shape), some_of(fill, row, x).to(x), x[row])

        values = point_values(field, rows, 1 + down * right, points)
        lost = (values[:, :1] - values[:, 1:]).view(-1, 1, down, right)
        mean = _covered(lost, window, stride, image) / _covered(
            torch.ones_like(lost[:1]), window, stride, image
        )
        mean = mean.view(len(x), *[1] * max(0, x.dim() - 3), *image)
        return mean.view(x.shape) if flat else mean.expand(x.shape).clone()


def _pair(given: int | tuple[int, int]) -> tuple[int, int]:
    return (given, given) if isinstance(given, int) else given


def _inside(start: Tensor, size: int, length: int, like: Tensor) -> Tensor:
    """Return which of `length` places lie in [start, start + size): (m, length)."""
    at = torch.arange(length, device=like.device) - start[:, None]
    return (at >= 0) & (at < size)


def _covered(
    values: Tensor, window: tuple[int, int], stride: tuple[int, int], image: tuple[int, ...]
) -> Tensor:
    """Return the sum at each place of the values (B, 1, down, right) of windows that cover it."""
    ones = torch.ones(1, 1, *window, dtype=values.dtype, device=values.device)
    return F.conv_transpose2d(values, ones, stride=stride)[..., : image[0], : image[1]]


@dataclass(frozen=True)
class LeaveOneOut(Explanation):
    """What the field loses when one segment is replaced by the baseline (Li et al. 2016).

    segments: a number for the side of square cells of an image (a table's features are one each),
    or any `Segments`. baseline: what the segment shows instead. Every feature carries the value
    of its segment.
    """

    segments: Segments | int = 4
    baseline: Baseline = 0.0
    access = Access.SCORES
    differentiable = False
    verb = "delete"

    def __post_init__(self) -> None:
        as_segments(self.segments)
        check_baseline(self.baseline)

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """One forward for the input, one a segment (of the row that has most)."""
        part = as_segments(self.segments).of(rows)
        fill, x = filling(self.baseline, rows, part), rows.x.detach()
        alike = len(part.label) == 1

        def points(row: Tensor, which: Tensor) -> Tensor:
            label = part.label if alike else part.label[row]
            # No feature has the label that the number 0, the whole input, asks for.
            gone = label == (which - 1).view(-1, *[1] * len(rows.shape))
            return torch.where(gone, some_of(fill, row, x).to(x), x[row])

        values = point_values(field, rows, 1 + part.count, points)
        worth = self._worth(values[:, :1], values[:, 1:])
        return part.spread(worth, rows.shape).clone()

    def _worth(self, whole: Tensor, without: Tensor) -> Tensor:
        return whole - without


@dataclass(frozen=True)
class Erasure(LeaveOneOut):
    """The relative loss of log-likelihood when one segment is erased (Li et al. 2016).

    I(d) = (S - S without d) / |S|, S the log-probability of the target; as a direction, the
    attack's objective. The paper divides by S, which is negative, and so has the other sign: here
    a positive value speaks for the target, as in every map. Near certainty S is near 0 and the
    relative loss is large; the order of a row's segments is that of `LeaveOneOut` on S.
    """

    segments: Segments | int = dataclasses.field(default_factory=EveryFeature)

    def explained(self) -> Objective:
        """Return the log-probability."""
        return LogProbability()

    def _worth(self, whole: Tensor, without: Tensor) -> Tensor:
        return (whole - without) / whole.abs().clamp_min(torch.finfo(whole.dtype).tiny ** 0.5)


def occlusion(
    window: int | tuple[int, int] = 4,
    stride: int | tuple[int, int] = 2,
    baseline: Baseline = 0.0,
) -> Occlusion:
    """Return occlusion by a sliding window (Zeiler and Fergus 2014); scores only.

    window, stride: in features, a number or (height, width). baseline: a number, a tensor of one
    input, "mean" or "blur".

    >>> import torch
    >>> net, x = torch.nn.Linear(3, 2).double(), torch.rand(2, 3).double()
    >>> torch.allclose(occlusion(1, 1)(net, x, 1), net.weight[1] * x)
    True
    """
    return Occlusion(plain(window), plain(stride), plain(baseline))


def leave_one_out(segments: Segments | int = 4, baseline: Baseline = 0.0) -> LeaveOneOut:
    """Return the loss of each segment, one left out at a time (Li et al. 2016); scores only.

    segments: a cell's side, or `Superpixels()`, `EveryFeature()`, `LabelMap(...)` of
    `foible.explain.removal`. baseline: a number, a tensor of one input, "mean", "segment" or
    "blur". `foible.explain.erasure` is the same on the relative log-likelihood.

    >>> import torch
    >>> net, x = torch.nn.Linear(3, 2).double(), torch.rand(2, 3).double()
    >>> torch.allclose(leave_one_out()(net, x, 1), net.weight[1] * x)
    True
    """
    return LeaveOneOut(segments, plain(baseline))


def erasure(segments: Segments | int | None = None, baseline: Baseline = 0.0) -> Erasure:
    """Return representation erasure of input features (B13, Li et al. 2016); scores only.

    The relative loss of the target's log-probability when a feature is erased. segments: None for
    every feature by itself, else as of `leave_one_out`. The smallest set of features whose erasure
    changes the label is an attack: `foible.attacks.minimal_erasure`.

    >>> import torch
    >>> net, x = torch.nn.Linear(3, 2).double(), torch.rand(2, 3).double()
    >>> x[:, 1] = 0  # erasing what already shows the baseline changes nothing
    >>> bool((erasure()(net, x, 1)[:, 1] == 0).all())
    True
    """
    return Erasure(EveryFeature() if segments is None else segments, plain(baseline))
