"""Patches that change the prediction and hide from its explanation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.attacks.base import Attack
from foible.attacks.fragility import mass
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.problem import View
from foible.core.threat import Threat
from foible.explain.activation_maps import grad_cam
from foible.explain.base import Explanation
from foible.explain.moving import map_at
from foible.parts.objectives import CrossEntropy
from foible.parts.searches import Ascent
from foible.parts.threats import Patch


def share_inside(maps: Tensor, where: Tensor) -> Tensor:
    """Return the share (B,) of the mass |map| that lies in a mask (H, W).

    A map that is 0 everywhere names nothing and hides nothing: its share is 1.

    >>> maps = torch.tensor([[[[1.0, -3.0], [0.0, 0.0]]]])
    >>> share_inside(maps, torch.tensor([[False, True], [True, True]])).item()
    0.75
    """
    share = mass(maps)
    inside = (share * where).flatten(1).sum(1)
    return torch.where(share.flatten(1).sum(1) > 0, inside, 1.0)


@dataclass(frozen=True)
class Hidden:
    """The cross-entropy of an attack, less `weight` times the map's share in the patch.

    The map is of the target, or, where there is none, of the class that is predicted now.
    """

    patch: Patch
    explainer: Explanation
    weight: float = 3.0

    @property
    def access(self) -> Access:
        """What the explanation asks of the model."""
        return self.explainer.access

    def __call__(self, view: View) -> Tensor:
        """Return (B,): one forward and one explanation, on the graph where x_adv is."""
        value = CrossEntropy()(view)
        label = view.labels if view.rows.target is None else view.rows.target
        found = map_at(self.explainer, view, label)
        return value - self.weight * share_inside(found, self.patch.where(view.rows))


def fool_map(
    threat: Threat,
    explainer: Explanation | None = None,
    steps: int = 100,
    weight: float = 3.0,
    step: float = 0.1,
) -> Attack:
    """Return the patch that changes the prediction and hides from its map (X2).

    Subramanya et al. 2019: the patch reaches the target (untargeted: leaves the label), while the
    share of Grad-CAM's mass that lies in it becomes small, so that the map of the new class points
    elsewhere. threat: a `Patch`, which says where and how large. explainer: what it hides from,
    any differentiable one; None is Grad-CAM at the last layer that gives maps, which should have
    7 x 7 positions or more; name another by `foible.explain.grad_cam("layer")`. weight: of the
    share, beside the cross-entropy; 0 is a plain patch. step: of the sign steps, as a share of the
    box.

    A patch is fitted to each image. It hides from the explainer that it was made for: ask another
    one, above all one that looks at scores, such as `foible.explain.occlusion`. Departures: the
    cross-entropy counts throughout, where the authors drop it once the target is reached; momentum
    of 0.9 and a random start; the mass is taken in pixels, not in the layer's positions.

    >>> import foible
    >>> net, (x, y) = foible.zoo.load("standard"), foible.zoo.sample()
    >>> found = fool_map(Patch(10, 10, 18, 9), steps=5)(net, x[:4], y[:4])
    >>> bool((found.x[:, :, :18] == x[:4, :, :18]).all())
    True
    """
    explainer = grad_cam() if explainer is None else explainer
    if not isinstance(threat, Patch):
        raise KindError(
            f"{type(threat).__name__} is no patch, and only a place can be hidden: "
            "give foible.parts.threats.Patch(height, width, top, left)"
        )
    if not explainer.differentiable:
        raise InputError(
            f"{type(explainer).__name__} is not differentiable, and the patch follows the map's "
            "gradient: choose another, e.g. foible.explain.grad_cam()"
        )
    if not weight >= 0 or not 0 < step <= 1:
        raise InputError(f"weight={weight}, step={step}: not below 0, and in (0, 1]")
    search = Ascent(steps, None, step, "random", 0.9)
    objective = Hidden(threat, explainer, weight) if weight else CrossEntropy()
    return Attack("fool_map", threat, search, objective)
