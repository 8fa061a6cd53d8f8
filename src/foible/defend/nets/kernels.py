"""Kernel smoothing: neighbouring weights of a convolution made alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.errors import InputError
from foible.defend.marking import marked
from foible.defend.nets.swapping import copied, pick


def kernel_smoothing(
    net: nn.Module, rho: float = 0.5, layers: str | Sequence[str] = "first"
) -> nn.Module:
    """Return a copy whose kernels are smooth (R10, Wang et al. 2020, survey [87]).

    Each weight becomes itself plus rho times the sum of its eight neighbours; beyond the border
    the outermost weights are repeated. The sum is not divided by 1 + 8 rho, so responses grow
    with rho, as in the authors' code. No training follows.

    net: any module with a Conv2d. rho: 0 changes nothing; 0.1, 0.25, 0.5 and 1 in the paper.
    layers: "first" (in the order in which the net declares them; the authors' choice), "all"
    whose kernels have more than one weight, or names.

    Not a defence against whoever knows of it: the copy is a plain net with other weights, and
    `pgd` on it goes through; `breaker("kernel_smoothing")` shows it. What it changes is how the net
    reads high frequencies.

    Raises InputError for a negative rho, a name that is no Conv2d, a kernel of one weight, or a
    weight that a parametrisation computes.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU())
    >>> smooth = kernel_smoothing(net, rho=0.5)
    >>> before, after = (high_frequency_share(n[0].weight).mean() for n in (net, smooth))
    >>> bool(after < before)
    True
    """
    if not rho >= 0:
        raise InputError(f"rho={rho}: the weight of a neighbour is 0 or more")
    net = copied(net, "kernel_smoothing")
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    if layers == "all":
        convs = [m for m in convs if max(m.kernel_size) > 1]
    elif layers != "first":
        convs = pick(net, layers, nn.Conv2d, "kernel_smoothing")
    if not convs:
        raise InputError(f"kernel_smoothing: {type(net).__name__} has no Conv2d to smooth")
    done: list[Tensor] = []
    for conv in convs[:1] if layers == "first" else convs:
        if max(conv.kernel_size) == 1:
            raise InputError("kernel_smoothing: a kernel of one weight has no neighbours")
        if "weight" not in conv._parameters:
            raise InputError(
                "kernel_smoothing: a parametrisation computes this weight, so it cannot be set: "
                "remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        if all(conv.weight is not other for other in done):
            with torch.no_grad():
                conv.weight.copy_(_smoothed(conv.weight, rho))
            done.append(conv.weight)
    return marked(net, "kernel_smoothing")


def _smoothed(weight: Tensor, rho: float) -> Tensor:
    """Return a weight (O, I, h, w) with rho times each entry's eight neighbours added."""
    mask = weight.new_full((1, 1, 3, 3), rho)
    mask[..., 1, 1] = 1
    flat = weight.reshape(-1, 1, *weight.shape[2:])
    # At a border of one, repeating the outermost weight is the symmetric border.
    return F.conv2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), mask).reshape(weight.shape)


def high_frequency_share(weight: Tensor, cut: float = 0.25, grid: int = 32) -> Tensor:
    """Return each kernel's share of energy above a frequency: (O,) in [0, 1].

    weight: (O, I, h, w) of a convolution. Its energy is that of the Fourier transform on `grid` x
    `grid` points, summed over the I input channels; high is what lies further than `cut` cycles a
    pixel from zero (0.5 is the finest stripe). A kernel of one weight has 0.80 at the defaults; a
    kernel of zeros gives NaN.

    Raises InputError for another shape or a cut out of (0, 0.5).

    >>> stripes = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]])
    >>> high_frequency_share(stripes).item() > 0.9 > high_frequency_share(stripes.abs()).item()
    True
    """
    if weight.dim() != 4 or max(weight.shape[2:]) > grid:
        raise InputError(
            f"weight of shape {tuple(weight.shape)}: (O, I, h, w), h and w at most grid={grid}"
        )
    if not 0 < cut < 0.5:
        raise InputError(f"cut={cut}: in cycles a pixel, between 0 and 0.5")
    energy = torch.fft.fft2(weight.detach().double(), s=(grid, grid)).abs().square().sum(1)
    axis = torch.fft.fftfreq(grid, device=weight.device, dtype=torch.float64)
    high = (axis[:, None].square() + axis[None, :].square()).sqrt() > cut
    share: Tensor = (energy * high).sum((1, 2)) / energy.sum((1, 2))
    return share
