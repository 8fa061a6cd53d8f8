"""Maps of a layer's activations: CAM and Grad-CAM, enlarged to the input."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, ModelError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.base import Explanation

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class ActivationMap(Explanation):
    """An explainer that weighs the channels of a layer that gives maps."""

    access = Access.INTERNALS
    verb = "delete"

    @abstractmethod
    def at_layer(self, field: Field, rows: Rows, *, create_graph: bool = False) -> Tensor:
        """Return the map (B, *positions) of the layer's size."""

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """One forward, one backward; the layer's map enlarged, alike in all colours."""
        found = self.at_layer(field, rows, create_graph=create_graph)
        size = rows.shape[1:]
        if found.dim() - 1 != len(size):
            raise InputError(
                f"the layer gives maps of {found.dim() - 1} dimensions and the input has "
                f"{len(size)}: choose a layer with as many, or take the map itself by `layer_map`"
            )
        large = F.interpolate(found[:, None], size, mode=_MODES[len(size)], align_corners=False)
        return large.expand_as(rows.x)

    def layer_map(self, model: Any, x: Tensor, target: Tensor | int | None = None) -> Tensor:
        """Return the map of the layer's own size (B, *positions), e.g. (B, 7, 7); as a call."""
        return _AtLayer(self)(model, x, target)

    @staticmethod
    def _seen(activation: Tensor, layer: str | None) -> None:
        if not 3 <= activation.dim() <= 5:
            raise InputError(
                f"layer {layer!r} gives {tuple(activation.shape[1:])} for a sample, which is no "
                "map: name one that gives (channels, *positions); foible.models.layers_of lists "
                "them"
            )


@dataclass(frozen=True)
class _AtLayer(Explanation):
    """The layer's map for a user, without enlarging it."""

    inner: ActivationMap
    access = Access.INTERNALS

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return the map (B, *positions)."""
        return self.inner.at_layer(field, rows, create_graph=create_graph)


@dataclass(frozen=True)
class GradCam(ActivationMap):
    """The layer's activations, weighted by the mean gradient of each channel (Selvaraju et al.).

    layer: as in `foible.models.layers_of`, None for the last that gives maps. relu: cut negative
    values, as in the paper; the map then names what speaks for the class and has no sign, so that
    it is no direction. Without it the map is signed.
    """

    layer: str | None = None
    relu: bool = True

    @property
    def signed(self) -> bool:  # type: ignore[override]
        """Whether the map has a sign: only where negative values are not cut."""
        return not self.relu

    def at_layer(self, field: Field, rows: Rows, *, create_graph: bool = False) -> Tensor:
        """Return the map (B, *positions)."""
        _, activation, grad = field.at_layer(rows.x, rows, self.layer, create_graph=create_graph)
        self._seen(activation, self.layer)
        weight = grad.flatten(2).mean(2).view(*grad.shape[:2], *[1] * (grad.dim() - 2))
        found = (weight * activation).sum(1)
        return found.clamp(min=0) if self.relu else found


@dataclass(frozen=True)
class Cam(ActivationMap):
    """Class activation maps (Zhou et al. 2016): the head's weights on the last activations.

    For nets that end with the mean over positions and one linear layer; its mean is the logit
    without the bias. Both are checked on every input: other nets raise ModelError. layer: the one
    before the mean, None for the last that gives maps.
    """

    layer: str | None = None

    def at_layer(self, field: Field, rows: Rows, *, create_graph: bool = False) -> Tensor:
        """Return the map (B, *positions); three more forwards check that the head is linear."""
        _, activation, grad = field.at_layer(rows.x, rows, self.layer, create_graph=create_graph)
        self._seen(activation, self.layer)
        flat = grad.flatten(2)
        weight = flat.mean(2, keepdim=True)
        if not _near(flat, weight.expand_as(flat)):
            self._refuse("the head does not take the mean over the positions")
        with torch.no_grad():
            at = rows.x.detach()
            # Of a linear head the scores at a and at -a are as far above as below those at 0.
            here, mirrored, none = (
                field.oracle.scores_with(at, rows, self.layer, partial(torch.mul, other=factor))
                for factor in (1.0, -1.0, 0.0)
            )
        if not _near(here + mirrored, 2 * none):
            self._refuse("the head is not linear")
        weight = weight.view(*grad.shape[:2], *[1] * (grad.dim() - 2))
        return (weight * activation).sum(1) * flat.shape[2]

    def _refuse(self, why: str) -> None:
        raise ModelError(
            "CAM is for nets that end with the mean over positions and one linear layer, and after "
            f"layer {self.layer!r} {why}: name the layer before the mean, or use "
            "foible.explain.grad_cam(), which needs no such head"
        )


def _near(found: Tensor, wanted: Tensor) -> bool:
    """Return whether two tensors agree to half the digits of their largest value."""
    found, wanted = found.detach(), wanted.detach()
    tolerance = torch.finfo(found.dtype).eps ** 0.5
    return bool((found - wanted).abs().max() <= tolerance * found.abs().max().clamp_min(1e-30))


def cam(layer: str | None = None) -> Cam:
    """Return class activation maps (B4, Zhou et al. 2016), for nets with a mean and a linear head.

    >>> import foible, torch
    >>> from torch import nn
    >>> net = nn.Sequential(
    ...     nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ... )
    >>> x = torch.rand(3, 1, 8, 8)
    >>> small = foible.explain.cam().layer_map(net, x, 1)
    >>> small.shape, foible.explain.cam()(net, x, 1).shape
    (torch.Size([3, 6, 6]), torch.Size([3, 1, 8, 8]))
    >>> torch.allclose(small.mean((1, 2)) + net[4].bias[1], net(x)[:, 1], atol=1e-5)
    True
    """
    return Cam(layer)


def grad_cam(layer: str | None = None, relu: bool = True) -> GradCam:
    """Return Grad-CAM (B4, Selvaraju et al. 2017); with relu=False the map is signed.

    layer: a name of `foible.models.layers_of`, None for the last layer that gives maps.
    """
    return GradCam(layer, relu)
