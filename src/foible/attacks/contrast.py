"""Contrastive explanations: what must be absent, and what is enough, for the class to stay."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from foible.attacks.base import Attack
from foible.attacks.penalised import _minimal, _runs
from foible.core.errors import InputError
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.parts.residual import ClosestReconstructed, Residual
from foible.parts.searches.ead import ElasticDescent, ElasticNet
from foible.parts.searches.penalty import Penalty
from foible.parts.threats import Added, Kept


@dataclass(frozen=True)
class Positive(Attack):
    """An attack from the blank page to the label, with ink of the sample alone.

    In its result x is the part that is kept, distance its L1 size, clean_label the class of a
    blank page; "wrong" says that blank is of the class already, and nothing need be kept.
    """

    def rows(
        self, threat: Threat, x: Tensor, y: Tensor, target: Tensor | None, ids: Tensor | None
    ) -> Rows:
        """Return rows at the blank page that know the whole image, with the label as target."""
        rows = super().rows(threat, x, y, y if target is None else target, ids)
        assert isinstance(threat, Kept)
        return replace(rows, x=threat.paper(x), extra={**rows.extra, "whole": x})


def contrastive(
    kind: str | Added | Kept = "negative", autoencoder: nn.Module | None = None,
    gamma: float = 100.0, beta: float = 10.0, kappa: float = 0.0, steps: int = 100,
    searches: int = 9,
) -> Attack:  # fmt: skip
    """Return the search for pertinent negatives or positives (A13, Dhurandhar et al. 2018).

    kind: "negative": the least ink that, added to x, makes it another class: what must be absent.
    "positive": the least part of x's ink that is enough for the class y: what must be present.
    autoencoder: what draws both towards real images, by gamma * |x' - AE(x')|_2^2; None does
    without. beta: of L1 beside the squared L2. kappa: the margin, in logits, in hinge and
    acceptance both. steps: of FISTA in a run; searches: runs, each with another weight of the
    hinge, bisected for every sample. Of a sample's successes the one with the least
    beta * |d|_1 + |d|_2^2 + gamma * residual is kept.

    x' is x + d for a negative and d, on a blank page, for a positive. Blank is the low end of
    the model's bounds; `Added(blank=...)` or `Kept(blank=...)` as the kind sets another.
    Give as y the predicted class, to explain the prediction. Of a positive's result x is the
    part itself (see `Positive`).

    Departures: the paper's beta is 0.1, and its authors' code shrinks by it whatever the step,
    which at their step of 0.01 is a beta of 10 in the formula, so that is ours. Weights and steps
    are in units of the linearised distance, as in `ead`, and shorter where gamma is large, or they
    would overshoot; the 1,000 steps are 100, of which runs that stand still use fewer. Of a
    sample's successes its authors keep the least beta * |d|_1 + |d|_2^2, whatever the autoencoder
    says; here the objective is the rule. At the end entries that the class does not need fall
    away (12 labels). A positive begins at the whole image, of which it is what is left. In the
    authors' code the positives' objective mixes the residual of one iterate with the squared
    size of another; here both are of one point, as in the paper.

    Raises InputError for another kind, or numbers out of range.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net = foible.zoo.load("standard")
    >>> found = contrastive("positive", steps=30, searches=3)(net, x[:4], net(x[:4]).argmax(1))
    >>> bool((found.x <= x[:4]).all())
    True
    """
    named = {"negative": Added(), "positive": Kept()}
    threat = named.get(kind) if isinstance(kind, str) else kind
    if not isinstance(threat, Added | Kept):
        raise InputError(f"kind is {kind!r}: choose 'negative', 'positive', Added() or Kept()")
    positive = isinstance(threat, Kept)
    if not 0 < beta < float("inf") or not 0 <= gamma < float("inf"):
        raise InputError(f"beta={beta}, gamma={gamma}: finite, beta above 0, gamma not below")
    _runs(steps, searches)
    search = ElasticDescent(steps, searches, beta=beta, leap=positive, pruning=12)
    attack = _minimal("contrastive", threat, search, kappa)
    attack = replace(attack, prefer=ElasticNet(threat, beta))
    if autoencoder is not None:
        attack = priced(attack, autoencoder, gamma)
    if positive:
        parts = {name: getattr(attack, name) for name in attack.__dataclass_fields__}
        attack = Positive(**parts)
    return attack


def priced(attack: Attack, autoencoder: nn.Module, weight: float) -> Attack:
    """Return a penalty attack that pays weight * residual beside the size that it makes small."""
    search, prefer = attack.search, attack.prefer
    assert isinstance(search, Penalty) and prefer is not None
    # What the search descends is |d|_1 + |d|_2^2 / beta: the elastic net divided by beta.
    unit = prefer.beta if isinstance(prefer, ElasticNet) else 1.0
    power = 1 if isinstance(search, ElasticDescent) else 2  # C&W descends the squared length
    return replace(
        attack,
        search=replace(search, term=Residual(autoencoder, weight / unit)),
        prefer=ClosestReconstructed(attack.threat, prefer, Residual(autoencoder, weight), power),
    )
