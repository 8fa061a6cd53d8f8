"""Feature denoising: blocks between a net's layers that average what the layers give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.errors import InputError, KindError
from foible.defend.nets.swapping import copied, pick, swap
from foible.models.holding import wrap

KINDS = ("nonlocal", "dot", "mean", "median")


class DenoisingBlock(nn.Module):
    """x + norm(conv1x1(denoise(x))) of maps (B, C, H, W); the identity until it is trained.

    kind: "nonlocal", "dot", "mean" or "median"; see `denoising_blocks`.
    """

    def __init__(self, channels: int, kind: str, generator: torch.Generator) -> None:
        super().__init__()
        self.kind = kind
        inner = max(1, channels // 2)

        def pointwise(into: int) -> nn.Conv2d:
            conv = nn.utils.skip_init(nn.Conv2d, channels, into, 1, bias=False)
            with torch.no_grad():
                conv.weight.normal_(0, 0.01, generator=generator)
            assert isinstance(conv, nn.Conv2d)
            return conv

        if kind in ("nonlocal", "dot"):
            self.theta, self.phi = pointwise(inner), pointwise(inner)
        self.conv, self.norm = pointwise(channels), nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of x's shape."""
        out: Tensor = x + self.norm(self.conv(self.denoised(x)))
        return out

    def denoised(self, x: Tensor) -> Tensor:
        """Return the average of each position's surroundings, of x's shape."""
        if self.kind == "mean":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        if self.kind == "median":
            # Beyond the border the outermost values are repeated.
            windows = F.pad(x, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
            middle: Tensor = windows.flatten(4).median(4).values
            return middle
        places = x.flatten(2)  # (B, C, N)
        asked, held = self.theta(x).flatten(2), self.phi(x).flatten(2)
        alike = asked.transpose(1, 2) @ held  # (B, N, N)
        if self.kind == "nonlocal":
            weights = (alike / asked.shape[1] ** 0.5).softmax(2)
        else:
            weights = alike / alike.shape[2]
        mean: Tensor = (places @ weights.transpose(1, 2)).view_as(x)
        return mean


class Denoised(nn.Module):
    """A layer and the block that cleans what it gives."""

    def __init__(self, layer: nn.Module, block: DenoisingBlock) -> None:
        super().__init__()
        self.layer, self.block = layer, block

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's maps, denoised."""
        out: Tensor = self.block(self.layer(*args, **kwargs))
        return out


def denoising_blocks(
    net: nn.Module, x: Tensor, after: Sequence[str], kind: str = "nonlocal", seed: int = 0
) -> nn.Module:
    """Return a copy with denoising blocks after some layers (N4, Xie et al. 2019, survey [25]).

    A block adds norm(conv1x1(denoise(y))) to the maps y (B, C, H, W) that a layer gives. The norm
    begins at zero, so the copy gives what the net gives until it is trained. Train it on
    adversarials (`adversarial(pgd(...))`): the published gain is one of adversarial training.
    Trained on clean images, the blocks are no defence, and `pgd` goes through them: they are
    differentiable.

    x: (B, *shape), any input of the net: one sample is run to see how many maps each layer gives.
    after: names of layers, as in `named_modules`; in the copy, layer `a` is `a.layer` and its block
    `a.block`. kind: what averages: "nonlocal", all positions, weighted by softmax(theta(y)^T
    phi(y) / sqrt(d)); "dot", the same products divided by their count, cheaper; "mean" and
    "median", of 3 x 3. seed: of the first weights, normal with a deviation of 0.01.

    Departure: the embeddings have no bias, and the paper's bilateral filter is left out.

    Raises InputError for names that are not there, run several times, or give no maps.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> x = torch.rand(2, 1, 8, 8)
    >>> clean = denoising_blocks(net, x, after=["1"])
    >>> bool((clean.eval()(x) == net(x)).all()), type(clean[1].block).__name__
    (True, 'DenoisingBlock')
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: choose {', '.join(KINDS)}")
    if x.dim() < 2 or len(x) == 0:
        raise KindError("x is a batch of the net's inputs, (B, *shape), with one sample at least")
    net = copied(net, "denoising_blocks")
    layers = pick(net, after, nn.Module, "denoising_blocks")
    model, generator = wrap(net), torch.Generator().manual_seed(seed)
    blocks: dict[int, nn.Module] = {}
    for name, layer in zip(
        dict.fromkeys([after] if isinstance(after, str) else after), layers, strict=True
    ):
        shape = model.run_of(x, name).shape
        if shape is None or len(shape) != 3:
            given = "no tensor" if shape is None else f"(B, {', '.join(map(str, shape))})"
            raise InputError(
                f"denoising_blocks: layer {name!r} gives {given}, and a block averages maps "
                "(B, C, H, W): name a convolution, its norm or its activation"
            )
        block = DenoisingBlock(shape[0], kind, generator).to(x.device, x.dtype)
        blocks[id(layer)] = Denoised(layer, block).train(layer.training)

    def new(module: nn.Module) -> nn.Module | None:
        return blocks.get(id(module))

    return swap(net, new)[0]
