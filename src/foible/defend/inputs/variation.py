"""Smoothing of the input by total variation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.errors import InputError
from foible.defend.inputs.base import Change, Defended, behind
from foible.parts.transforms import images


class Variation(Change):
    """The image near x with little total variation; the gradient passes, through every iteration.

    Chambolle 2004: min over u of |u - x|^2 / 2 + weight * TV(u), by descent in the dual.
    """

    def __init__(self, weight: float, steps: int) -> None:
        super().__init__()
        if not weight > 0 or steps < 1:
            raise InputError(f"weight={weight}, steps={steps}: above 0, and one step at least")
        self.weight, self.steps = weight, steps

    def forward(self, x: Tensor) -> Tensor:
        """Return images of x's shape."""
        images(x, "total_variation")
        down, across = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(self.steps):
            u = x + _divergence(down, across)
            g, h = F.pad(u.diff(dim=2), (0, 0, 0, 1)), F.pad(u.diff(dim=3), (0, 1))
            # All channels of a pixel share one length, as for a picture in colour. The square root
            # has no slope at 0, where a flat patch is.
            size = (g.square() + h.square()).sum(1, keepdim=True).clamp_min(1e-12).sqrt()
            shrink = 1 + 0.25 / self.weight * size
            down, across = (down + 0.25 * g) / shrink, (across + 0.25 * h) / shrink
        return x + _divergence(down, across)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"weight={self.weight}, steps={self.steps}"


def _divergence(down: Tensor, across: Tensor) -> Tensor:
    """Return what flows into each pixel: minus the adjoint of the differences."""
    return down - F.pad(down[:, :, :-1], (0, 0, 1, 0)) + across - F.pad(across[..., :-1], (1, 0))


def total_variation(model: nn.Module | Any, weight: float = 0.1, steps: int = 30) -> Defended:
    """Return the model behind total-variation smoothing of its input (Guo et al. 2018).

    model: a module or a wrapped model for images (B, C, H, W);
    bounds, preprocessing and outputs are kept. weight: of the total variation beside half the
    squared distance, in the model's units; 0.03 in the paper's own scaling. steps: of the solver.

    It is written in PyTorch, so the gradient passes through all steps, and plain PGD sees through
    it: `foible.defend.breaker("total_variation")`.

    Departures: the paper keeps a random half of the pixels before it smooths, here all are kept
    (put `randomize` in front for randomness); the solver is Chambolle's projection, with a fixed
    number of steps.

    Raises InputError for settings that are not positive, KindError for what holds no torch module
    and for inputs that are no images.

    >>> flat = total_variation(nn.Flatten(), 10.0, 300)(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
    >>> [round(float(v), 2) for v in flat[0]]
    [0.5, 0.5, 0.5, 0.5]
    """
    return behind(Variation(weight, steps), model, "total_variation")
