"""Attacks that change few features: sigma-zero and JSMA. A feature is one value, not one pixel."""

from __future__ import annotations

from dataclasses import replace

from foible.attacks.base import Attack
from foible.attacks.fast_minimum import minimum, only
from foible.core.errors import InputError
from foible.core.threat import Threat
from foible.parts.searches.jsma import SaliencyPairs, Weighted
from foible.parts.searches.sigma_zero import SigmaZero


def sigma_zero(threat: Threat, steps: int = 300) -> Attack:
    """Return a sparse attack in the manner of sigma-zero: a smooth count and a threshold.

    Cinà et al. 2024 (S2), in L0. threat: `L0()` for the fewest features, or `L0(20)`: a sample is
    done once fooled by at most 20. steps: one forward and one backward each; up to ten last ones
    take features out again instead (13 forwards, one backward each).

    Departures. Slopes are multiplied by the room that the box leaves; the two gradients are
    brought to one size before they are added; the first step is four widths of the box, the
    threshold moves by 2 % of a step, not 1 %; untargeted, the loss aims at the nearest class.
    On hardened nets `fmn` in L0 finds sparser changes still.

    Raises KindError for other norms.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> result = sigma_zero(foible.L0(), 60)(foible.zoo.load("standard"), x[:8], y[:8])
    >>> result.success.all().item(), bool(result.distance.median() <= 12)
    (True, True)
    """
    only("l0", threat, "sigma_zero")
    return minimum("sigma_zero", threat, SigmaZero(steps))


def jsma(threat: Threat, steps: int = 200, theta: float = 1.0, gamma: float = 1.0) -> Attack:
    """Return JSMA: a pair of features a step, chosen by the saliency map of the target.

    Papernot et al. 2016 (S2), in L0. threat: `L0()` or `L0(20)`, as in `sigma_zero`. steps: pairs
    at most, and rounds of pruning; two forwards and two backwards a pair. theta: how far a feature
    moves at once, in widths of the box. gamma: the largest share of features that may change,
    0.145 in the paper.

    A pair must raise the target and lower the sum of all other logits, and the product decides;
    where no pair does, the best single feature moves. Departures: untargeted, the nearest
    class is the target; a feature may rise or fall, whichever helps, but not back; pairs
    come from the 64 best features; where none is left, a second try lowers the label alone; at
    the end ten rounds take features out again.

    Raises KindError for other norms, InputError for theta or gamma outside (0, 1].

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> result = jsma(foible.L0())(foible.zoo.load("standard"), x[:8], y[:8])
    >>> result.success.all().item(), bool(result.distance.median() <= 16)
    (True, True)
    """
    only("l0", threat, "jsma")
    for name, share in (("theta", theta), ("gamma", gamma)):
        if not 0 < share <= 1:
            raise InputError(f"{name}={share}: a share, larger than 0 and at most 1")
    made = minimum("jsma", threat, SaliencyPairs(steps, theta, gamma))
    return replace(made, objective=Weighted())
