"""Randomness that depends on (seed, stream, row id, step) and on nothing else.

A row draws the same numbers whoever shares its batch, so compaction, chunks and resumption
leave every result as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def _mix(value: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of splitmix64, Steele et al. 2014)."""
    # Arrays of unsigned integers wrap around without a warning, as is meant here.
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(value ^ (value >> np.uint64(31)))


@dataclass(frozen=True)
class Rng:
    """A seed and a stream; `at` binds it to rows and their step.

    >>> import torch
    >>> a = Rng(0).at(torch.tensor([3, 5]), 0).normal((2,))
    >>> b = Rng(0).at(torch.tensor([5]), 0).normal((2,))
    >>> bool((a[1] == b[0]).all())
    True
    """

    seed: int = 0
    stream: int = 0

    def split(self, stream: int) -> Rng:
        """Return an independent generator, for a restart or another purpose."""
        return replace(self, stream=(self.stream * 1_000_003 + stream + 1) & _MASK)

    def at(self, ids: Tensor, step: Tensor | int = 0) -> Draw:
        """Bind to row ids (B,) and their step, an int or (B,)."""
        return Draw(self, ids, torch.as_tensor(step).expand(len(ids)))


class Draw:
    """Random tensors for a batch: every method gives (B, *shape), a row from its own stream."""

    def __init__(self, rng: Rng, ids: Tensor, step: Tensor) -> None:
        self.rng, self.ids, self.step = rng, ids, step

    def split(self, stream: int) -> Draw:
        """Return an independent draw for the same rows."""
        return Draw(self.rng.split(stream), self.ids, self.step)

    def take(self, which: Tensor) -> Draw:
        """Return the draw of some rows, by position: each keeps its own numbers."""
        return Draw(self.rng, self.ids[which], self.step.to(which.device)[which])

    def seeds(self) -> list[int]:
        """Return one 64-bit seed a row."""
        return [int(k) for k in self._keys()]

    def _keys(self) -> np.ndarray:
        key = np.full(len(self.ids), (self.rng.seed * 0x9E3779B97F4A7C15) & _MASK, np.uint64)
        key = _mix(key + np.uint64(self.rng.stream & _MASK))
        for part in (self.ids, self.step):
            add = part.detach().cpu().numpy().astype(np.int64).view(np.uint64)
            key = _mix(key * np.uint64(3) + add + np.uint64(1))
        return key

    def _fill(self, out: Tensor, fill: Callable[[Tensor, torch.Generator], object]) -> Tensor:
        generator = torch.Generator()
        for row, seed in zip(out, self.seeds(), strict=True):
            fill(row, generator.manual_seed(seed))
        return out

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw from [0, 1)."""
        out = torch.empty(len(self.ids), *shape, dtype=dtype)
        return self._fill(out, lambda row, g: row.uniform_(generator=g)).to(self.ids.device)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw from the standard normal distribution."""
        out = torch.empty(len(self.ids), *shape, dtype=dtype)
        return self._fill(out, lambda row, g: row.normal_(generator=g)).to(self.ids.device)

    def scalars(self, count: int) -> Tensor:
        """Draw `count` numbers a row, uniform in [0, 1): (B, count) float64, without a loop.

        For searches that need a few numbers a row at every step; `uniform` fills large tensors.
        """
        keys = self._keys()[:, None]
        lanes = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(keys + lanes) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64) * 2.0**-53).to(self.ids.device)

    def bernoulli(self, shape: tuple[int, ...], p: float) -> Tensor:
        """Draw True with probability p."""
        return self.uniform(shape) < p
