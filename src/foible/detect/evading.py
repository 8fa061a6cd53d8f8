"""The adaptive attack: the model's loss and the detector's score, searched together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import Attack, Result, needs_eps
from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.problem import Fooled, Goal, View
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.detect.base import Feature, part_of
from foible.detect.watching import Watch
from foible.parts.objectives import others
from foible.parts.searches import Ascent


def suspicion(
    watch: Watch,
    view: View,
    *,
    soft: bool = False,
    create_graph: bool = False,
    feature: Feature | None = None,
) -> Tensor:
    """Return how suspect a view's points are, (B,): the detector's own score, or its stand-in.

    What a feature draws is drawn anew at every step on the graph, so that the search averages over
    it, and is `Watch.score`'s own off the graph, so that a verdict holds when it is asked again.
    feature: another one than the detector's, which reads its state.
    """
    rows: Rows = replace(view.rows.at(view.x_adv), y=view.labels)
    drawn = view.draw if create_graph else None
    draw = drawn if isinstance(drawn, Draw) else Rng(0).split(23).at(rows.id)
    if feature is None:
        feature = watch.detector.feature.soft() if soft else watch.detector.feature
    found = feature(
        view.oracle, rows, part_of(watch.state, "feature"), draw, create_graph=create_graph
    )
    head = watch.detector.head
    told = head.soft if soft else head.__call__
    return told(found, part_of(watch.state, "head"))


@dataclass(frozen=True)
class Evading:
    """The margin of the best other class, plus a weight times what is missing below the level.

    The suspicion is the stand-in's, and so is the level.

    Both terms stop paying where they are won: the margin at `safe` of the clean one, the suspicion
    at `below` of its clean spread under the level.
    """

    watch: Watch
    level: float
    weight: float = 1.0
    safe: float = 0.3
    below: float = 0.2

    @property
    def access(self) -> Access:
        """As deep as the feature and its stand-in look, and a gradient through them."""
        detector = self.watch.detector
        return max(Access.GRADIENTS, detector.access, detector.feature.soft().access)

    @property
    def draws(self) -> int:
        """How many looks' graphs a row holds at once; fewer rows share a batch then."""
        return self.watch.detector.feature.soft().looks

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        label = view.rows.y
        rival = others(view.scores, label)
        margin = rival.amax(1) - view.scores.gather(1, label[:, None]).squeeze(1)
        if view.rows.target is not None:
            aim = view.rows.target
            rest = others(view.scores, aim).amax(1)
            margin = view.scores.gather(1, aim[:, None]).squeeze(1) - rest
        unit = _unit(self.watch)
        hidden = (self.level - suspicion(self.watch, view, soft=True, create_graph=True)) / unit
        size = (
            margin.detach().abs().mean().clamp_min(1e-6) if view.rows.scores is None else _gap(view)
        )
        return (margin / size).clamp(max=self.safe) + self.weight * hidden.clamp(max=self.below)


@dataclass(frozen=True)
class FooledUnseen(Goal):
    """The prediction is wrong, or the target, and the detector's true score is below the level."""

    watch: Watch
    level: float

    def __call__(self, view: View) -> Tensor:
        """Return (B,) bool."""
        hidden = Fooled()(view)
        feature = self.watch.detector.feature
        # What costs many looks is asked last, of what its stand-in lets pass.
        for own in ([feature.soft()] if feature.soft().looks < feature.looks else []) + [feature]:
            which = hidden.nonzero().squeeze(1)
            if len(which) == 0:
                return hidden
            with torch.no_grad():
                seen = suspicion(self.watch, some_of(view, which), feature=own)
            hidden = hidden.index_put((which,), seen <= self.level)
        return hidden


def some_of(view: View, which: Tensor) -> View:
    """Return a view of some rows, by position, with what is known of them."""
    return View(view.oracle, view.rows.take(which), view.x_adv[which], None, view.scores[which])


