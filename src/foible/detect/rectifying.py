"""Classifying what is flagged again, without what its explanation points at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.detect.watching import Watch
from foible.explain.base import Explanation, check_bounds, check_inputs
from foible.explain.gradient import saliency
from foible.models import as_model


@dataclass(frozen=True)
class Rectified:
    """What `rectify` says of a batch.

    label: (B,) int64, of what is not flagged the model's own class. predicted: (B,) the model's.
    flagged: (B,) bool. suspicion: (B,).
    """

    label: Tensor
    predicted: Tensor
    flagged: Tensor
    suspicion: Tensor


def rectify(
    watch: Watch,
    model: Any,
    x: Tensor,
    explainer: Explanation | None = None,
    share: float = 0.3,
    *,
    fpr: float = 0.05,
    seed: int = 0,
) -> Rectified:
    """Classify x, and what the watch flags again without its most salient features (T11).

    The rectifier of X-Ensemble (Wang et al. 2023): of a flagged input the `share` of the features
    (pixels, all colours together) that the map of its predicted class marks strongest is erased at
    random, each to the middle of the box or left with even chances, and the class is that of the
    mean probabilities over 16 such draws. explainer: saliency if None. fpr: the level of the watch.

    The erased class answers too: a clean input that is flagged by mistake mostly keeps its label.
    An attack that knows the rectifier has not been tried: what it recovers is no robust accuracy.

    Raises InputError for a share outside (0, 1].

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net = foible.zoo.load("standard")
    >>> watch = foible.detect.squeezed((3,)).fit(net, (x[:100], y[:100]))
    >>> found = rectify(watch, net, x[100:132])
    >>> bool((found.label == found.predicted)[~found.flagged].all())
    True
    """
    if not 0 < share <= 1:
        raise InputError(f"share={share}: of the features, in (0, 1]")
    check_inputs(x)
    held = as_model(model)
    check_bounds(x, held.bounds)
    made = saliency() if explainer is None else explainer
    suspicion = watch.score(held, x, seed=seed)
    flagged = suspicion > watch.threshold(fpr).value
    oracle = Oracle(held, len(x))
    index = torch.arange(len(x), device=x.device)
    rows = Rows(index, index, x.detach(), torch.zeros_like(index))
    with oracle.session(seed), torch.no_grad():
        parts = [oracle.labels(rows.x[p], rows.take(p)) for p in index.split(held.chunk(x))]
    predicted = torch.cat(parts)
    label = predicted.clone()
    which = flagged.nonzero().squeeze(1)
    if len(which):
        maps = made(held, x[which], predicted[which], seed=seed)
        with oracle.session(seed):
            label[which] = _erased(oracle, rows.take(which), maps, share, seed)
    return Rectified(label, predicted, flagged, suspicion)


def _erased(
    oracle: Oracle, rows: Rows, maps: Tensor, share: float, seed: int, draws: int = 16
) -> Tensor:
    """Return the classes (B,) of the mean probabilities over draws of what is erased."""
    x = rows.x
    strength = maps.abs().sum(1, keepdim=True) if x.dim() > 2 else maps.abs()
    flat = strength.flatten(1)
    top = flat.topk(max(1, round(share * flat.shape[1])), 1).indices
    salient = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, top, True).view_as(strength)
    low, high = oracle.bounds
    middle = (low + high) / 2 if abs(low) + abs(high) < float("inf") else 0.0
    total: Tensor | float = 0.0
    for step in range(draws):
        gone = Rng(seed).split(31).at(rows.id, step).bernoulli(tuple(flat.shape[1:]), 0.5)
        at = torch.where(salient & gone.view_as(strength), middle, x)
        parts = torch.arange(len(x), device=x.device).split(oracle.chunk(x))
        with torch.no_grad():
            total = total + torch.cat([oracle.scores(at[p], rows.take(p)) for p in parts]).softmax(
                1
            )
    assert isinstance(total, Tensor)
    return total.argmax(1)
