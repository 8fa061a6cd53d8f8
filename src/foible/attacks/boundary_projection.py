"""Attacks that project onto the boundary of the linearised model: DeepFool and FAB."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foible.attacks.base import Attack
from foible.core.errors import InputError
from foible.core.problem import Closest, View
from foible.core.threat import Threat
from foible.parts.objectives import Margin
from foible.parts.searches.deepfool import DeepFool
from foible.parts.searches.fab import FastBoundary


@dataclass(frozen=True)
class Aimed:
    """The logit of the run's class (`rows.extra["aim"]`) minus the label's; else the margin."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        aim = view.rows.extra.get("aim")
        if aim is None:
            return Margin()(view)
        scores = view.scores
        both = scores.gather(1, aim[:, None]) - scores.gather(1, view.rows.y[:, None])
        return both.squeeze(1)


def deepfool(threat: Threat, steps: int = 50, overshoot: float = 0.02) -> Attack:
    """Return DeepFool: onto the nearest linearised boundary until it is crossed.

    Moosavi-Dezfooli et al. 2016, in L2, Linf and L1. threat: a ball without eps (`L2()`); with one,
    success means found within it. steps: at most so many, 50 in the paper; one costs two forwards
    and ten backwards, one a class (fewer with fewer classes). overshoot: the share by which the
    walk is lengthened.

    Departures: the box cuts each step (in L1 the step is the shortest inside it); the crossing is
    pulled back towards the clean input by four forwards, so that the overshoot costs nothing; a
    target, which the paper does not have, is reached where it beats all ten classes of the
    linearised model. Raises KindError for L0 and for threats without a norm.

    >>> import foible
    >>> foible.attacks.deepfool(foible.L2()).search.steps
    50
    """
    _positive(steps=steps)
    if not 0 <= overshoot < 1:
        raise InputError(f"overshoot={overshoot}: a share of the walk, in [0, 1)")
    search = DeepFool(steps, overshoot)
    return Attack("deepfool", threat, search, Margin(), prefer=Closest(threat))


def fab(threat: Threat, steps: int = 100, restarts: int = 1, stop: str = "never") -> Attack:
    """Return FAB: a walk along the boundary that is drawn towards the original.

    Croce and Hein 2020 (A25), in Linf, L2 and L1, with their alpha 0.1, eta 1.05 and beta 0.9.
    threat: a ball without eps (`L2()`); with one, success means found within it. steps: a
    restart's; one costs one forward and ten backwards, one a class (fewer with fewer classes; with
    more, the ten of the largest scores). restarts: the first starts at the clean input, the others
    at random within half the distance known. stop: "never" or "success", which drops a sample once
    it is found within eps.

    Departures: a point that has crossed is drawn back without a second look at it, which saves a
    forward a step; the first step also looks at the nearest point of all classes inside the box,
    which the walk, whose classes are ranked without the box, may pass by; towards a target the
    projection goes to the common part of all its half-spaces. Raises KindError for L0 and for
    threats without a norm.

    >>> import foible
    >>> foible.attacks.fab(foible.Linf(), steps=20, restarts=2).search.steps
    40
    """
    _positive(steps=steps, restarts=restarts)
    search = FastBoundary(steps * restarts, restarts=restarts)
    return Attack("fab", threat, search, Aimed(), stop=stop, prefer=Closest(threat))


def fab_targeted(
    threat: Threat, steps: int = 100, targets: int = 9, restarts: int = 1, stop: str = "never"
) -> Attack:
    """Return targeted FAB: one run a rival class, each with one backward a step.

    Croce and Hein 2020 (A25), as AutoAttack uses it: 9 targets, 100 steps, stop="success" within
    eps. A run linearises only the difference of its class's logit to the label's, and any wrong
    class counts. threat, steps (a run's), restarts, stop: as in `fab`. targets: the classes of the
    largest clean scores, at most all but the label. Where the caller gives a target, it is `fab`
    towards that target.

    Costs one forward and one backward a step. Departures: as in `fab`.

    >>> import foible
    >>> foible.attacks.fab_targeted(foible.Linf(0.1), 10, targets=3).search.steps
    30
    """
    _positive(steps=steps, targets=targets, restarts=restarts)
    search = FastBoundary(steps * targets * restarts, targets, restarts)
    return Attack("fab_targeted", threat, search, Aimed(), stop=stop, prefer=Closest(threat))


def _positive(**given: int) -> None:
    for name, value in given.items():
        if value < 1:
            raise InputError(f"{name}={value}: must be at least 1")
