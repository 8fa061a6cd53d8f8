"""Texture or shape: what a net reads, by images without the one or the other, and by its maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows
from foible.core.threat import Box
from foible.explain.base import as_labels
from foible.explain.neurons import given
from foible.parts.transforms import images


def saturated(x: Tensor, p: float, bounds: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Return inputs whose values are driven to the ends of the box: shape stays, texture goes (L2).

    With v in [0, 1], sign(2v - 1) |2v - 1|^(2/p) / 2 + 1/2 (Zhang and Zhu 2019). x: (B, *shape) in
    bounds. p: 2 gives x back, larger saturates, infinity leaves two values, and below 2 pales.

    Raises InputError for a p that is not positive.

    >>> saturated(torch.tensor([[0.0, 0.4, 0.5, 1.0]]), math.inf)
    tensor([[0.0000, 0.0000, 0.5000, 1.0000]])
    """
    if not p > 0:
        raise InputError(f"p={p}: above 0; 2 changes nothing, infinity leaves two values")
    box = Box(*bounds)
    middle = 2 * (x - box.low) / box.width - 1
    return box.low + box.width * (middle.sign() * middle.abs() ** (2 / p) / 2 + 0.5)


def patch_shuffled(x: Tensor, k: int, draw: Draw) -> Tensor:
    """Return images cut into k x k patches that are put in random order: texture stays (L2).

    x: (B, C, H, W), H and W divisible by k. draw: bound to the rows; each image has an order of its
    own. Nothing but the places of the pixels changes (Zhang and Zhu 2019).

    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> moved = patch_shuffled(x, 2, Rng(0).at(torch.tensor([0])))
    >>> bool((moved.flatten().sort().values == x.flatten()).all())
    True
    """
    height, width = images(x, "patch_shuffled")
    if k < 1 or height % k or width % k:
        raise InputError(f"k={k} does not cut {height} x {width} pixels into k x k equal patches")
    order = draw.uniform((k * k,), torch.float64).argsort(1).to(x.device)
    tall, wide = height // k, width // k
    flat = F.unfold(x, (tall, wide), stride=(tall, wide))  # (B, C * tall * wide, k * k)
    moved = flat.gather(2, order[:, None].expand_as(flat))
    return F.fold(moved, (height, width), (tall, wide), stride=(tall, wide))


@dataclass(frozen=True)
class TextureOrShape:
    """Accuracies in [0, 1] of n images: as they are, without texture, without shape.

    clean, saturated, shuffled: the three. p, k: how far it went.
    """

    clean: float
    saturated: float
    shuffled: float
    p: float
    k: int
    n: int

    @property
    def texture_lost(self) -> float:
        """The share of the clean accuracy that goes with the texture; NaN where there is none."""
        return 1 - self.saturated / self.clean if self.clean else math.nan

    @property
    def shape_lost(self) -> float:
        """The share of the clean accuracy that goes with the shape; NaN where there is none."""
        return 1 - self.shuffled / self.clean if self.clean else math.nan


def texture_or_shape(
    model: Any, x: Tensor, y: Tensor, p: float = 1024.0, k: int = 4, seed: int = 0
) -> TextureOrShape:
    """Return what a model's accuracy is without texture and without shape (L2; survey [54], [62]).

    The two changes are made to the input, before the model's own preprocessing. A net that reads
    shapes loses less by `saturated` and more by `patch_shuffled` (Zhang and Zhu 2019, who find that
    of nets trained on adversarials). model: LABELS access is enough. x: (B, C, H, W) in the model's
    bounds; y: (B,) labels. Three forwards a sample.

    Raises InputError for no samples, and for a k that does not divide the image.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> found = texture_or_shape(foible.zoo.load("standard"), x[:100], y[:100])
    >>> found.clean > found.saturated and found.clean > found.shuffled
    True
    """
    held, labels = given(model, x), as_labels(x, y)
    assert labels is not None
    ids = torch.arange(len(x))
    versions = (
        x,
        saturated(x, p, held.bounds),
        patch_shuffled(x, k, Rng(seed).at(ids)),
    )
    oracle, rates = Oracle(held, len(x), Access.LABELS), []
    with oracle.session(seed):
        for version in versions:
            hits = 0
            for part in ids.to(x.device).split(oracle.chunk(x)):
                rows = Rows(part, part, version[part], labels[part])
                hits += int((oracle.labels(rows.x, rows) == labels[part]).sum())
            rates.append(hits / len(x))
    clean, flat, moved = rates
    return TextureOrShape(clean, flat, moved, p, k, len(x))


def edges(x: Tensor) -> Tensor:
    """Return how steep an image is at each pixel, (B, H, W): Sobel's two filters, all channels.

    x: (B, C, H, W).
    """
    images(x, "edges")
    across = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    both = torch.stack([across, across.T])[:, None]
    flat = F.pad(x, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    steep = F.conv2d(flat, both).square().sum(1)
    return steep.view(x.shape).sum(1).sqrt()


def edge_alignment(maps: Tensor, x: Tensor, share: float = 0.2) -> Tensor:
    """Return which share of a map lies on the edges of its image: (B,) in [0, 1] (L2).

    Edges are the pixels, `share` of them, where Sobel's filters find the image steepest; the map
    counts by its absolute values, summed over channels. By chance it is `share`; NaN for a map of
    zeros. maps, x: (B, C, H, W); the map's channels may be others.

    Departure: Zhang and Zhu (2019) compare maps by eye; this and `gini` put a number to it.

    >>> x = torch.zeros(1, 1, 6, 6)
    >>> x[..., 3:] = 1
    >>> edge_alignment(edges(x)[:, None], x, 1 / 3).item()
    1.0
    """
    if maps.dim() != 4 or len(maps) != len(x) or maps.shape[2:] != x.shape[2:]:
        raise InputError(
            f"maps are {tuple(maps.shape)} for images {tuple(x.shape)}: one map (C, H, W) an image"
        )
    if not 0 < share < 1:
        raise InputError(f"share={share}: of the pixels that count as edges, in (0, 1)")
    steep, mass = edges(x).flatten(1), maps.detach().abs().sum(1).flatten(1)
    most = steep.topk(max(1, round(share * steep.shape[1])), 1).indices
    return mass.gather(1, most).sum(1) / mass.sum(1)


def gini(maps: Tensor) -> Tensor:
    """Return how unevenly a map is spread: (B,) in [0, 1), 0 if all are equal in size (L2).

    The Gini coefficient of the absolute values; one pixel alone has 1 - 1/n; NaN for zeros.

    >>> gini(torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 5.0, 0.0]]))
    tensor([0.0000, 0.7500])
    """
    sizes = maps.detach().abs().flatten(1).sort(1).values
    n = sizes.shape[1]
    place = torch.arange(1, n + 1, device=maps.device, dtype=sizes.dtype)
    return ((2 * place - n - 1) * sizes).sum(1) / (n * sizes.sum(1))
