"""What is removed together, what a removed feature shows, and the field's values without it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.errors import InputError, KindError, MissingExtra
from foible.core.explainer import Field
from foible.core.rows import Rows

# A number; nested tuples of numbers that broadcast to one input; or a word of `filling`.
Baseline = float | str | tuple[Any, ...]
WORDS = ("mean", "segment", "blur")


@dataclass(frozen=True)
class Partition:
    """The segment of every feature of every row.

    label: (R, *shape) int64, R = 1 where all rows are cut alike, else B; a dimension of size 1
    (the colours of an image) means that its features go together. present: (R, S) bool, which of
    the S segments a row has: superpixels are more in one image than in the next.
    """

    label: Tensor
    present: Tensor

    @property
    def count(self) -> int:
        """The number of segments S of the row that has most."""
        return self.present.shape[1]

    def take(self, which: Tensor) -> Partition:
        """Select rows by position; nothing to do where all are cut alike."""
        if len(self.label) == 1:
            return self
        return Partition(self.label[which], self.present[which])

    def shown(self, keep: Tensor, row: Tensor) -> Tensor:
        """Return which features (m, *shape) are shown, from segments (m, S) kept of rows (m,):
        in the dtype of `keep`."""
        flat = self.label.flatten(1)
        if len(flat) == 1:
            found = keep.index_select(1, flat[0])
        else:
            found = keep.gather(1, flat[row])
        return found.view(len(keep), *self.label.shape[1:])

    def spread(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the map (B, *shape) in which each feature carries its segment's value (B, S)."""
        flat = self.label.flatten(1).expand(len(values), -1)
        return values.gather(1, flat).view(-1, *self.label.shape[1:]).expand(-1, *shape)

    def sizes(self, shape: tuple[int, ...]) -> Tensor:
        """Return how many features (R, S) of one input lie in each segment, at least 1."""
        flat = self.label.expand(-1, *shape).flatten(1)
        ones = torch.ones_like(flat)
        return torch.zeros_like(self.present, dtype=ones.dtype).scatter_add_(1, flat, ones).clamp(1)


class Segments(ABC):
    """A way to group features; a frozen value, made into a partition for the rows at hand."""

    @abstractmethod
    def of(self, rows: Rows) -> Partition:
        """Return the partition of the rows."""


