"""Objectives: (B,) numbers that an attack makes large.

Where rows have a target, each rises towards it; else each rises away from the label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.errors import InputError
from foible.core.problem import Objective, View
from foible.core.rows import Rows


def others(scores: Tensor, label: Tensor) -> Tensor:
    """Return scores (B, K) with that of `label` (B,) at minus infinity.

    >>> others(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([[-inf, 1., 2.]])
    """
    return scores.scatter(1, label[:, None], float("-inf"))


def _other(scores: Tensor, label: Tensor) -> Tensor:
    """Return the largest score (B,) of any class but `label`."""
    return others(scores, label).amax(1)


def _of(scores: Tensor, label: Tensor) -> Tensor:
    return scores.gather(1, label[:, None]).squeeze(1)


def rival_class(rows: Rows, place: int) -> Tensor:
    """Return the place-th rival class (B,), counted from 1: by nearness if known, else by score."""
    rank = rows.extra.get("rank")
    if rank is not None and place <= rank.shape[1]:
        return rank[:, place - 1]
    assert rows.scores is not None
    return others(rows.scores, rows.y).argsort(dim=1, descending=True)[:, place - 1]


@dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy of the label, or minus that of the target.

    On more than two classes its gradient is a mixture over all classes, so near a boundary it
    does not point straight across: prefer the margin where the last few percent count.
    """

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        if view.rows.target is not None:
            return -F.cross_entropy(view.scores, view.rows.target, reduction="none")
        return F.cross_entropy(view.scores, view.rows.y, reduction="none")


@dataclass(frozen=True)
class Margin:
    """The best other logit minus the label's; positive once the label is lost.

    Targeted: the target's logit minus the best other one (Carlini and Wagner 2017).

    rival: None, or k for the k-th best other class of the clean scores, kept all the way. The
    best other class need not be the nearest one, and from its corner of the ball there is no way
    up to another's: restarts of an untargeted attack on the margin therefore aim at one class
    each (Gowal et al. 2019, multi-targeted). On a linear model one restart a class is exact.
    Where `rows.extra["rank"]` holds the nearest classes (attacks.rivals), those are the order.
    """

    rival: int | None = None

    def for_restart(self, restart: int, classes: int) -> Margin:
        """Return the aim of a restart: the first takes the best other class, whichever it is."""
        if restart == 0 or classes < 3:
            return Margin(self.rival)
        return Margin(1 + (restart - 1) % (classes - 1))

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        scores, rows = view.scores, view.rows
        if rows.target is not None:
            return _of(scores, rows.target) - _other(scores, rows.target)
        if self.rival is not None and rows.scores is not None:
            return _of(scores, rival_class(rows, self.rival)) - _of(scores, rows.y)
        return _other(scores, rows.y) - _of(scores, rows.y)


@dataclass(frozen=True)
class Nearest:
    """The margin in units of distance: max over j of (z_j - z_y) / scale_j.

    scale_j (`rows.extra["scale"]`, (B, K), from `attacks.rivals.Rivals`) is how fast class j gains
    on the label towards its own boundary, so that the largest term is the *nearest* class and not
    the one of the second largest score (Gabler et al., MALT, rank targets so). Its sign is the
    margin's. Without scales, or with a target, it is the margin.
    """

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        rows = view.rows
        if rows.target is not None or "scale" not in rows.extra:
            return Margin()(view)
        gain = (view.scores - _of(view.scores, rows.y)[:, None]) / rows.extra["scale"]
        return _other(gain, rows.y)


@dataclass(frozen=True)
class DLR:
    """The difference of logits ratio (Croce and Hein 2020): a margin that no scale changes.

    Needs three classes, and four where there is a target.
    """

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        scores, rows = view.scores, view.rows
        need = 3 if rows.target is None else 4
        if scores.shape[1] < need:
            raise InputError(
                f"the DLR loss needs {need} classes and the model has {scores.shape[1]}: "
                'use objective="margin"'
            )
        top = scores.sort(1, descending=True).values
        label = _of(scores, rows.y)
        if rows.target is not None:
            gap = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3])
            return -(label - _of(scores, rows.target)) / gap.clamp_min(1e-12)
        gap = top[:, 0] - top[:, 2]
        return -(label - _other(scores, rows.y)) / gap.clamp_min(1e-12)


@dataclass(frozen=True)
class EachRival:
    """The margin, or its DLR form, of one rival class a restart: AutoAttack's targeted runs.

    loss: "dlr" or "margin". first: the place of the first restart's class among the others (by
    clean score, or nearest first where `rows.extra["rank"]` is known), the next restart takes the
    next one, and so on. place: of this restart. With a target it goes for that.
    """

    loss: str = "dlr"
    first: int = 1
    place: int = 1

    def for_restart(self, restart: int, classes: int) -> EachRival:
        """Return the aim of a restart."""
        return replace(self, place=1 + (self.first - 1 + restart) % max(1, classes - 1))

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        scores, rows = view.scores, view.rows
        if rows.target is not None:
            return DLR()(view) if self.loss == "dlr" else Margin()(view)
        gain = _of(scores, rival_class(rows, self.place)) - _of(scores, rows.y)
        return gain / _spread(scores) if self.loss == "dlr" else gain


def _spread(scores: Tensor) -> Tensor:
    """Return the targeted DLR's unit (B,): the best score above the mean of third and fourth."""
    if scores.shape[1] < 4:
        raise InputError(
            f"the targeted DLR loss needs 4 classes and the model has {scores.shape[1]}: "
            'use objective="margin"'
        )
    top = scores.topk(4, dim=1).values
    return (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3])).clamp_min(1e-12)


@dataclass(frozen=True)
class Logit:
    """The logit of the target (of the label where there is none): what explainers explain."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        label = view.rows.y if view.rows.target is None else view.rows.target
        return _of(view.scores, label)


@dataclass(frozen=True)
class LogProbability:
    """The log-probability of the target (of the label where there is none)."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        label = view.rows.y if view.rows.target is None else view.rows.target
        return -F.cross_entropy(view.scores, label, reduction="none")


@dataclass(frozen=True)
class Probability:
    """The probability of the target (of the label where there is none)."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        return LogProbability()(view).exp()


@dataclass(frozen=True)
class Constant:
    """Zero everywhere, for attacks that do not look at the model: random controls."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,) zeros."""
        return torch.zeros(len(view.rows), dtype=view.x_adv.dtype, device=view.x_adv.device)


NAMED: dict[str, type] = {
    "cross_entropy": CrossEntropy,
    "margin": Margin,
    "nearest": Nearest,
    "dlr": DLR,
}


def objective(named: str | Objective) -> Objective:
    """Return an objective by name, or the callable itself."""
    if isinstance(named, str):
        if named not in NAMED:
            raise InputError(f"no objective is called {named!r}: choose from {', '.join(NAMED)}")
        chosen: Objective = NAMED[named]()
        return chosen
    return named