def _gap(view: View) -> Tensor:
    clean = view.rows.scores
    assert clean is not None
    top = clean.topk(2, 1).values
    return (top[:, 0] - top[:, 1]).clamp_min(1e-6)


def _unit(watch: Watch) -> float:
    """Return the spread of the clean scores between their first and last tenth."""
    held = watch.state["soft_levels" if watch.stands_in else "levels"]
    low, high = held[len(held) // 10], held[-1 - len(held) // 10]
    return max(float(high - low), 1e-6)


@dataclass(frozen=True)
class Adaptive:
    """An attack on a model and its detector; call it as any attack, it returns a `Result`.

    success: fooled and below the level.
    """

    watch: Watch
    threat: Threat
    fpr: float = 0.05
    steps: int = 100
    weights: tuple[float, ...] = (1.0, 0.1, 10.0)

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, seed: int = 0) -> Result:
        """Search with each weight in turn, on what still stands; keep what fools unseen.

        Where nothing fools unseen, the strongest point of the first weight is returned.
        """
        level, soft = (self.watch.threshold(self.fpr, soft=s).value for s in (False, True))
        best: Result | None = None
        left = torch.arange(len(x), device=x.device)
        for weight in self.weights:
            if len(left) == 0:
                break
            found = self.attack(level, soft, weight)(model, x[left], y[left], seed=seed, ids=left)
            best = found if best is None else _merged(best, found, left)
            left = (~best.success).nonzero().squeeze(1)
        assert best is not None
        return best

    def attack(self, level: float, soft: float, weight: float) -> Attack:
        """Return the attack of one weight; soft: the level of the score that is followed."""
        return Attack(
            "adaptive", self.threat, Ascent(self.steps, None, 2.5 / self.steps, "random"),
            Evading(self.watch, soft, weight), stop="success",
            goal=FooledUnseen(self.watch, level),
        )  # fmt: skip


def _merged(best: Result, found: Result, left: Tensor) -> Result:
    """Return the first result with what the second won, and the cost of both."""
    won = left[found.success]
    parts = {name: getattr(best, name).clone() for name in ("x", "success", "distance", "label")}
    for name, held in parts.items():
        held[won] = getattr(found, name)[found.success]
    forwards, backwards = best.forwards.clone(), best.backwards.clone()
    forwards[left.cpu()] += found.forwards
    backwards[left.cpu()] += found.backwards
    status = list(best.status)
    for place, mark in zip(left.tolist(), found.status, strict=True):
        status[place] = mark
    return replace(best, **parts, forwards=forwards, backwards=backwards, status=status)


def adaptive(watch: Watch, threat: Threat, fpr: float = 0.05, steps: int = 100) -> Adaptive:
    """Return the adaptive attack on a detector: fool the model and stay below its level at once.

    The rule of Carlini and Wagner (2017) and Tramer et al. (2020): a detector is worth what an
    attack leaves of it that knows it. Model's margin and detector's score are one objective of the
    one loop, with each of three weights on the inputs that still stand; a head without a gradient
    is replaced by a stand-in that was fitted beside it, and the true one gives the verdict. threat:
    with eps. fpr: the level to stay below. steps: gradients a weight.

    Raises InputError for a feature that no gradient passes.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net, pgd = foible.zoo.load("standard"), foible.attacks.pgd(foible.Linf(0.1), steps=10)
    >>> watch = foible.detect.pixels(epochs=2).fit(net, (x[:200], y[:200]), attack=pgd)
    >>> result = adaptive(watch, foible.Linf(0.1), steps=5)(net, x[200:216], y[200:216])
    >>> bool((watch.score(net, result.x[result.success]) <= watch.threshold().value).all())
    True
    """
    needs_eps(threat)
    if not watch.detector.feature.differentiable:
        raise InputError(
            f"{watch.detector.name}'s feature has no gradient to follow: attack it by scores "
            "alone, e.g. foible.attacks.square, and judge by the watch"
        )
    return Adaptive(watch, threat, fpr, steps)
