"""Autoencoders of clean inputs: what they cannot give back is strange."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.defend.batch import Batch
from foible.defend.losses.base import Loss
from foible.defend.training import Settings, train
from foible.models.holding import wrap


class Autoencoder(nn.Module):
    """Input to input of one shape, (C, H, W) or any other; as in MagNet, small.

    deep: through maps of half the side (their first network), else at full size (their second).
    Inputs of other shapes go through a hidden layer of a quarter of their numbers, or of all. The
    sigmoid keeps it in the bounds, where those are finite.
    """

    def __init__(
        self, shape: tuple[int, ...], bounds: tuple[float, float], deep: bool, width: int
    ) -> None:
        super().__init__()
        self.shape, self.bounds = shape, bounds
        size, c = math.prod(shape), shape[0]
        if len(shape) == 3:
            self.inner: nn.Module = nn.Sequential(
                nn.Conv2d(c, width, 3, padding=1), nn.Sigmoid(),
                *([nn.AvgPool2d(2, ceil_mode=True)] if deep else []),
                nn.Conv2d(width, width, 3, padding=1), nn.Sigmoid(),
            )  # fmt: skip
            self.outer: nn.Module = nn.Conv2d(width, c, 3, padding=1)
        else:
            hidden = max(2, size // 4 if deep else size)
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.Sigmoid())
            self.outer = nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, *shape)."""
        inner: Tensor = self.inner(x)
        if len(self.shape) == 3:
            inner = F.interpolate(inner, self.shape[1:], mode="nearest")
        found: Tensor = self.outer(inner)
        low, high = self.bounds
        if math.isfinite(high - low):
            found = low + (high - low) * found.sigmoid()
        return found.reshape(x.shape)


@dataclass(frozen=True)
class GivenBack(Loss):
    """The mean squared error of clean inputs given back from noisy ones.

    noise: its standard deviation, in shares of the box; 0.1 in MagNet's code.
    """

    noise: float = 0.1

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        low, high = batch.model.bounds
        width = high - low if math.isfinite(high - low) else 1.0
        drawn = batch.draw(59).normal(tuple(batch.x.shape[1:]), batch.x.dtype).to(batch.x.device)
        seen = (batch.x + self.noise * width * drawn).clamp(low, high)
        return (batch.scores(seen) - batch.x).square().flatten(1).mean(1)


def trained(made: Autoencoder, x: Tensor, epochs: int, noise: float, seed: int) -> nn.Module:
    """Return an autoencoder trained on clean inputs (N, *shape): Adam at 1e-2, batches of 64."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for part in made.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                part.reset_parameters()
    labels = torch.zeros(len(x), dtype=torch.int64)  # nothing is classified
    return train(
        wrap(made.to(x.dtype), made.bounds), (x.cpu(), labels), GivenBack(noise), epochs,
        settings=Settings(batch=64, lr=1e-2, hold_out=0, average=0.98, seed=seed),
    )  # fmt: skip
