"""Random resizing and padding of the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foible.core.errors import InputError
from foible.defend.inputs.base import Change, Defended, behind
from foible.parts.transforms import images, resize_pad


class ResizePad(Change):
    """Resize each image to a random share of its side and lay it at a random place.

    The gradient passes, of this draw: the next forward draws another.
    """

    random = True

    def __init__(self, low: float, high: float, side: int | None, fill: float) -> None:
        super().__init__()
        self.low, self.high, self.side, self.fill = low, high, side, fill

    def forward(self, x: Tensor) -> Tensor:
        """Return images, of `side` pixels a side where that is given."""
        images(x, "randomize")
        canvas = None if self.side is None else (self.side, self.side)
        if max(x.shape[2:]) * self.high > min(canvas or x.shape[2:]) + 0.5:
            raise InputError(
                f"high={self.high}: images of {tuple(x.shape[2:])} pixels would not fit a side of "
                f"{min(canvas or x.shape[2:])}: lower high or raise side"
            )
        u = torch.rand(len(x), 3, dtype=torch.float64).to(x.device)
        share = self.low + (self.high - self.low) * u[:, 0]
        return resize_pad(x, share, u[:, 1:], self.fill, canvas)[0]

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"low={self.low}, high={self.high}, side={self.side}, fill={self.fill}"


def randomize(
    model: nn.Module | Any,
    low: float = 0.8,
    high: float = 1.0,
    side: int | None = None,
    fill: float = 0.0,
) -> Defended:
    """Return the model behind random resizing and padding (N1, Xie et al. 2018).

    model: a module or a wrapped model for images (B, C, H, W); bounds, preprocessing and outputs
    are kept. low, high: the share of its side that an image gets, uniform. side: of the canvas in
    pixels, for nets that take any size (the paper: 299 pixels, shares up to 331/299, side 331);
    None is the image's own, which leaves shares up to 1. fill: the canvas, in the model's units.

    Every forward is another function. The gradient passes, of one draw; an attack that follows it
    may end where the next draw does not, and `pgd` refuses where many of its successes do not hold
    in a second forward. Broken by averaging: `foible.defend.breaker("randomize")`, which is
    `foible.attacks.eot(attack, 30)` (Athalye et al. 2018: to 0 % at 0.031 on ImageNet).

    Departures: resized bilinearly, where the authors take the nearest pixel; one answer is one
    draw, where their entry averages 30.

    Raises InputError for shares out of order, KindError for what holds no torch module and for
    inputs that are no images.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> model = randomize(foible.zoo.load("standard"))
    >>> model(x[:4]).shape, model.defence
    (torch.Size([4, 10]), 'randomize')
    """
    if not 0 < low <= high:
        raise InputError(f"low={low}, high={high}: shares of the side, 0 < low <= high")
    return behind(ResizePad(low, high, side, fill), model, "randomize")
