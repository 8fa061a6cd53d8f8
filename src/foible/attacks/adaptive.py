"""Attacks that adapt their step: APGD, on one loss or towards one class after another."""

from __future__ import annotations

from foible.attacks.base import Attack, needs_eps
from foible.attacks.rivals import Rivals
from foible.core.errors import InputError
from foible.core.problem import Objective
from foible.core.threat import Threat
from foible.parts.objectives import EachRival, Nearest, objective
from foible.parts.searches import APGD
from foible.parts.threats import L1

_named = objective


def apgd(
    threat: Threat,
    steps: int = 100,
    objective: str | Objective = "cross_entropy",
    restarts: int = 1,
    stop: str = "never",
) -> Attack:
    """Return Auto-PGD: no step size to choose (A25, Croce and Hein 2020).

    Momentum .75 and a step of 2 eps that is halved, from the best point, at checkpoints where
    less than three quarters of the steps paid. In L1 the sparse step of Croce and Hein 2021: few
    features move, their share adapts, and the first 60 % of the steps search balls of 3 and 2
    eps; in between a success is not one, so a stop comes late. threat: Linf, L2 or L1 with eps, in
    the input's units. steps: gradients a restart, 100 in the paper. objective: "cross_entropy",
    "dlr" (three classes or more), "margin", "nearest" or a callable. restarts: random starts; on
    the margin each later one aims at another class. stop: "never" runs all steps of all restarts
    and keeps the strongest point; "success" ends a sample at its first one, so that restarts run
    on survivors, as in AutoAttack.

    Departures: the published code evaluates one gradient more (of the last point), which nothing
    follows; L2 projects onto ball and box together, where that code scales and then cuts, which
    leaves part of eps unused.

    Raises InputError without eps and for "dlr" on two classes, KindError for another threat.

    >>> import foible
    >>> foible.attacks.apgd(foible.Linf(0.1)).search.steps
    100
    """
    search, chosen = APGD(steps, widen=isinstance(threat, L1)), _named(objective)
    return Attack(
        "apgd", needs_eps(threat), search, chosen, stop=stop, restarts=restarts,
        prepare=Rivals(threat) if isinstance(chosen, Nearest) else None,
    )  # fmt: skip


def apgd_targeted(
    threat: Threat,
    steps: int = 100,
    targets: int = 9,
    objective: str = "dlr",
    stop: str = "success",
) -> Attack:
    """Return APGD towards each of the likeliest other classes (A25, Croce and Hein 2020).

    AutoAttack's APGD-T: one run for each of the `targets` other classes of the largest clean
    scores, 9 as published. Success is any label but the true one. threat, steps: as in `apgd`.
    objective: "dlr", which needs four classes, or "margin". stop: "success" runs each class on the
    samples that still stand, "never" runs all classes and keeps the strongest point.

    With fewer other classes than targets the runs left over are fresh starts at the same classes.
    With target= all runs go for that class.

    Raises InputError without eps, for another objective and for "dlr" on fewer than four classes.

    >>> import foible
    >>> foible.attacks.apgd_targeted(foible.Linf(0.1)).restarts
    9
    """
    if objective not in ("dlr", "margin"):
        raise InputError(f"objective is {objective!r}: choose 'dlr' or 'margin'")
    search = APGD(steps, widen=isinstance(threat, L1))
    return Attack(
        "apgd_targeted", needs_eps(threat), search, EachRival(objective), stop=stop,
        restarts=targets,
    )  # fmt: skip
