"""LIME whose neighbours are real rows: what a model says of rows that do not exist is not asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.nearby import scale_of
from foible.explain.removal import plain, point_values
from foible.explain.surrogate import Local, LocalFit, check_settings, few, ridge_fit, together


@dataclass(frozen=True)
class DataLime(Local):
    """A weighted ridge regression on the real rows that are nearest.

    data: (N, D) as nested tuples, as `data_lime` makes of a tensor. samples: how many of them, the
    nearest in units of scale, one forward each; x itself comes first. scale, width, ridge, most:
    as of `TabularLime`, so that a weight is the change of the field for one deviation.
    """

    data: tuple[Any, ...]
    samples: int = 500
    scale: float | tuple[float, ...] = 1.0
    width: float | None = None
    ridge: float = 1.0
    most: int | None = None

    def __post_init__(self) -> None:
        check_settings(self.samples, self.width, self.ridge, self.most)
        if len(self.data) < 2:
            raise InputError(f"data holds {len(self.data)} rows: at least 2")

    def local(self, field: Field, rows: Rows, draw: Draw) -> LocalFit:
        """Return the fit of every row; at most `samples` forwards."""
        size, like = rows.x[0].numel(), rows.x
        data = torch.tensor(self.data, dtype=like.dtype, device=like.device)
        if data.dim() != 2 or data.shape[1] != size:
            raise InputError(
                f"data has shape {tuple(data.shape)} and an input {size} features: give (N, D), "
                "real rows of the same table"
            )
        scale = torch.tensor(self.scale, dtype=like.dtype, device=like.device).flatten()
        if len(scale) not in (1, size):
            raise InputError(f"scale has {len(scale)} values and an input {size} features")
        width = 0.75 * size**0.5 if self.width is None else self.width
        count = min(self.samples, len(data) + 1)
        label = torch.arange(size, device=like.device).view(1, *rows.shape)
        there, fits = (data / scale).double(), []
        for group in few(field, rows, max(count, len(data) // size), size):
            some, x = rows.take(group), like[group].detach().flatten(1)
            # Without the matrix product, whose rounding depends on the batch.
            exact = "donot_use_mm_for_euclid_dist"
            far = torch.cdist((x / scale).double(), there, compute_mode=exact)
            near = far.argsort(dim=1, stable=True)[:, : count - 1]  # of equals the first ones
            at = torch.cat([x[:, None], data[near]], 1)

            def points(row: Tensor, which: Tensor, at: Tensor = at) -> Tensor:
                return at[row, which].view(-1, *rows.shape)

            values = point_values(field, some, count, points).double()
            z = ((at - x[:, None]) / scale).double()
            kernel = torch.exp(-(z**2).sum(2) / width**2).sqrt()
            fits.append(LocalFit(*ridge_fit(z, values, kernel, self.ridge, self.most), label))
        return together(fits)


def data_lime(
    data: Tensor | tuple[Any, ...],
    samples: int = 500,
    scale: float | tuple[float, ...] | Tensor | None = None,
    most: int | None = None,
) -> DataLime:
    """Return LIME on real rows (after Ribeiro et al. 2016 and Slack et al. 2020): scores only.

    The counter to `foible.attacks.scaffolding`: a model cannot tell these questions from use. What
    columns share in the data they share here: of two that always go together the weight is split,
    as no row tells them apart. data: (N, D) real rows, of which the `samples` nearest to x are
    asked. scale: the deviations of the columns; None is `foible.explain.scale_of(data)`.

    >>> data = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)).double()
    >>> net = torch.nn.Linear(3, 2).double()
    >>> weights = data_lime(data, 50, 0.1).fit(net, data[:2], 1).weights
    >>> torch.allclose(weights, 0.1 * net.weight[1], rtol=0.2, atol=1e-2)
    True
    """
    if scale is None:
        scale = scale_of(torch.as_tensor(data))
    return DataLime(plain(data), samples, plain(scale), most=most)
