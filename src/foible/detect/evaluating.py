"""What a detector is worth: against the attack it knows, smaller and other ones, and its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foible.attacks.base import Attack, Result
from foible.attacks.boundary_projection import deepfool
from foible.attacks.fast_minimum import ddn
from foible.attacks.gradient import fgsm, pgd
from foible.core.errors import InputError
from foible.core.threat import Threat
from foible.detect.evading import adaptive
from foible.detect.watching import Watch
from foible.models import as_model
from foible.parts.statistics import auc, wilson
from foible.parts.threats import L2

RATES = (0.05, 0.01)


@dataclass(frozen=True)
class Way:
    """A detector against one attack.

    kind: "same", "smaller", "other" or "adaptive". n: adversarials that truly fool the model, all
    that the rest is measured on. fooled: the share of attacked inputs that they are. auc: the area
    under the ROC curve against clean inputs that were not fitted on, with its interval (Hanley and
    McNeil 1982). caught: for each rate of RATES the share that is flagged at the level of that rate
    of false alarms, with its interval. scores: (n,) suspicion. None: not measured.
    """

    name: str
    kind: str
    n: int
    fooled: float | None
    auc: float | None
    auc_interval: tuple[float, float] | None
    caught: tuple[float | None, ...]
    caught_interval: tuple[tuple[float, float] | None, ...]
    scores: Tensor


@dataclass(frozen=True)
class Crafted:
    """What an attack that knows of no detector made. name, kind: as in `Way`."""

    name: str
    kind: str
    result: Result


@dataclass(frozen=True)
class Worth:
    """All ways, and the clean inputs beside them: their scores and true rates of false alarms."""

    detector: str
    ways: tuple[Way, ...]
    clean: Tensor
    false_alarms: tuple[float, ...]

    def way(self, kind: str) -> Way:
        """Return the first way of a kind."""
        return next(way for way in self.ways if way.kind == kind)


def crafted(
    model: Any,
    data: tuple[Tensor, Tensor],
    threat: Threat,
    attack: Attack | None = None,
    *,
    seed: int = 0,
) -> tuple[Crafted, ...]:
    """Return the adversarials of all ways but the adaptive one, which know of no detector.

    Made once, they serve `evaluate` for any number of detectors. Arguments as there.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> made = crafted(foible.zoo.load("standard"), (x[:4], y[:4]), foible.Linf(0.1))
    >>> [one.kind for one in made]
    ['same', 'smaller', 'other', 'other', 'other', 'other']
    """
    eps = getattr(threat, "eps", None)
    if not isinstance(eps, float):
        raise InputError("the evaluation needs a threat with one eps, e.g. foible.Linf(0.1)")
    same = attack or pgd(threat, 40)
    small: Threat = replace(threat, eps=eps / 4)  # type: ignore[call-arg]
    plans: list[tuple[str, str, Attack]] = [
        ("as fitted", "same", same),
        (f"as fitted, eps {eps / 4:g}", "smaller", same.within(small)),
        ("FGSM", "other", fgsm(threat)),
        ("PGD, margin", "other", pgd(threat, 40, objective="margin")),
        ("DDN, L2", "other", ddn(L2())),
        ("DeepFool, L2", "other", deepfool(L2())),
    ]
    held, (x, y) = as_model(model), data
    return tuple(Crafted(name, kind, made(held, x, y, seed=seed)) for name, kind, made in plans)


def evaluate(
    watch: Watch,
    model: Any,
    data: tuple[Tensor, Tensor],
    threat: Threat,
    attack: Attack | Sequence[Crafted] | None = None,
    *,
    adaptive_samples: int = 100,
    seed: int = 0,
) -> Worth:
    """Measure a detector in four ways: same attack, smaller eps, other attacks, adaptive.

    watch: fitted. model: the one that it was fitted to. data: (x, y) that nothing was fitted on.
    threat: with eps. attack: the one that it was fitted with; PGD with 40 steps if None; or what
    `crafted` made of the same data with it, to judge several detectors on the same adversarials.
    The other attacks are FGSM, PGD on the margin, and, as minimum-norm ones, DDN and DeepFool in
    L2. adaptive_samples: how many inputs the adaptive attack is run on, which costs most.

    Only adversarials that truly fool the model count, and levels come from the held-out clean
    inputs of the fit. Every attack runs in full: what barely fools is another thing to detect.

    Raises InputError for a threat without one eps.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net, threat = foible.zoo.load("standard"), foible.Linf(0.1)
    >>> watch = foible.detect.squeezed((3,)).fit(net, (x[:100], y[:100]))
    >>> worth = evaluate(watch, net, (x[100:132], y[100:132]), threat, adaptive_samples=4)
    >>> [way.kind for way in worth.ways][:2]
    ['same', 'smaller']
    """
    held, (x, y) = as_model(model), data
    made = (
        crafted(held, data, threat, attack, seed=seed)
        if attack is None or isinstance(attack, Attack)
        else attack
    )
    clean = watch.score(held, x, seed=seed + 1)
    ways = [_way(watch, held, one, y, clean, seed) for one in made]
    if watch.detector.feature.differentiable:
        few = x[:adaptive_samples], y[:adaptive_samples]
        knows = Crafted("adaptive", "adaptive", adaptive(watch, threat)(held, *few, seed=seed))
        ways.append(_way(watch, held, knows, few[1], clean, seed))
    else:
        ways.append(
            Way("adaptive", "adaptive", 0, None, None, None, (None,) * 2, (None,) * 2, clean[:0])
        )
    alarms = tuple(float((clean > watch.threshold(r).value).double().mean()) for r in RATES)
    return Worth(watch.detector.name, tuple(ways), clean, alarms)


def _way(watch: Watch, model: Any, made: Crafted, y: Tensor, clean: Tensor, seed: int) -> Way:
    result = made.result
    # An adaptive success is unseen as well; what fools and is seen belongs to the count too.
    tried = result.clean_label.to(y.device) == y
    fools = tried & (result.label.to(y.device) != y)
    bad, n, count = result.x[fools], int(fools.sum()), int(tried.sum())
    # With other draws than the attack had, where a feature is random.
    scores = watch.score(model, bad, seed=seed + 1, ids=fools.nonzero().squeeze(1))
    area = None
    if n:
        values = torch.cat([clean, scores]).double().cpu().numpy()
        area = auc(values, np.arange(len(values)) >= len(clean))
    caught = [int((scores > watch.threshold(rate).value).sum()) for rate in RATES]
    return Way(
        made.name, made.kind, n, n / count if count else None, area,
        None if area is None else _spread(area, n, len(clean)),
        tuple(hits / n if n else None for hits in caught),
        tuple(wilson(hits, n) for hits in caught), scores,
    )  # fmt: skip


def _spread(area: float, bad: int, good: int) -> tuple[float, float]:
    """Return a 95 % interval of an area under the curve (Hanley and McNeil 1982)."""
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    variance = area * (1 - area) + (bad - 1) * (q1 - area**2) + (good - 1) * (q2 - area**2)
    wide = 1.96 * math.sqrt(max(0.0, variance) / (bad * good))
    return max(0.0, area - wide), min(1.0, area + wide)


def table(worths: Sequence[Worth], rate: float = 0.05) -> list[list[Any]]:
    """Return rows (detector, way, fooled, AUC, caught at the rate), one for each way."""
    place = RATES.index(rate)
    return [
        [worth.detector, way.name, way.fooled, way.auc, way.caught[place]]
        for worth in worths
        for way in worth.ways
    ]
