"""A small U-Net that gives an image back without its noise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.errors import InputError


class UNet(nn.Module):
    """The denoiser of Liao et al. 2018, small: x + U(x), where U tells minus the noise.

    channels: of the images (B, C, H, W), of any size from 4 x 4. widths: maps of each level, the
    finest first; each level below has half the side. seed: of the weights. The last convolution
    begins at zero, so that an untrained denoiser changes nothing (theirs does not), and norms are
    of groups of maps and not of the batch: an image hangs on itself only.

    >>> net = UNet()
    >>> x = torch.rand(2, 1, 28, 28)
    >>> torch.equal(net(x), x)
    True
    """

    def __init__(
        self, channels: int = 1, widths: Sequence[int] = (16, 32, 64), seed: int = 0
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths, default=0) < 4 or any(w % 4 for w in widths):
            raise InputError(f"widths={tuple(widths)}: two levels at least, each a multiple of 4")
        pairs = list(pairwise(widths))
        # The layers draw their weights from a state of their own.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.first = level(channels, widths[0])
            self.down = nn.ModuleList(level(a, b, 2) for a, b in pairs)
            self.up = nn.ModuleList(level(a + b, a) for a, b in reversed(pairs))
            self.last = nn.Conv2d(widths[0], channels, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W); values may leave the box, as in the paper."""
        found = [self.first(x)]
        for down in self.down:
            found.append(down(found[-1]))
        at = found.pop()
        for up in self.up:
            beside = found.pop()
            at = F.interpolate(at, beside.shape[2:], mode="bilinear", align_corners=False)
            at = up(torch.cat([at, beside], 1))
        denoised: Tensor = x + self.last(at)
        return denoised


def level(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    """Return two convolutions of 3 x 3, the first with a stride."""
    parts: list[nn.Module] = []
    for a, b, s in ((inner, outer, stride), (outer, outer, 1)):
        parts += [nn.Conv2d(a, b, 3, s, 1), nn.GroupNorm(4, b), nn.ReLU()]
    return nn.Sequential(*parts)
