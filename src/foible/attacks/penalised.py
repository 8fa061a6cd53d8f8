"""Minimum-norm attacks on a penalty: how far from fooled, weighed against how much changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foible.attacks.base import Attack
from foible.attacks.rivals import Rivals
from foible.core.errors import InputError, KindError
from foible.core.problem import Closest, Fooled, Goal, Objective, View
from foible.core.search import Search
from foible.core.threat import Threat
from foible.parts.objectives import Nearest
from foible.parts.searches.carlini import CarliniL0, CarliniL2, CarliniLinf
from foible.parts.searches.ead import ElasticDescent, ElasticNet
from foible.parts.searches.lbfgs import BoxLBFGS, Tempered
from foible.parts.threats import L0, L1, L2, Linf


@dataclass(frozen=True)
class Surely(Goal):
    """Fooled by a margin of at least `confidence`, in logits."""

    confidence: float

    def __call__(self, view: View) -> Tensor:
        """Return (B,) bool."""
        return Fooled()(handicapped(view, self.confidence))


@dataclass(frozen=True)
class SurelyNearest:
    """The objective of `Surely`: `Nearest`, with `confidence` more logits to make up."""

    confidence: float

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        return Nearest()(handicapped(view, self.confidence))


def handicapped(view: View, confidence: float) -> View:
    """Return the view with logits in which the goal is `confidence` farther away."""
    rows = view.rows
    # The goal is asked about the clean input as well, whose scores the rows already hold.
    known = rows.scores if view.x_adv is rows.x else None
    scores = view.scores if known is None else known
    label, worse = (rows.y, 1.0) if rows.target is None else (rows.target, -1.0)
    shift = torch.zeros_like(scores).scatter(1, label[:, None], worse * confidence)
    return View(view.oracle, rows, view.x_adv, view.z, scores + shift)


def cw(threat: Threat, steps: int = 100, searches: int = 9, confidence: float = 0.0) -> Attack:
    """Return the attacks of Carlini and Wagner 2017 in L2, Linf and L0: the smallest change.

    threat: L2(), Linf() or L0(). With an eps, success means found within it, and a sample that
    is leaves. steps: of Adam in a run; searches: runs, each with another weight (in Linf another
    bound, in L0 another set of features; there a run has a quarter of the steps, and there are
    four times as many). confidence: the margin, in logits, by which the goal must be reached.
    Costs at most steps * searches gradients, about 70 % of it in L2, half in L0, a quarter in Linf,
    because a run ends once it stands still; and 10 backwards to rank the classes, 8 labels to
    shorten the result.

    Departures: the weight is in units of the distance to the linearised boundary, and Adam's step
    a share of the best distance, falling over a run, since 0.01 suits one scale only; the change
    is cut by the box, where the paper has tanh, which has no gradient at its ends; untargeted,
    the objective aims at the nearest class and not at the one of the second largest logit; a run
    begins at the best point so far; the bound of Linf is bisected once a run has failed; L0
    freezes a share of the features at once and not one.

    Raises KindError for another threat; use `ead` for L1.

    >>> import foible
    >>> foible.attacks.cw(foible.L2()).search.steps
    900
    """
    _runs(steps, searches)
    if isinstance(threat, L0):
        search: Search = CarliniL0(max(5, steps // 4), 4 * searches, polish=0)
    elif isinstance(threat, Linf):
        search = CarliniLinf(steps, searches)
    elif isinstance(threat, L2):
        search = CarliniL2(steps, searches)
    else:
        raise KindError(
            f"cw knows L2, Linf and L0, not {type(threat).__name__}: use ead(L1()) for L1"
        )
    return _minimal("cw", threat, search, confidence)


def ead(
    threat: Threat,
    steps: int = 100,
    searches: int = 9,
    beta: float | None = None,
    rule: str = "l1",
    confidence: float = 0.0,
) -> Attack:
    """Return EAD: the smallest change in L1, by elastic-net descent (Chen et al. 2018).

    threat: L1(). With an eps, success means found within it. steps: of FISTA in a run; searches:
    runs, each with another weight. beta: of the L1 term beside the squared L2 term, in the units
    of the input; None is 20 times the largest entry of the linearised step, so that L1 decides at
    every scale (the paper's 0.01 leaves the squared term in charge on most inputs). rule: keep
    the smallest "l1" or the smallest elastic net, "en" (with a beta of 0.01 unless given).
    confidence: the margin, in logits, by which the goal must be reached. Costs at most
    steps * searches gradients, about 60 % of it, and 10 backwards to rank the classes.

    Departures: weights and steps in units of the linearised distance and a start at the best
    point, as in `cw`; the extrapolated point is judged, which saves a second forward a step.

    Raises KindError for another threat, InputError for an unknown rule or a beta not above 0.

    >>> import foible
    >>> foible.attacks.ead(foible.L1()).prefer
    Closest(threat=L1(box=None, eps=None, density=0.01))
    """
    _runs(steps, searches)
    if not isinstance(threat, L1):
        raise KindError(f"ead decides by L1, not by {type(threat).__name__}: give L1()")
    if rule not in ("l1", "en"):
        raise InputError(f"rule is {rule!r}: choose 'l1' or 'en'")
    if beta is not None and not 0 < beta < float("inf"):
        raise InputError(f"beta={beta}: the weight of the L1 term is finite and above 0")
    beta = 0.01 if beta is None and rule == "en" else beta
    attack = _minimal("ead", threat, ElasticDescent(steps, searches, beta=beta), confidence)
    if rule == "en":
        assert beta is not None
        attack = replace(attack, prefer=ElasticNet(threat, beta))
    return attack


def lbfgs(threat: Threat | None = None, searches: int = 10, iterations: int = 20) -> Attack:
    """Return box-constrained L-BFGS: the smallest change in L2 (A2, Szegedy et al. 2014).

    threat: L2(), which None is too. With an eps, success means found within it. searches: runs
    of scipy's L-BFGS-B, each with another weight; iterations: at most so many in a run, and about
    as many gradients (scipy stops after a line search, of at most 10). All rows run at once, in
    step, in float64; every point is judged in the dtype of x. Costs at most
    searches * (iterations + 10) gradients, about 1.2 * searches * iterations in practice. Needs
    scipy: `pip install "foible[optimise]"`.

    Departures: the paper's cross-entropy is taken at a temperature of a twentieth of the clean
    margin. At 1 it keeps pushing far beyond the boundary of a steep model, or mixes classes
    before it, and then no weight ends at the nearest point. Untargeted, which the paper is not,
    it is that of the label and the nearest class.

    Raises KindError for another threat, MissingExtra (on use) without scipy.

    >>> import foible
    >>> foible.attacks.lbfgs().search.steps
    10
    """
    threat = L2() if threat is None else threat
    if not isinstance(threat, L2):
        raise KindError(f"lbfgs makes the L2 length small, not that of {type(threat).__name__}")
    _runs(iterations, searches)
    return _minimal("lbfgs", threat, BoxLBFGS(searches, iterations), 0.0, Tempered())


def _minimal(
    name: str,
    threat: L0 | L1 | L2 | Linf,
    search: Search,
    confidence: float,
    objective: Objective | None = None,
) -> Attack:
    """Return an attack that keeps the smallest success; one within eps is enough where given."""
    if not 0 <= confidence < float("inf"):
        raise InputError(f"confidence={confidence}: a margin in logits, finite and not negative")
    goal: Goal = Surely(confidence) if confidence else Fooled()
    if objective is None:
        objective = SurelyNearest(confidence) if confidence else Nearest()
    return Attack(
        name, threat, search, objective, goal=goal, prefer=Closest(threat),
        prepare=Rivals(threat), stop="never" if threat.eps is None else "success",
    )  # fmt: skip


def _runs(steps: int, searches: int) -> None:
    if steps < 1 or searches < 1:
        raise InputError(f"steps={steps}, searches={searches}: both must be at least 1")
