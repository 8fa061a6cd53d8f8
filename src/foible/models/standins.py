"""Differentiable stand-ins of classifiers that have no gradient, read off what they learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.models.estimators import Estimator
from foible.models.holding import TorchModel

_NEVER = -1e6  # the score of a class that the classifier has never seen


class Plane(nn.Module):
    """Scores W x + b of flattened inputs; in float64 inside, whatever x is."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K)."""
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        return (x.flatten(1).to(weight.dtype) @ weight.T + bias).to(x.dtype)


class SoftNeighbours(nn.Module):
    """The logarithm of each class's sum of exp(-distance^2 / width) over the stored points."""

    def __init__(self, points: Tensor, label: Tensor, classes: int, width: float) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("points", points)
        of = F.one_hot(label, classes).T
        self.register_buffer("others", torch.where(of > 0, 0.0, float("-inf")).to(points))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K)."""
        points, others = self.get_buffer("points"), self.get_buffer("others")
        flat = x.flatten(1).to(points.dtype)
        far = (flat**2).sum(1)[:, None] + (points**2).sum(1) - 2 * flat @ points.T
        near = -far / self.width
        each = [
            torch.logsumexp(near[:, torch.isfinite(row)], 1)
            if bool(torch.isfinite(row).any())
            else torch.full_like(near[:, 0], _NEVER)
            for row in others
        ]
        return torch.stack(each, 1).to(x.dtype)


@dataclass(frozen=True)
class Leaves:
    """The boxes of a tree's leaves: features lie in (above, below], both (L, D) float64.

    share: (L, K) the classes' shares in each leaf; label: (L,) its class.
    """

    above: Tensor
    below: Tensor
    share: Tensor
    label: Tensor


class SoftTree(nn.Module):
    """A tree whose splits are sigmoids of a width: how much of x falls to each class's leaves."""

    def __init__(self, leaves: Leaves, width: float) -> None:
        super().__init__()
        self.width = width
        for name in ("above", "below", "share"):
            self.register_buffer(name, getattr(leaves, name))

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (B, K)."""
        above, below = self.get_buffer("above"), self.get_buffer("below")
        share, flat = self.get_buffer("share"), x.flatten(1).to(above.dtype)
        used = torch.isfinite(above).any(0) | torch.isfinite(below).any(0)
        fall = torch.zeros(len(flat), len(above), dtype=above.dtype, device=x.device)
        for d in used.nonzero().flatten().tolist():
            at = flat[:, d, None]
            fall = fall + F.logsigmoid((at - above[:, d]) / self.width)
            fall = fall + F.logsigmoid((below[:, d] - at) / self.width)
        mixed = fall[:, :, None] + share.clamp_min(1e-12).log()
        return torch.logsumexp(mixed, 1).to(x.dtype)


def leaves_of(model: Any) -> Leaves | None:
    """Return the leaves of a decision tree that an `Estimator` holds, or None for another one."""
    tree = getattr(getattr(model, "held", None), "tree_", None)
    if not isinstance(model, Estimator) or tree is None:
        return None
    left, right = np.asarray(tree.children_left), np.asarray(tree.children_right)
    feature, threshold = np.asarray(tree.feature), np.asarray(tree.threshold)
    size = int(model.held.n_features_in_)
    above = np.full((len(left), size), -np.inf)
    below = np.full((len(left), size), np.inf)
    for node in range(len(left)):  # a node's children come after it
        if left[node] < 0:
            continue
        f, t = feature[node], threshold[node]
        for child in (left[node], right[node]):
            above[child], below[child] = above[node], below[node]
        below[left[node], f] = min(below[node, f], t)
        above[right[node], f] = max(above[node, f], t)
    ends = left < 0
    value = np.asarray(tree.value)[ends, 0]
    value = torch.from_numpy(value / value.sum(1, keepdims=True))
    share = torch.zeros(len(value), model.classes, dtype=torch.float64)
    share[:, torch.from_numpy(model.places)] = value
    label = torch.from_numpy(model.places)[value.argmax(1)]
    return Leaves(torch.from_numpy(above[ends]), torch.from_numpy(below[ends]), share, label)


def stand_in(model: Any) -> TorchModel | None:
    """Return a differentiable model like the classifier that an `Estimator` holds, or None.

    Linear ones (`coef_` and `intercept_`): themselves, but for those that let pairs of classes
    vote (SVC of a linear kernel), where decisions are added and not votes: that agrees on nine
    samples in ten, and has a gradient everywhere. Nearest neighbours of Euclidean distance: all
    stored points vote, the near ones most (the soft kNN; its width is the mean squared distance
    between a point and its nearest fellow). Trees: splits as sigmoids over a tenth of the bounds.
    Of any other, and of pipelines, nothing is known: train a `foible.attacks.substitute`.
    """
    if not isinstance(model, Estimator):
        return None
    held = model.held
    net: nn.Module | None = None
    leaves = leaves_of(model)
    if leaves is not None:
        width = model.bounds[1] - model.bounds[0]
        net = SoftTree(leaves, 0.1 * width if np.isfinite(width) else 0.1)
    elif hasattr(held, "coef_") and hasattr(held, "intercept_"):
        net = _plane(model)
    elif getattr(held, "effective_metric_", "") == "euclidean" and isinstance(
        getattr(held, "_fit_X", None), np.ndarray
    ):
        net = _neighbours(model)
    return None if net is None else TorchModel(net, model.bounds, None, "logits")


def _plane(model: Estimator) -> nn.Module | None:
    held, places = model.held, torch.from_numpy(model.places)
    weight, count = np.asarray(held.coef_, dtype=np.float64), len(places)
    bias = np.broadcast_to(np.asarray(held.intercept_, dtype=np.float64), (len(weight),))
    rows = torch.from_numpy(np.concatenate([weight, bias[:, None]], 1))
    pairs = torch.combinations(torch.arange(count), 2)
    if count == 2 and len(rows) == 1:
        each = torch.cat([-rows / 2, rows / 2])
    elif hasattr(held, "support_vectors_") and len(rows) == len(pairs):
        # Above 0 a pair's plane speaks for its first class.
        each = torch.zeros(count, rows.shape[1], dtype=rows.dtype)
        each = each.index_add(0, pairs[:, 0], rows).index_add(0, pairs[:, 1], -rows)
    elif len(rows) == count:
        each = rows
    else:
        return None
    full = torch.zeros(model.classes, rows.shape[1], dtype=rows.dtype)
    full[:, -1] = _NEVER
    full[places] = each
    return Plane(full[:, :-1].contiguous(), full[:, -1].contiguous())


def _neighbours(model: Estimator) -> nn.Module:
    points = torch.from_numpy(np.asarray(model.held._fit_X, dtype=np.float64))
    label = torch.from_numpy(model.places)[torch.from_numpy(np.asarray(model.held._y)).long()]
    some = points[torch.linspace(0, len(points) - 1, min(len(points), 500)).long()]
    far = torch.cdist(some, points).topk(min(2, len(points)), largest=False).values[:, -1]
    return SoftNeighbours(points, label, model.classes, max(float((far**2).mean()), 1e-12))
