"""Training under Gaussian noise, as randomized smoothing needs it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foible.core.errors import InputError
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss, cross_entropy


@dataclass(frozen=True)
class WithNoise(Loss):
    """The cross-entropy of inputs under Gaussian noise; see `with_noise`."""

    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise InputError(f"sigma={self.sigma}: above 0; without noise it is `plain()`")

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        noise = batch.draw(23).normal(tuple(batch.x.shape[1:]), batch.x.dtype)
        return cross_entropy(batch.scores(batch.x + self.sigma * noise), batch.y)


def with_noise(sigma: float) -> WithNoise:
    """Return training under Gaussian noise (Cohen et al. 2019, after Lecuyer et al. 2019).

    One draw a sample and epoch, not cut to the bounds: the noise that `randomized_smoothing` will
    add. sigma: its deviation, in the input's units.

    Raises InputError for a sigma that is not positive.

    >>> with_noise(0.25)
    WithNoise(sigma=0.25)
    """
    return WithNoise(sigma)
