"""The attack along a local surrogate: scores around the point, a linear model of them, a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foible.attacks.base import Attack, needs_eps
from foible.core.errors import InputError, KindError
from foible.core.explainer import Explainer
from foible.core.problem import Objective
from foible.core.threat import Threat
from foible.explain.surrogate import Local
from foible.parts.objectives import objective as named
from foible.parts.searches.holding import HeldAscent


def surrogate_attack(
    threat: Threat,
    explainer: Explainer,
    queries: int = 1000,
    steps: int = 10,
    refit: int = 5,
    objective: str | Objective = "margin",
    stop: str = "success",
) -> Attack:
    """Return the local-surrogate attack: fit a linear model around the point, step along it, again.

    Survey 3.1.2 (A7, S9), with the explainer's paper. It needs scores only, and no gradient: so it
    works on forests, and where a gradient is masked. explainer: `tabular_lime` for tables,
    `lemna(noise=...)` where the model bends near the point, `lime` for images; its samples are set
    so that all `queries` are spent. queries: the most forwards a sample may cost, the clean look
    and the verification included. steps: moves, each of eps / refit, so that one surrogate can
    cross the ball. refit: moves that follow one surrogate; the next is fitted where they end.
    objective: what is fitted and climbed, "margin" or another; "cross_entropy" for classifiers that
    give probabilities, whose logarithm is cut where no tree votes for a class. stop: as in `pgd`.

    Neighbours must be wider than the steps of a step function: a forest's splits
    (`foible.explain.scale_of` measures a table). Costs that differ between features are a threat's:
    `foible.Features(eps, units=...)`.

    Raises InputError for a threat without eps or too few queries, KindError for an explainer that
    fits no samples.

    >>> import foible
    >>> attack = surrogate_attack(foible.L2(1.0), foible.explain.tabular_lime(), queries=500)
    >>> attack.cap, attack.access.name, attack.direction.samples
    (500, 'SCORES', 243)
    """
    settings: Any = explainer
    if not isinstance(explainer, Local) or not hasattr(settings, "samples"):
        raise KindError(
            f"{type(explainer).__name__} fits no linear model to samples: choose one that does, "
            "e.g. foible.explain.tabular_lime(), lemna() or lime()"
        )
    if threat.parametric:
        raise KindError(
            f"{type(threat).__name__} moves a few parameters, and a surrogate is of the input: use "
            "a ball"
        )
    if steps < 1 or refit < 1:
        raise InputError(f"steps={steps}, refit={refit}: both must be at least 1")
    fits = -(-steps // refit)
    # The clean look, a verdict after each move and the last one's verification are paid first.
    samples = (queries - steps - 2) // fits - 1
    if samples < 4:
        raise InputError(
            f"queries={queries} leave {samples} samples for each of {fits} surrogates of {steps} "
            "steps: allow more queries, or raise refit"
        )
    search = HeldAscent(steps, None, 1 / min(refit, steps), refit=refit)
    return Attack(
        "surrogate_attack", needs_eps(threat), search, named(objective),
        replace(settings, samples=samples), stop, cap=queries,
    )  # fmt: skip
