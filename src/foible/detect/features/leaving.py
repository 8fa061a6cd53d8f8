"""How unequal the effects of single features are: each is left out by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State

SPREADS = ("iqr", "std", "mad")
# Layers that give what the one before gave.
_SAME = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)


def dispersion(values: Tensor, kind: str) -> Tensor:
    """Return how far values (B, n, U) lie apart along n: (B, U).

    kind: "iqr", between the quartiles, which are interpolated linearly; "std", around the mean of
    the n; "mad", the median distance from the median.

    >>> dispersion(torch.arange(5.0).view(1, 5, 1), "iqr").item()
    2.0
    """
    if kind == "std":
        return values.var(1, correction=0).clamp_min(1e-24).sqrt()
    ordered = _sorted(values)
    if kind == "iqr":
        return _quantile(ordered, 0.75) - _quantile(ordered, 0.25)
    away = (values - _quantile(ordered, 0.5)[:, None]).abs()
    return _quantile(_sorted(away), 0.5)


def _sorted(values: Tensor) -> Tensor:
    """Return values (B, n, U) sorted along n."""
    if values.requires_grad or values.device.type != "cpu":
        return values.sort(1).values
    # NumPy's sort is vectorised: of hundreds of units torch's own costs a sixth of the forwards.
    columns = values.transpose(1, 2).contiguous()
    return torch.from_numpy(np.sort(columns.numpy(), axis=2)).transpose(1, 2)


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Return a quantile along dimension 1 of what is sorted along it."""
    place = share * (ordered.shape[1] - 1)
    low = math.floor(place)
    high = min(low + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, low], ordered[:, high], place - low)


@dataclass(frozen=True)
class LeavingOut(Feature):
    """The dispersion, over the features left out, of each unit of the model: (B, spreads x units).

    Every feature of the input (each colour of a pixel) shows the baseline once. The units are the
    probability of the class that is predicted for the whole input and those of all classes, and
    the layers' units; a map counts by its mean over places. spreads: of SPREADS.

    layers: names as in `foible.models.layers_of`; None for every activation (every layer, where the
    net has no module of that kind); () for the predicted probability alone. pixels: None, or how
    many features are left out, chosen at random for each input: cheaper, for searches. sketch: the
    number of them that an adaptive attack takes.
    """

    layers: tuple[str, ...] | None = ()
    spreads: tuple[str, ...] = ("iqr",)
    pixels: int | None = None
    baseline: float = 0.0
    sketch: int = 78

    def __post_init__(self) -> None:
        if not self.spreads or set(self.spreads) - set(SPREADS):
            raise InputError(f"spreads={self.spreads}: one or more of {', '.join(SPREADS)}")
        if (self.pixels is not None and self.pixels < 2) or self.sketch < 2:
            raise InputError(f"pixels={self.pixels}, sketch={self.sketch}: two features at least")

    @property
    def access(self) -> Access:  # type: ignore[override]
        """Scores, or what the layers give."""
        return Access.SCORES if self.layers == () else Access.INTERNALS

    @property
    def looks(self) -> int:
        """About one a feature; how many an input has is not known before it is seen."""
        return 784 if self.pixels is None else self.pixels

    @property
    def held(self) -> int:
        """A few: points come in blocks, and what is kept of them are their units."""
        return min(32, self.looks)

    def soft(self) -> Feature:
        """Return the same over a few features, others at every step of a search."""
        return replace(self, pixels=self.sketch) if self.pixels is None else self

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """One forward a feature that is left out, in blocks that fit one forward."""
        size = math.prod(rows.shape)
        which = torch.arange(size, device=rows.x.device).expand(len(rows), -1)
        if self.pixels is not None and self.pixels < size:
            order = draw.split(41).uniform((size,), torch.float64).argsort(1)
            which = order[:, : self.pixels].sort(1).values
        count = which.shape[1]
        with torch.set_grad_enabled(create_graph):
            told = torch.cat(list(self._units(oracle, rows, which)))
            told = told.view(len(rows), count, -1)
            return torch.cat([dispersion(told, kind) for kind in self.spreads], 1)

    def _units(self, oracle: Oracle, rows: Rows, which: Tensor) -> Iterator[Tensor]:
        """Give the units (m, U) of each block of points, row by row."""
        layers, count = self._layers(oracle, rows.x), which.shape[1]
        flat, place = rows.x.flatten(1), which.reshape(-1)
        for part in torch.arange(len(place), device=flat.device).split(oracle.chunk(rows.x)):
            row = part // count
            points = flat.index_select(0, row).scatter_(1, place[part, None], self.baseline)
            at = points.view(len(row), *rows.shape)
            asked = Rows(rows.index[row], rows.id[row], at, rows.y[row])
            if layers:
                scores, kept = oracle.readings(at, asked, layers, pooled)
            else:
                scores, kept = oracle.scores(at, asked), ()
            shares = scores.softmax(1)
            units = [shares.gather(1, asked.y[:, None])]
            yield torch.cat(units if self.layers == () else [*units, shares, *kept], 1)

    def _layers(self, oracle: Oracle, x: Tensor) -> tuple[str, ...]:
        if self.layers is not None:
            return self.layers
        model: Any = oracle.model
        if not hasattr(model, "layers"):
            return ()
        modules = dict(model.net.named_modules())
        found = [(name, modules[name.partition("#")[0]]) for name in model.layers(x)]
        leaves = {n: m for n, m in found if not any(m.children()) and not isinstance(m, _SAME)}
        active = tuple(n for n, m in leaves.items() if not any(True for _ in m.parameters()))
        return active or tuple(leaves)


def pooled(activation: Tensor) -> Tensor:
    """Return what a layer gave, (B, U): of maps (B, C, ...) each channel's mean over places."""
    return activation.flatten(2).mean(2) if activation.dim() > 2 else activation.clone()
