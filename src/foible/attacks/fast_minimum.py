"""Fast minimum-norm attacks: FMN in four norms and DDN in L2."""

from __future__ import annotations

from foible.attacks.base import Attack
from foible.attacks.rivals import Rivals
from foible.core.errors import KindError
from foible.core.problem import Closest
from foible.core.search import Search
from foible.core.threat import Threat
from foible.parts.objectives import Nearest
from foible.parts.searches.ddn import Decoupled
from foible.parts.searches.fmn import FastMinimum, Pace


def fmn(threat: Threat, steps: int = 200, pace: Pace | None = None) -> Attack:
    """Return FMN: the smallest change by a ball for each sample that shrinks on success.

    Pintor et al. 2021 (S2), in Linf, L2, L1 and L0. threat: a ball; without eps, e.g. `L2()`, the
    smallest change is sought; with one, a sample is done once it is fooled inside it. steps: one
    forward and one backward each. pace: lengths of the moves and changes of the radius; None is
    the norm's own (`foible.parts.searches.fmn.PACES`).

    Departures. A move is a share of the sample's radius, not of the unit, so that optima of any
    size are met. The shares fall geometrically from many radii to a thousandth: long moves keep
    nothing but the gradient and find other valleys, short ones settle. In Linf moves turn from
    the sign to the gradient, in L0 a feature counts by slope times room. The first radius grows
    by half a step at most; towards the end a radius that keeps winning falls faster and faster.
    Untargeted, the loss aims at the nearest class, measured once (one forward, ten backwards).
    In L0 up to ten last steps take features out again (13 forwards, one backward each).

    Raises KindError for threats that are no norm ball.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> result = fmn(foible.L2(), 50)(foible.zoo.load("standard"), x[:8], y[:8])
    >>> result.success.all().item(), bool(result.distance.median() < 0.6)
    (True, True)
    """
    return minimum("fmn", threat, FastMinimum(steps, pace))


def ddn(threat: Threat, steps: int = 200, pace: Pace | None = None) -> Attack:
    """Return DDN: direction from the gradient, length from a radius that follows success.

    Rony et al. 2019 (S2), in L2. threat, steps, pace: as in `fmn`, of which it differs in one
    thing: once a sample has been fooled, every point lies on the sphere of its radius, not in
    the ball.

    Departures, beside those of `fmn`: the margin to the nearest class replaces cross-entropy; the
    first radius is a linear estimate instead of 1; the change of the radius decays; the length is
    that of the change inside the box, where the paper cuts after scaling.

    Raises KindError for other norms.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> result = ddn(foible.L2(), 50)(foible.zoo.load("standard"), x[:8], y[:8])
    >>> result.success.all().item(), bool(result.distance.median() < 0.6)
    (True, True)
    """
    only("l2", threat, "ddn")
    return minimum("ddn", threat, Decoupled(steps, pace))


def minimum(name: str, threat: Threat, search: Search) -> Attack:
    """Return a minimum-norm attack that aims at the nearest class; with an eps it stops there."""
    stop = "never" if getattr(threat, "eps", None) is None else "success"
    return Attack(
        name, threat, search, Nearest(), stop=stop, prefer=Closest(threat), prepare=Rivals(threat)
    )


def only(norm: str, threat: Threat, name: str) -> None:
    """Refuse threats of another norm."""
    if getattr(threat, "norm", None) != norm:
        raise KindError(
            f"{name} works in {norm.upper()} and got {type(threat).__name__}: pass "
            f"foible.{norm.upper()}(), or use foible.attacks.fmn, which takes any norm ball"
        )
