"""InfoDrop: outputs over patches that look like their surroundings are dropped while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.errors import InputError, KindError
from foible.defend.marking import marked
from foible.defend.nets.swapping import copied, pick, swap

NEIGHBOURS = 9


class InfoDrop(nn.Module):
    """A convolution, and the drop that follows it in training mode; made by `infodrop`.

    The drop draws from torch's default generator, as nn.Dropout does.
    """

    def __init__(
        self, conv: nn.Conv2d, rate: float, temperature: float, bandwidth: float, radius: int
    ) -> None:
        super().__init__()
        self.conv, self.rate, self.radius = conv, rate, radius
        self.temperature, self.bandwidth = temperature, bandwidth

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution gives, with zeros where it is dropped."""
        out: Tensor = self.conv(x)
        if not self.training:
            return out
        if x.dim() != 4:
            raise KindError(f"infodrop reads batches (B, C, H, W), and got {tuple(x.shape)}")
        keep = torch.rand_like(out) >= self.drop_rates(x, (out.shape[2], out.shape[3]))
        # Not divided by the rate of keeping: hence the epochs without it that follow.
        return out * keep

    @torch.no_grad()
    def drop_rates(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return the chance of each position to be dropped: (B, 1, H, W), off the graph.

        x: (B, C, h, w), what the convolution reads; shape: (H, W) of what it gives.
        """
        likeness = self._likeness(self._patches(x, shape))
        # Self-information is -log likeness, and a position's share of the drops the softmax of
        # minus that over the temperature.
        share = (likeness.clamp_min(1e-30).log() / self.temperature).flatten(1).softmax(1)
        # Departure: where the authors draw rate * H * W positions with replacement, each position
        # is dropped by itself, with the chance that such draws hit it.
        rates = 1 - (1 - share) ** (self.rate * shape[0] * shape[1])
        return rates.reshape(-1, 1, *shape)

    def _patches(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return the input patch of each output position, (B, C * h * w, H, W)."""
        conv = self.conv
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        step, gap = conv.stride, conv.dilation
        size = conv.kernel_size
        flat = F.unfold(x, (size[0], size[1]), dilation=(gap[0], gap[1]), stride=(step[0], step[1]))
        return flat.reshape(len(x), -1, *shape)

    def _likeness(self, patches: Tensor) -> Tensor:
        """Return how alike each patch is to some of its neighbours, (B, H, W) in (0, 1]."""
        height, width = patches.shape[2:]
        reach = self.radius
        around = F.pad(patches, [reach] * 4)
        inside = F.pad(patches.new_ones(height, width), [reach] * 4)
        side = 2 * reach + 1
        order = torch.randperm(side * side - 1)[:NEIGHBOURS].tolist()
        apart, there = [], []
        for place in order:
            place += place >= side * side // 2  # the middle is the patch itself
            top, left = place // side, place % side
            here = (..., slice(top, top + height), slice(left, left + width))
            apart.append((patches - around[here]).square().sum(1))
            there.append(inside[here])
        distance, known = torch.stack(apart, 1), torch.stack(there)
        # Of each sample by itself, so that no image's drops depend on its neighbours in the batch.
        typical = (distance * known).sum((1, 2, 3)) / known.sum().clamp_min(1)
        scale = 2 * self.bandwidth**2 * typical.clamp_min(1e-12)
        like = (-distance / scale[:, None, None, None]).exp() * known
        count = known.sum(0)
        mean = like.sum(1) / count.clamp_min(1)
        # A corner whose sampled neighbours all lie outside is as its image is.
        others = mean.sum((1, 2)) / (count > 0).sum().clamp_min(1)
        return torch.where(count > 0, mean, others[:, None, None])


def infodrop(
    net: nn.Module,
    layers: Sequence[str] | None = None,
    rate: float = 1.5,
    temperature: float = 0.03,
    bandwidth: float = 1.0,
    radius: int = 3,
) -> nn.Module:
    """Return a copy that drops texture while it trains (R8, Shi et al. 2020, survey [55]).

    A patch that looks like the patches around it tells little. Its self-information is
    I = -log mean exp(-|p - p'|^2 / (2 bandwidth^2)), over 9 random ones of the patches within
    `radius` positions, with distances in units of their mean. Outputs of the convolution over a
    patch are dropped in proportion to exp(-I / temperature): edges stay, flat or repeated texture
    goes. Active in training mode only: train the copy, take the drop out with `plain_again`, and
    train some epochs without it.

    layers: names of Conv2d modules; None is the first half of them. rate: how many drops are drawn
    for each output position. temperature: the lower, the more the drops gather on the flattest
    patches.

    It moves what a net looks at; it is no defence against an attack by itself: nothing of it is
    left in evaluation mode, and `pgd` at an ordinary eps goes through; `breaker("infodrop")` shows
    it.

    Raises InputError for numbers that are not positive and names that are no Conv2d.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 8))
    >>> dropping = infodrop(net, ["0"])
    >>> x = torch.zeros(1, 1, 8, 8)
    >>> bool((dropping[:2](x) == 0).float().mean() > 0.5)  # all flat
    True
    >>> bool((dropping.eval()[:2](x) == net[:2](x)).all())
    True
    """
    if min(rate, temperature, bandwidth, radius) <= 0:
        raise InputError(
            f"rate={rate}, temperature={temperature}, bandwidth={bandwidth}, radius={radius}: "
            "all above 0"
        )
    net = copied(net, "infodrop")
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    if layers is None:
        layers_of = convs[: (len(convs) + 1) // 2]
        if not convs:
            raise InputError(f"infodrop: {type(net).__name__} has no Conv2d to drop after")
    else:
        layers_of = pick(net, layers, nn.Conv2d, "infodrop")

    def new(module: nn.Module) -> nn.Module | None:
        if not any(module is conv for conv in layers_of):
            return None
        assert isinstance(module, nn.Conv2d)
        return InfoDrop(module, rate, temperature, bandwidth, radius).train(module.training)

    return marked(swap(net, new)[0], "infodrop")


def plain_again(net: nn.Module) -> nn.Module:
    """Return a copy without the drops of `infodrop`: the class and the names of before.

    Raises InputError where there are none.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3))
    >>> list(plain_again(infodrop(net)).state_dict()) == list(net.state_dict())
    True
    """
    net, found = swap(copied(net, "plain_again"), _conv)
    if not found:
        raise InputError(f"plain_again: {type(net).__name__} has no drops that infodrop put there")
    return net


def _conv(module: Any) -> nn.Module | None:
    return module.conv if isinstance(module, InfoDrop) else None
