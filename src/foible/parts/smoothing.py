"""Gradients smoothed over positions: what an attack gains from shifted copies, at no cost."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.errors import InputError, KindError


def gaussian(size: int, like: Tensor) -> Tensor:
    """Return the weights (size,) of a Gaussian that add up to 1.

    size: 2k + 1 positions; the standard deviation is k / sqrt(3), as Dong et al. 2019 choose it.

    >>> gaussian(3, torch.zeros(1)).tolist() == gaussian(3, torch.zeros(1)).flip(0).tolist()
    True
    """
    if size < 1 or size % 2 == 0:
        raise InputError(f"kernel={size}: choose an odd number of positions, 1 for no smoothing")
    reach = size // 2
    away = torch.arange(-reach, reach + 1, dtype=torch.float64)
    sigma = max(reach, 1) / math.sqrt(3)
    weight = torch.exp(-0.5 * (away / sigma) ** 2)
    return (weight / weight.sum()).to(like)


def channels_last(x: Tensor) -> bool:
    """Say whether inputs look like (B, H, W, C): at most 4 in the end, and more before."""
    return x.dim() == 4 and x.shape[3] <= 4 < x.shape[1]


def smooth(grad: Tensor, size: int) -> Tensor:
    """Return gradients convolved with a Gaussian kernel of size x size positions (TI).

    Dong et al. 2019, Eq. 8: the gradient averaged over shifted copies of an image is about the
    convolved gradient. grad: (B, C, H, W), (B, H, W) or, where the last dimension is at most 4
    and the second is more, (B, H, W, C). Beyond the edge there is nothing. size 1 gives the
    gradient itself. Raises KindError for inputs without positions, such as tables (B, D).

    >>> spike = torch.zeros(1, 1, 5, 5)
    >>> spike[0, 0, 2, 2] = 1
    >>> round(float(smooth(spike, 3).sum()), 6)
    1.0
    """
    weight = gaussian(size, grad)
    if grad.dim() not in (3, 4):
        raise KindError(
            f"kernel={size} smooths over the positions of images, (B, C, H, W) or (B, H, W), and "
            f"the inputs have shape {tuple(grad.shape[1:])}: use kernel=1"
        )
    if size == 1:
        return grad
    last = channels_last(grad)
    moved = grad.permute(0, 3, 1, 2) if last else grad
    flat = moved.reshape(-1, 1, *moved.shape[-2:])
    # The kernel is a product: two passes of one dimension do the work of one in two.
    flat = F.conv2d(flat, weight.view(1, 1, size, 1), padding=(size // 2, 0))
    flat = F.conv2d(flat, weight.view(1, 1, 1, size), padding=(0, size // 2))
    flat = flat.view(moved.shape)
    return flat.permute(0, 2, 3, 1) if last else flat
