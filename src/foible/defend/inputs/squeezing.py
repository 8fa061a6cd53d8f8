"""Feature squeezing: fewer bits, a median, non-local means."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foible.core.errors import InputError, MissingExtra
from foible.defend.inputs.base import Change, Defended, behind, spanned, torch_model
from foible.parts.transforms import images

NonLocal = tuple[int, int, float]


class Bits(Change):
    """Round to 2^bits values between the bounds. PyTorch's gradient of it is zero everywhere."""

    passes, zero = False, True

    def __init__(self, bits: int, bounds: tuple[float, float]) -> None:
        super().__init__()
        if not 1 <= bits <= 16:
            raise InputError(f"bits={bits}: a depth of 1 to 16 bits")
        self.bits, self.bounds = bits, spanned(bounds, "squeeze")

    def forward(self, x: Tensor) -> Tensor:
        """Return the nearest value of every number."""
        low, high = self.bounds
        steps = (1 << self.bits) - 1
        return torch.round((x - low) / (high - low) * steps) / steps * (high - low) + low

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"bits={self.bits}, bounds={self.bounds}"


class Median(Change):
    """The median of a window of k x k pixels. The gradient goes to the pixel that is taken.

    Of an even number of pixels the upper of the middle two, and one pixel more before than after;
    the edge is reflected: all as in scipy's filter, which the authors use.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        if window < 2:
            raise InputError(f"median={window}: a window of two pixels at least")
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Return images of x's shape."""
        images(x, "a median")
        k = self.window
        for axis in (2, 3):
            place = np.pad(np.arange(x.shape[axis]), (k // 2, k - 1 - k // 2), mode="symmetric")
            x = x.index_select(axis, torch.from_numpy(place).to(x.device))
        windows = x.unfold(2, k, 1).unfold(3, k, 1).flatten(4)
        middle: Tensor = windows.kthvalue(k * k // 2 + 1, 4).values
        return middle

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"window={self.window}"


class NonLocalMeans(Change):
    """Average each pixel with those whose surroundings look alike (scikit-image): no gradient."""

    passes = False

    def __init__(self, setting: NonLocal, bounds: tuple[float, float]) -> None:
        super().__init__()
        search, patch, strength = setting
        if search < 1 or patch < 1 or not strength > 0:
            raise InputError(
                f"nonlocal_means={setting}: (window that is searched, size of a patch, strength), "
                "all above 0, e.g. (13, 3, 2)"
            )
        self.setting, self.bounds = (search, patch, strength), spanned(bounds, "squeeze")

    def forward(self, x: Tensor) -> Tensor:
        """Return images of x's shape, off the graph."""
        images(x, "non-local means")
        (search, patch, strength), (low, high) = self.setting, self.bounds
        denoise = _denoiser()
        pictures = ((x.detach() - low) / (high - low)).cpu().double().numpy()
        how = {"patch_size": patch, "patch_distance": search // 2, "h": strength / 255}
        # One grey channel is none to scikit-image.
        found = [
            denoise(one[0], **how) if len(one) == 1 else denoise(one, channel_axis=0, **how)
            for one in pictures
        ]
        clean = torch.from_numpy(np.stack(found)).reshape(x.shape)
        return clean.to(x) * (high - low) + low

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"setting={self.setting}, bounds={self.bounds}"


class Squeezers(nn.Sequential, Change):
    """Several squeezers in turn: the gradient passes where it does through each of them."""

    def __init__(self, parts: list[Change]) -> None:
        super().__init__(*parts)
        self.passes = all(part.passes for part in parts)
        self.zero = not self.passes and all(part.passes or part.zero for part in parts)


def _denoiser() -> Any:
    try:
        from skimage.restoration import denoise_nl_means
    except ImportError as error:
        raise MissingExtra(
            'non-local means are scikit-image\'s: pip install "foible[image]"'
        ) from error
    return denoise_nl_means


def squeeze(
    model: nn.Module | Any,
    bits: int | None = None,
    median: int | None = None,
    nonlocal_means: NonLocal | None = None,
) -> Defended:
    """Return the model behind feature squeezing (N3, Xu et al. 2018), as a purifier.

    model: a module or a wrapped model; bounds, preprocessing and outputs are kept. bits: the depth
    of each number between the bounds; 1 on MNIST in the paper, 4 or 5 on photographs. median: the
    side of a window, 2 in the paper. nonlocal_means: (side of the window that is searched, of a
    patch, strength in 8-bit steps), (13, 3, 2) in the paper; extra `image`. Those that are given
    act in this order; the last two need images (B, C, H, W).

    The gradient through the median is true. Rounding has the gradient zero, and passes it on, so
    that PGD stays where it starts: that is the sign that an audit's masking alarm looks for. With
    non-local means the model gives scores and no gradient, and a gradient attack is refused. All
    three fall to `foible.defend.breaker("squeeze")`, BPDA with the identity (Athalye et al. 2018),
    and to attacks with the squeezer in the loss (He et al. 2017). Only numbers near a threshold can
    change level, so that at a small eps some of what few bits protect is real.

    Departure: the strength of non-local means is scikit-image's, whose distances between patches
    are weighted by a Gaussian, where the authors' OpenCV weighs all pixels of a patch alike.

    Raises InputError for no squeezer, settings out of range and bounds without an end; KindError
    for what holds no torch module; MissingExtra without scikit-image, at the first forward.

    >>> squeeze(nn.Flatten(), bits=1)(torch.tensor([[[[0.2, 0.7]]]])).tolist()
    [[0.0, 1.0]]
    """
    held = torch_model(model, "squeeze")
    parts: list[Change] = []
    if bits is not None:
        parts.append(Bits(bits, held.bounds))
    if median is not None:
        parts.append(Median(median))
    if nonlocal_means is not None:
        parts.append(NonLocalMeans(nonlocal_means, held.bounds))
    if not parts:
        raise InputError("squeeze needs one squeezer at least: bits, median or nonlocal_means")
    return behind(Squeezers(parts), held, "squeeze")
