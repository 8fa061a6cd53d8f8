"""Attacks that see scores only. A query is a forward of one sample; their number is capped.

In all of them `queries` is the most that a sample may cost, the clean look and the verification
of the result included, and stop="success" is the default, as where queries are paid for.
"""

from __future__ import annotations

from foible.attacks.base import Attack, needs_eps
from foible.core.errors import InputError
from foible.core.problem import Closest, Objective
from foible.core.threat import Threat
from foible.parts.objectives import objective as named
from foible.parts.searches.estimates import EstimatedAscent
from foible.parts.searches.simba import Simba
from foible.parts.searches.square import SquareSearch


def square(
    threat: Threat,
    queries: int = 5000,
    p: float = 0.8,
    objective: str | Objective = "margin",
    stop: str = "success",
    restarts: int = 1,
    redraw: bool = False,
) -> Attack:
    """Return the square attack: random search by windows of a shrinking size (A25).

    Andriushchenko et al. 2020, in Linf and L2; in L1 after Croce and Hein 2021. queries: the most
    forwards a sample may cost; the published schedule of window sizes is rescaled to them.
    p: the share of the picture that a window covers at first, in (0, 1]. objective: "margin",
    "cross_entropy", "dlr" or a callable. stop: "success" drops a sample once it is fooled;
    "never" goes on to the largest objective. restarts: they share the queries.

    Any shape is attacked: (C, H, W), (H, W), or a table (D,), which is a picture of one row.
    Departures: windows reach the last row and column; every sample draws its own; a proposal in
    Linf that changes nothing (three of ten) is not asked, but counts among the proposals, so that
    fewer queries than allowed are spent on the same search. redraw=True replaces it, spends
    them all and is stronger for it.

    Raises InputError for a threat without eps, p out of range or fewer than 4 queries a restart;
    KindError for a threat that is no ball in Linf, L2 or L1.

    >>> import foible
    >>> attack = foible.attacks.square(foible.Linf(0.1), queries=1000)
    >>> attack.cap, attack.access.name, attack.stop
    (1000, 'SCORES', 'success')
    """
    if not 0 < p <= 1:
        raise InputError(f"p={p}: the share of the picture that a window covers lies in (0, 1]")
    search = SquareSearch(_share(queries, restarts, 2) - 1, p, redraw)
    return Attack(
        "square", needs_eps(threat), search, named(objective), stop=stop, restarts=restarts,
        cap=queries,
    )  # fmt: skip


def nes(
    threat: Threat,
    queries: int = 5000,
    samples: int = 50,
    sigma: float = 0.001,
    step: float | None = None,
    momentum: float = 0.9,
    objective: str | Objective = "margin",
) -> Attack:
    """Return the NES attack: steepest steps along a gradient estimated by Gaussian probes.

    Ilyas et al. 2018. queries: the most forwards a sample may cost. samples: probes a step, in
    pairs of opposite ones. sigma: their size, a share of the box's width. step: absolute
    length; None is 0.2 eps, the paper's 0.01 at 0.05. It is halved whenever the objective is
    lower than five steps before, as in the authors' code. momentum: of the estimate. objective:
    "margin" (the paper takes the cross-entropy), or another. A sample stops once it is fooled.

    Departure: probes are projected into the threat, so that each may be the answer. At an end of
    the box or of the ball the estimate of a value is half as long for it. Raises InputError for
    a threat without eps or numbers out of range.

    >>> import foible
    >>> foible.attacks.nes(foible.Linf(0.1), queries=1000).search.steps
    20
    """
    _positive(samples=samples - 1, sigma=sigma, step=1.0 if step is None else step)
    if not 0 <= momentum < 1:
        raise InputError(f"momentum={momentum}: the share of the old estimate lies in [0, 1)")
    steps, last = _steps(queries, samples)
    search = EstimatedAscent(steps, samples, last, sigma, step, momentum=momentum)
    return Attack(
        "nes", needs_eps(threat), search, named(objective), stop="success", cap=queries
    )  # fmt: skip


