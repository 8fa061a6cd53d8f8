"""JPEG compression of the input."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foible.core.errors import InputError, KindError, MissingExtra
from foible.defend.inputs.base import Change, Defended, behind, spanned, torch_model
from foible.parts.transforms import images


class Jpeg(Change):
    """Write each image as a JPEG file and read it back (Pillow): no gradient."""

    passes = False

    def __init__(self, quality: int, bounds: tuple[float, float]) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise InputError(f"quality={quality}: 1 to 100, as in any JPEG writer")
        self.quality, self.bounds = quality, spanned(bounds, "jpeg")

    def forward(self, x: Tensor) -> Tensor:
        """Return images of x's shape, off the graph."""
        images(x, "jpeg")
        if x.shape[1] not in (1, 3):
            raise KindError(f"x has {x.shape[1]} channels: a JPEG file holds 1 or 3")
        picture, (low, high) = _pillow(), self.bounds
        bytes_ = ((x.detach() - low) / (high - low) * 255).round().clamp(0, 255).byte()
        found = []
        for one in bytes_.movedim(1, 3).cpu().numpy():
            with BytesIO() as file:
                drawn = picture.fromarray(one[:, :, 0] if one.shape[2] == 1 else one)
                drawn.save(file, "JPEG", quality=self.quality)
                found.append(np.asarray(picture.open(file)).reshape(one.shape))
        read = torch.from_numpy(np.stack(found)).movedim(3, 1)
        return read.to(x) / 255 * (high - low) + low

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"quality={self.quality}, bounds={self.bounds}"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("JPEG files are written by Pillow: pip install pillow") from error
    return Image


def jpeg(model: nn.Module | Any, quality: int = 75) -> Defended:
    """Return the model behind JPEG compression of its input (Guo et al. 2018).

    model: a module or a wrapped model for images (B, 1 or 3, H, W); bounds, preprocessing and
    outputs are kept. quality: of the file, 75 in Guo et al.; its blocks are 8 x 8 pixels, so that
    on small images little is left at a low quality.

    It leaves PyTorch: the model gives scores and no gradient, and a gradient attack is refused.
    Broken by `foible.defend.breaker("jpeg")`: the forward as it is, the backward as if nothing had
    been compressed (BPDA, Athalye et al. 2018: to 0 %), and by whatever needs scores only.

    Raises InputError for a quality out of range and bounds without an end, KindError for what
    holds no torch module and for other numbers of channels.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> model = jpeg(foible.zoo.load("standard"))
    >>> model(x[:4]).shape, model.access.name
    (torch.Size([4, 10]), 'SCORES')
    """
    held = torch_model(model, "jpeg")
    return behind(Jpeg(quality, held.bounds), held, "jpeg")
