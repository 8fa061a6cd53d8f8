"""Samples around an input for a mixture of planes: segments hidden at random, or moved a little."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.removal import Partition, masked_values, point_values

# A number; or nested tuples of one number a feature.
Noise = float | tuple[float, ...]


def scale_of(data: Tensor, share: float = 1.0) -> tuple[float, ...]:
    """Return the spread of every column of a table (N, D), for `lemna` and `tabular_lime`.

    share times half the distance between the quantiles 0.16 and 0.84: the standard deviation of a
    normal column, and unmoved by a few outliers. A column whose quantiles are equal takes its
    standard deviation, a constant one 1e-12. A forest is a step function: noise narrower than the
    gaps between its splits sees nothing.

    >>> torch.tensor(scale_of(torch.arange(101.0)[:, None]))
    tensor([34.])
    """
    if data.dim() != 2 or len(data) < 2:
        raise InputError(f"data has shape {tuple(data.shape)}: give a table (N, D), N at least 2")
    table = data.detach().double()
    low, high = table.quantile(torch.tensor([0.16, 0.84]).to(table), 0)
    wide = (high - low) / 2
    wide = torch.where(wide > 0, wide, table.std(0))
    return tuple((share * wide).clamp_min(1e-12).tolist())


def hidden_samples(
    field: Field, rows: Rows, draw: Draw, samples: int, part: Partition, fill: Tensor
) -> tuple[Tensor, Tensor]:
    """Return which segments are shown (B, n, S) and the field (B, n), both float64.

    One to half of the segments are hidden, as in the code of LEMNA's authors; in sample 0 none. A
    segment that only other rows have counts as shown.
    """
    order = draw.uniform((samples, part.count), torch.float64).argsort(2).argsort(2)
    size = draw.split(1).uniform((samples, 1), torch.float64) * max(1, part.count // 2)
    shown = (order > size.long()) | ~part.present[:, None]
    shown[:, 0] = True
    values = masked_values(field, rows, shown & part.present[:, None], part, fill)
    return shown.double(), values.double()


def moved_samples(
    field: Field, rows: Rows, draw: Draw, samples: int, part: Partition, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return by how many deviations segments move (B, n, S) and the field (B, n), both float64.

    Normal noise, in sample 0 none; samples may leave the box. scale: (B or 1, S), the deviations.
    """
    u = draw.normal((samples, part.count), rows.x.dtype)
    u[:, 0] = 0
    label = part.label.flatten(1).expand(len(rows), -1)
    x, moves = rows.x.detach(), u * scale[:, None]

    def points(row: Tensor, which: Tensor) -> Tensor:
        move = moves[row, which].gather(1, label[row])
        return x[row] + move.view(-1, *part.label.shape[1:])

    return u.double(), point_values(field, rows, samples, points).double()


def check_noise(noise: Noise) -> None:
    """Refuse noise that is nowhere above 0."""
    if not bool((torch.tensor(noise) > 0).all()):
        raise InputError(f"noise={noise!r}: a deviation above 0, or one a feature")


def deviation(field: Field, rows: Rows, noise: Noise) -> Tensor:
    """Return the noise's deviation, (1, D) where it is one a feature, else (B, 1)."""
    given = torch.tensor(noise, dtype=rows.x.dtype, device=rows.x.device)
    if given.dim():
        if given.shape != rows.shape:
            raise InputError(
                f"noise has shape {tuple(given.shape)} and an input {rows.shape}: give one number, "
                "or one a feature, e.g. foible.explain.scale_of(training_table)"
            )
        return given.flatten()[None]
    low, high = field.oracle.bounds
    if math.isfinite(high - low):
        return (given * (high - low)).expand(len(rows), 1)
    flat = rows.x.detach().flatten(1)
    # A constant input has no range of its own.
    wide = flat.amax(1) - flat.amin(1)
    return torch.where(wide > 0, wide, 1.0)[:, None] * given