def spsa(
    threat: Threat,
    queries: int = 5000,
    samples: int = 128,
    delta: float = 0.01,
    step: float | None = None,
    objective: str | Objective = "margin",
) -> Attack:
    """Return the SPSA attack: Adam along a gradient estimated by random signs (A23).

    Uesato et al. 2018. queries: the most forwards a sample may cost. samples: probes a step, in
    pairs of opposite ones. delta: their size, a share of the box's width. step: Adam's
    learning rate, absolute; None is 0.3 eps a value in Linf, near the paper's 0.01 at 8/255, and
    in L2 and L1 the change of all values that is as long. objective: the margin is the paper's.
    A sample stops once it is fooled.

    Raises InputError for a threat without eps or numbers out of range, KindError for a threat
    that is no ball in Linf, L2 or L1. Probes are projected as in `nes`.

    >>> import foible
    >>> foible.attacks.spsa(foible.Linf(0.1), queries=1000).search.steps
    8
    """
    _positive(samples=samples - 1, delta=delta, step=1.0 if step is None else step)
    steps, last = _steps(queries, samples)
    search = EstimatedAscent(steps, samples, last, delta, step, 0.3, signs=True)
    return Attack(
        "spsa", needs_eps(threat), search, named(objective), stop="success", cap=queries
    )  # fmt: skip


def simba(
    threat: Threat,
    queries: int = 5000,
    basis: str = "pixel",
    step: float = 0.2,
    low: float = 0.125,
    objective: str | Objective = "cross_entropy",
) -> Attack:
    """Return SimBA: one random direction of a basis at a time, up or down, kept if it helps.

    Guo et al. 2019. queries: the most forwards a sample may cost. basis: "pixel", or "dct", whose
    lowest frequencies come first. step: length of a move, a share of the box's width. low: the
    share of either axis that "dct" begins with; it doubles when those directions are used up.
    objective: the cross-entropy is the paper's probability. A sample stops once it is fooled.

    A ball without eps leaves the size of the change free, as in the paper; one with eps is
    projected onto after every move. Moves that change nothing, at an end of the box, are not
    asked. When all directions have been tried, they are tried again.

    Raises InputError for an unknown basis or numbers out of range.

    >>> import foible
    >>> foible.attacks.simba(foible.L2(), basis="dct").access.name
    'SCORES'
    """
    if basis not in ("pixel", "dct"):
        raise InputError(f"basis={basis!r}: choose 'pixel' or 'dct'")
    _positive(step=step)
    if not 0 < low <= 1:
        raise InputError(f"low={low}: the share of frequencies lies in (0, 1]")
    search = Simba(_share(queries, 1, 2) - 1, basis, step, low)
    free = getattr(threat, "eps", 0) is None
    return Attack(
        "simba", threat, search, named(objective), stop="success", cap=queries,
        prefer=Closest(threat) if free else None,
    )  # fmt: skip


def _share(queries: int, restarts: int, least: int) -> int:
    """Return the points that each restart may ask: clean look and verification set aside."""
    points = (queries - 2) // max(1, restarts)
    if points < least:
        raise InputError(
            f"queries={queries} with restarts={restarts}: a sample needs 2 for its clean label and "
            f"the verification, and at least {least} a restart"
        )
    return points


def _steps(queries: int, samples: int) -> tuple[int, int]:
    """Return the steps that fit, and the probes of the last one; each also judges its point."""
    points = _share(queries, 1, 3)
    steps = max(1, -(-points // (samples + 1)))
    last = min(samples, points - (steps - 1) * (samples + 1) - 1)
    if last < 2:  # too few for a pair
        return (steps - 1, samples) if steps > 1 else (1, 2)
    return steps, last


def _positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            least = "at least 2" if name == "samples" else "above 0"
            raise InputError(f"{name} is {value + (name == 'samples')}: it must be {least}")
