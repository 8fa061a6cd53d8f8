"""Guided backpropagation and DeepLIFT: the gradient under another rule for nonlinearities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.errors import ModelError
from foible.core.explainer import Field
from foible.core.oracle import slope
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.rules import Point, Pool, Ruled, pulled, scaled
from foible.models.functions import Call

# Below this difference of its inputs a kinked function has the slope at x, as in captum.
_SAME = 1e-10
_RELUS = ("relu", "clipped", "soft")


def _guided(grad: Tensor) -> Tensor:
    return grad.clamp(min=0)


def _guided_slope(grad: Tensor, factor: Tensor) -> Tensor:
    return grad.clamp(min=0) * factor


@dataclass(frozen=True)
class GuidedBackprop(Ruled):
    """The gradient, of which every ReLU lets pass the positive part only (Springenberg et al.).

    ReLUs with a ceiling and softplus count as ReLUs; other activations keep their slope. Sixt et
    al. 2020 show that the map hardly depends on the layers above: it sharpens pictures and
    explains little.
    """

    who = "guided backpropagation"
    strict = False

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """One forward, one backward; with create_graph two of each."""
        return self.gradient(field, rows, create_graph=create_graph)

    def activation(self, call: Call, point: Point, *, create_graph: bool) -> Tensor:
        """Cut negative gradients at ReLUs."""
        x, at, _ = point
        if create_graph:
            factor = slope(call.fn, at, create_graph=True)
            rule = _guided_slope if call.kind in _RELUS else scaled
            return pulled(x, call.fn(at.detach()), rule, factor)
        out = call.fn(x)
        return pulled(out, out.detach(), _guided) if call.kind in _RELUS else out

    def check(self, kinds: set[str]) -> None:
        """Refuse a net whose activations are all of other kinds: nothing would be guided."""
        if kinds and not kinds & set(_RELUS):
            raise ModelError(
                "guided backpropagation changes ReLUs, and the net has other activations only, so "
                "its map would be the plain gradient: use foible.explain.saliency()"
            )


@dataclass(frozen=True)
class DeepLift(Ruled):
    """Differences from a baseline, shared out layer by layer: the rescale rule (Shrikumar et al.).

    baseline: one number for b. Every activation has the slope (f(a) - f(b)) / (a - b), every
    maximum is shared as captum shares it, so the map sums to F(x) - F(b). Products of two
    activations (attention, gates, softmax) have no such rule and are refused.
    """

    baseline: float = 0.0
    additive = True
    verb = "delete"
    who = "DeepLIFT"
    forwards = 2

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Two forwards, one backward; with create_graph one more of each."""
        return (rows.x - self.baseline) * self.gradient(field, rows, create_graph=create_graph)

    def reference(self, x: Tensor) -> Tensor:
        """Return the baselines."""
        return torch.full_like(x.detach(), self.baseline)

    def activation(self, call: Call, point: Point, *, create_graph: bool) -> Tensor:
        """Share a difference of outputs out over that of inputs."""
        x, at, base = point
        assert base is not None
        out, away = call.fn(at), at - base
        # A smooth function's quotient loses digits long before its slope in the middle does.
        smooth = call.kind in ("smooth", "soft")
        near = away.abs() < (torch.finfo(away.dtype).eps ** (1 / 3) if smooth else _SAME)
        factor = (out - call.fn(base)) / torch.where(near, 1.0, away)
        if bool(near.any()):
            middle = (at + base) / 2 if smooth else at
            factor = torch.where(near, slope(call.fn, middle, create_graph=create_graph), factor)
        return pulled(x, out.detach(), scaled, factor if create_graph else factor.detach())

    def maximum(self, pool: Pool, point: Point) -> Tensor:
        """Share a difference of maxima out over the two places that hold them."""
        x, at, base = point
        assert base is not None
        out, places = pool(at)
        out_base, places_base = pool(base)
        away, high = at - base, torch.maximum(out, out_base)
        near = away.abs() < _SAME
        safe = torch.where(near, 1.0, away)

        def pull(grad: Tensor, rise: Tensor, fall: Tensor, safe: Tensor) -> Tensor:
            shared = pool.back(grad * rise, places, safe) + pool.back(
                grad * fall, places_base, safe
            )
            return torch.where(near, pool.back(grad, places, safe), shared / safe)

        needs = (high - out_base, out - high, safe)
        return pulled(x, out.detach(), pull, *needs)


def guided_backprop() -> GuidedBackprop:
    """Return guided backpropagation (Springenberg et al. 2015).

    >>> import foible, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> foible.explain.guided_backprop()(net, torch.rand(5, 3), 1).shape
    torch.Size([5, 3])
    """
    return GuidedBackprop()


def deep_lift(baseline: float = 0.0) -> DeepLift:
    """Return DeepLIFT by the rescale rule (Shrikumar et al. 2017); the map sums to F(x) - F(b).

    >>> import foible, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(5, 3)
    >>> gap = (net(x) - net(0 * x))[:, 1]
    >>> bool(torch.allclose(foible.explain.deep_lift()(net, x, 1).sum(1), gap, atol=1e-5))
    True
    """
    return DeepLift(baseline)