@dataclass(frozen=True)
class Grid(Segments):
    """Square cells of an image, its colours together; a table's features one each.

    cell: the side of a cell; the last of a row or column is smaller where it does not fit.
    """

    cell: int = 4

    def __post_init__(self) -> None:
        if self.cell < 1:
            raise InputError(f"cell={self.cell}: a cell has a side of at least 1")

    def of(self, rows: Rows) -> Partition:
        """Return one label for all rows."""
        if len(rows.shape) < 2:
            return EveryFeature().of(rows)
        high, wide = rows.shape[-2:]
        down, right = (torch.arange(n, device=rows.x.device) // self.cell for n in (high, wide))
        label = down[:, None] * -(-wide // self.cell) + right
        return _alike(label.view(*[1] * (len(rows.shape) - 2), high, wide))


@dataclass(frozen=True)
class EveryFeature(Segments):
    """Every feature for itself: each colour of each pixel, each column of a table."""

    def of(self, rows: Rows) -> Partition:
        """Return one label for all rows."""
        count = math.prod(rows.shape)
        return _alike(torch.arange(count, device=rows.x.device).view(rows.shape))


@dataclass(frozen=True)
class LabelMap(Segments):
    """A map that the user gives, the same for all rows: which segment each feature lies in.

    labels: nested tuples of whole numbers, of the input's shape or broadcasting to it, e.g. (H, W)
    for an image; `label_map` makes one of a tensor. Their values are names only.
    """

    labels: tuple[Any, ...]

    def of(self, rows: Rows) -> Partition:
        """Return one label for all rows, numbered from 0 in the order of the names."""
        given = torch.tensor(self.labels, device=rows.x.device)
        label = given.view(*[1] * (len(rows.shape) - given.dim()), *given.shape)
        fits = label.dim() == len(rows.shape) and all(
            a in (1, b) for a, b in zip(label.shape, rows.shape, strict=True)
        )
        if given.is_floating_point() or not fits:
            raise InputError(
                f"the label map has shape {tuple(given.shape)} and {given.dtype} for inputs of "
                f"shape {rows.shape}: give whole numbers of that shape, or (H, W) for an image"
            )
        return _alike(torch.unique(label, return_inverse=True)[1])


@dataclass(frozen=True)
class Superpixels(Segments):
    """Superpixels of each image for itself, by scikit-image: quickshift as LIME's authors use it.

    kernel, farthest, ratio: of quickshift (Vedaldi and Soatto 2008), 4, 200 and 0.2 as in the
    authors' code. Images of three colours are compared in Lab, others as they are.
    """

    kernel: float = 4.0
    farthest: float = 200.0
    ratio: float = 0.2

    def of(self, rows: Rows) -> Partition:
        """Return a label a row; raises MissingExtra without scikit-image."""
        if len(rows.shape) != 3:
            raise InputError(f"superpixels need images (C, H, W), and x has {rows.shape}: use Grid")
        try:
            from skimage.segmentation import quickshift
        except ImportError as error:
            raise MissingExtra(
                "superpixels are scikit-image's: pip install 'foible[image]', or use Grid"
            ) from error
        labels = [
            quickshift(
                np.moveaxis(image, 0, -1),
                kernel_size=self.kernel,
                max_dist=self.farthest,
                ratio=self.ratio,
                convert2lab=len(image) == 3,
            )
            for image in rows.x.detach().double().cpu().numpy()
        ]
        label = torch.from_numpy(np.stack(labels)).to(rows.x.device, torch.int64)[:, None]
        counts = label.flatten(1).amax(1) + 1
        most = torch.arange(int(counts.max()), device=label.device)
        return Partition(label, most[None] < counts[:, None])


def _alike(label: Tensor) -> Partition:
    """Return the partition of rows that are all cut by one label (*shape), numbered from 0."""
    present = torch.ones(1, int(label.max()) + 1, dtype=torch.bool, device=label.device)
    return Partition(label[None], present)


def as_segments(given: Segments | int) -> Segments:
    """Return the segments; a number is the side of a grid's cell."""
    if isinstance(given, int) and not isinstance(given, bool):
        return Grid(given)
    if not isinstance(given, Segments):
        raise KindError(f"segments is {type(given).__name__}: pass Segments, or a cell's side")
    return given


def plain(value: Any) -> Any:
    """Turn a tensor or an array into nested tuples, which a plan can store; the rest passes.

    >>> plain(torch.tensor([[1.0, 2.0]])), plain("blur")
    (((1.0, 2.0),), 'blur')
    """
    if isinstance(value, Tensor | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def check_baseline(baseline: Baseline) -> None:
    """Refuse a word that `filling` does not know."""
    if isinstance(baseline, str) and baseline not in WORDS:
        raise InputError(f"baseline={baseline!r}: give a number, a tensor, or one of {WORDS}")


def filling(baseline: Baseline, rows: Rows, part: Partition | None = None) -> Tensor:
    """Return what removed features show, broadcasting to (B, *shape).

    A number; the numbers of one input; "mean": each colour's mean over its image; "segment": each
    colour's mean over the segment of the partition (LIME's authors); "blur": the image under a
    Gaussian whose deviation is a tenth of its shorter side.
    """
    check_baseline(baseline)
    x = rows.x.detach()
    if not isinstance(baseline, str):
        fill = torch.tensor(baseline, dtype=x.dtype, device=x.device)
        lead = fill.shape[: -len(rows.shape)] if fill.dim() else ()
        if lead or any(
            a not in (1, b) for a, b in zip(fill.shape[::-1], rows.shape[::-1], strict=False)
        ):
            raise InputError(
                f"the baseline has shape {tuple(fill.shape)} and an input {rows.shape}: it must "
                "broadcast to one input"
            )
        return fill
    if len(rows.shape) < 2:
        raise InputError(
            f"baseline={baseline!r} is for images, and x has shape {rows.shape}: give a number, or "
            "a tensor of one value a feature, such as the training set's mean"
        )
    if baseline == "mean":
        return x.mean((-2, -1), keepdim=True)
    if baseline == "blur":
        return _blurred(x)
    if part is None:
        raise InputError('baseline="segment" needs segments, and this method has none')
    lead = x.shape[:-2]  # B and the colours: each has its own mean in a segment
    label = part.label.expand(x.shape).flatten(-2)
    total = torch.zeros(*lead, part.count, dtype=x.dtype, device=x.device)
    number = total.scatter_add(-1, label, torch.ones_like(x).flatten(-2)).clamp_min(1)
    mean = total.scatter_add(-1, label, x.flatten(-2)) / number
    return mean.gather(-1, label).view_as(x)


def _blurred(x: Tensor) -> Tensor:
    """Return images under a Gaussian of a tenth of the shorter side, cut at three deviations."""
    sigma = min(x.shape[-2:]) / 10
    out = x.reshape(-1, 1, *x.shape[-2:])
    reach = min(math.ceil(3 * sigma), min(x.shape[-2:]) - 1)  # reflection needs a larger image
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    bell = torch.exp(-((at / sigma) ** 2) / 2)
    bell = bell / bell.sum()
    padded = F.pad(out, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(padded, bell.view(1, 1, 1, -1)), bell.view(1, 1, -1, 1)).view_as(x)


def some_of(fill: Tensor, which: Tensor, x: Tensor) -> Tensor:
    """Return the filling of some rows of x, by position; one that all rows share stays as it is."""
    return fill[which] if fill.dim() == x.dim() else fill


def point_values(
    field: Field, rows: Rows, count: int, points: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the field (B, count) at `count` points of every row, in forwards that are full.

    points(row, which) gives the inputs (m, *shape) of row positions (m,) and point numbers (m,),
    m at most the chunk; it is asked for one forward at a time, rows in order, so that no more
    than a chunk of inputs is ever held.
    """
    total, wide, values = len(rows) * count, max(1, field.width), []
    for start in range(0, total, wide):
        some = torch.arange(start, min(start + wide, total), device=rows.x.device)
        row = some // count
        values.append(field.values(points(row, some - row * count), rows.take(row)))
    return torch.cat(values).view(len(rows), count)


def masked_values(field: Field, rows: Rows, keep: Tensor, part: Partition, fill: Tensor) -> Tensor:
    """Return the field (B, n) on n maskings of every row: one forward each.

    keep: (B, n, S) bool, or (1, n, S) for all rows: which segments of the partition are shown.
    fill: what the others show, of `filling`.
    """
    x, count, alike = rows.x.detach(), keep.shape[1], len(keep) == 1
    flat, fill = keep.reshape(-1, keep.shape[2]), fill.to(x)

    def points(row: Tensor, which: Tensor) -> Tensor:
        # Gathering numbers is ten times as fast as gathering bools; lerp is exact at 0 and 1.
        kept = flat[which if alike else row * count + which].to(x.dtype)
        return torch.lerp(some_of(fill, row, x), x[row], part.shown(kept, row))

    return point_values(field, rows, count, points)
