"""The two-class protocol of unrestricted adversarial examples: accuracy at a coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import Attack, Result, check_batch, clean_scores
from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.rows import Rows
from foible.models import as_model
from foible.parts.objectives import others


def at_coverage(scores: Tensor, y: Tensor, coverage: float = 0.8) -> float:
    """Return the accuracy on the most confident share of the samples.

    scores: (N, K) logits; y: (N,) labels; coverage: the share that must be answered, rounded up to
    whole samples. The confidence is the log-odds of the predicted class, which, unlike its
    probability, does not saturate. Of equal confidences the wrong answers are kept, so that a
    model that is equally sure of everything gains nothing by abstaining.

    >>> scores = torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 4.0], [0.5, 0.0]])
    >>> at_coverage(scores, torch.tensor([0, 0, 0, 1, 1]), 0.8)
    0.75
    """
    if not 0 < coverage <= 1:
        raise InputError(f"coverage={coverage}: a share of the samples in (0, 1]")
    if scores.dim() != 2 or scores.shape[1] < 2 or y.shape != (len(scores),) or len(y) == 0:
        raise InputError(
            f"scores {tuple(scores.shape)} and y {tuple(y.shape)}: give logits (N, K) of two "
            "classes at least, and one label each"
        )
    scores = scores.detach().double()
    top, label = scores.max(1)
    sure = top - torch.logsumexp(others(scores, label), 1)
    right = label == y
    kept = math.ceil(coverage * len(y) - 1e-9)
    order = torch.argsort(right.int(), stable=True)
    order = order[torch.argsort(-sure[order], stable=True)]
    return float(right[order[:kept]].double().mean())


@dataclass(frozen=True)
class TwoClass:
    """What the protocol gives: accuracies at the coverage, in [0, 1].

    clean: of the inputs as they are; under: of each attack by name; results: what each attack
    found; n: samples; coverage: as given.
    """

    clean: float
    under: dict[str, float]
    results: dict[str, Result]
    n: int
    coverage: float

    @property
    def worst(self) -> float:
        """The least of all, clean included."""
        return min([self.clean, *self.under.values()])


def two_class(
    model: Any,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[Attack],
    coverage: float = 0.8,
    seed: int = 0,
) -> TwoClass:
    """Return a two-class model's accuracy at 80 % coverage under each attack.

    Brown et al. 2018 (A23), the warm-up of the unrestricted adversarial examples challenge: the
    model may abstain on the 20 % of each attack's inputs of which it is least sure, and is judged
    on the rest; only confident mistakes count. There they took SPSA, a spatial grid and the
    boundary attack. model: with two classes, or one logit. attacks: any; "never" stopping is
    stronger here than "success", as a mistake must also be a sure one. Attacks of one name are
    told apart by a number.

    Raises InputError for models of more classes, which the protocol does not rank.

    >>> import foible
    >>> net = torch.nn.Linear(2, 2)
    >>> x, y = torch.rand(10, 2), torch.zeros(10, dtype=torch.int64)
    >>> found = two_class(net, x, y, [foible.attacks.fgsm(foible.Linf(0.1))])
    >>> 0 <= found.under["fgsm"] <= 1
    True
    """
    held = as_model(model)
    check_batch(x, y, None, held.bounds)
    index = torch.arange(len(x), device=x.device)
    rows = Rows(index, index, x.detach(), y.to(index))
    clean = _scores(held, rows, seed)
    if clean.shape[1] != 2:
        raise InputError(
            f"the model has {clean.shape[1]} classes and the protocol is for two: pass a binary "
            "model, or use at_coverage on scores of your own"
        )
    results: dict[str, Result] = {}
    under: dict[str, float] = {}
    for attack in attacks:
        before = sum(name.split("#")[0] == attack.name for name in results)
        name = f"{attack.name}#{before + 1}" if before else attack.name
        results[name] = attack(held, x, y, seed=seed)
        found = _scores(held, rows.at(results[name].x), seed)
        under[name] = at_coverage(found, rows.y, coverage)
    return TwoClass(at_coverage(clean, rows.y, coverage), under, results, len(x), coverage)


def _scores(held: Any, rows: Rows, seed: int) -> Tensor:
    oracle = Oracle(held, len(rows), Access.SCORES)
    with oracle.session(seed):
        return clean_scores(oracle, rows)
