"""Feature noise: how far an attack moves what a layer gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.explain.base import check_inputs
from foible.explain.neurons import given, tapped


@dataclass(frozen=True)
class FeatureNoise:
    """What a layer gives for inputs and for their adversarials; made by `feature_noise`.

    change: (B,) |h(x*) - h(x)| / |h(x)|, Euclidean; NaN where the layer gives zeros for x. clean,
    adversarial: (B, *layer shape), the layer's outputs.
    """

    change: Tensor
    clean: Tensor
    adversarial: Tensor


def feature_noise(model: Any, x: Tensor, x_adv: Tensor, layer: str | None = None) -> FeatureNoise:
    """Return how far a layer's output moves from x to x_adv (S12; survey [23], [25], [58]).

    A change of an input that no one sees grows on its way through a net, and is large in its last
    maps (Xie et al. 2019, who clean it away; `defend.denoising_blocks`). Beside it belongs the same
    figure for random noise of equal size: an adversarial's should be a multiple of it.
    `foible.figures.feature_tiles` draws the maps.

    model: an `nn.Module` or a wrapped one; INTERNALS access. x, x_adv: (B, *shape) float. layer: a
    name of `foible.models.layers_of`; None is the last that gives maps (B, C, H, W). Two forwards a
    sample, in evaluation mode.

    Raises InputError for inputs of two shapes, NaN, no samples, and layers that are not there.

    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False), torch.nn.Flatten())
    >>> x = torch.rand(2, 1, 4, 4)
    >>> feature_noise(net, x, 1.5 * x).change
    tensor([0.5000, 0.5000])
    """
    held = given(model, x)
    check_inputs(x_adv)
    if x.shape != x_adv.shape:
        raise InputError(
            f"x is {tuple(x.shape)} and x_adv {tuple(x_adv.shape)}: the same samples, before and "
            "after the attack"
        )
    oracle = Oracle(held, len(x), Access.INTERNALS)
    with oracle.session(), torch.no_grad():
        (_, clean), (_, moved) = (tapped(oracle, part.detach(), layer) for part in (x, x_adv))
    size = clean.flatten(1).norm(dim=1)
    change = (moved - clean).flatten(1).norm(dim=1) / torch.where(size > 0, size, torch.nan)
    return FeatureNoise(change, clean, moved)
