"""How far inputs are from what an autoencoder makes of them, as a price of a change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from foible.core.errors import InputError, KindError
from foible.core.problem import Closest, Objective, View


@dataclass(frozen=True, eq=False)
class Residual:
    """weight * |x - autoencoder(x)|_2^2, (B,).

    autoencoder: maps (B, *shape) to the same shape, in evaluation mode.
    """

    autoencoder: nn.Module
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.autoencoder, nn.Module):
            raise KindError(
                f"the autoencoder is {type(self.autoencoder).__name__}: pass a torch.nn.Module, "
                'e.g. foible.zoo.load("autoencoder")'
            )
        if not 0 <= self.weight < float("inf"):
            raise InputError(f"weight={self.weight}: a price is finite and not negative")
        if any(m.training for m in self.autoencoder.modules()):
            # It is no part of the attacked model, so that no session puts it in this mode.
            raise InputError("the autoencoder is in training mode: call its .eval() first")

    @property
    def reach(self) -> float:
        """Return a step of plain descent on it that does not overshoot, if the reconstruction
        hardly moves with x: half of one over the curvature of weight * |x|^2.
        """
        return 0.25 / self.weight if self.weight else float("inf")

    def __call__(self, x: Tensor) -> Tensor:
        """Return (B,), on the graph where x is."""
        kind = next((p.dtype for p in self.autoencoder.parameters()), x.dtype)
        made: Tensor = self.autoencoder(x.to(kind)).to(x.dtype)
        if made.shape != x.shape:
            raise InputError(
                f"the autoencoder made {tuple(made.shape)} of {tuple(x.shape)}: it must give "
                "back the shape that it takes"
            )
        gap: Tensor = (x - made).flatten(1).square().sum(1)
        return self.weight * gap


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """An objective minus the price of what an autoencoder does not give back of x_adv."""

    inner: Objective
    term: Residual

    def for_restart(self, restart: int, classes: int) -> Reconstructed:
        """Pass a restart's aim on."""
        aim = getattr(self.inner, "for_restart", None)
        return self if aim is None else replace(self, inner=aim(restart, classes))

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        return self.inner(view) - self.term(view.x_adv)


@dataclass(frozen=True, eq=False)
class ClosestReconstructed(Closest):
    """Prefer the smallest size and price together: the `prefer` of minimum-norm attacks.

    inner: minus the size. power: to which the size is raised before the price is added.
    """

    inner: Callable[[View], Tensor]
    term: Residual
    power: int = 1

    def __call__(self, view: View) -> Tensor:
        """Return minus the two (B,)."""
        with torch.no_grad():
            size = (-self.inner(view)).double() ** self.power
            return -size - self.term(view.x_adv.detach()).double()
