"""Counterfactuals: the smallest change of a table's row after which the model decides otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import Attack
from foible.attacks.penalised import _minimal, _runs
from foible.core.errors import InputError, KindError
from foible.models import as_model
from foible.parts.searches.ead import ElasticDescent
from foible.parts.threats import L1, Features


def counterfactual(
    threat: L1 | None = None, steps: int = 200, searches: int = 9, confidence: float = 0.0
) -> Attack:
    """Return the search for a counterfactual: the nearest input of another class (B30).

    Wachter, Mittelstadt and Russell 2017: "had these features been so, the decision would have
    been that". threat: `Features.of(data)`, as a rule, which counts every feature in its median
    absolute deviation, fixes what nobody can change and lets others only rise or fall; None
    counts the features as they are, and any `L1` will do. steps: of descent in a run; searches:
    runs, each with another weight of the class against the distance, bisected for every sample.
    confidence: the margin of logits by which the other class must win; for a probability p of
    two classes that is log(p / (1 - p)). With `target` the class is chosen, else it is the
    nearest. Costs at most steps * searches gradients, about half of it, 10 backwards to rank the
    classes and 14 labels to shorten the result. On a linear model the distance is the optimum to
    1e-3.

    Departures: the paper's (f(x') - y')^2 pulls back what is past y' too; here what lies past
    it costs nothing, and the shortest such change is at y' all the same. Its one weight, raised
    until all samples are done, is bisected for each. The descent is proximal (FISTA, as in
    `ead`, without the squared term), so that features which do not matter stay exactly as they
    were; plain gradients of an absolute value only hover about that.

    Raises KindError for a threat that does not measure in L1.

    >>> import foible, torch
    >>> net = torch.nn.Linear(3, 2)
    >>> _ = net.load_state_dict({"weight": torch.tensor([[0.0, 0, 0], [2, 1, 4]]),
    ...                          "bias": torch.tensor([0.0, -4])})
    >>> x, model = torch.tensor([[0.5, 0.5, 0.5]]), foible.wrap(net, bounds=(-9, 9))
    >>> threat = Features(units=(1.0, 1.0, 5.0), fixed=(1,))
    >>> found = counterfactual(threat)(model, x, torch.tensor([0]))
    >>> [round(v, 3) for v in found.x[0].tolist()], round(float(found.distance[0]), 3)
    ([0.5, 0.5, 0.625], 0.025)
    """
    threat = Features() if threat is None else threat
    if not isinstance(threat, L1):
        raise KindError(
            f"a counterfactual is short in L1, which keeps it sparse, not in "
            f"{type(threat).__name__}: give Features.of(data) or L1()"
        )
    _runs(steps, searches)
    search = ElasticDescent(steps, searches, polish=14, beta=float("inf"), last=0.0002, pruning=8)
    return _minimal("counterfactual", threat, search, confidence)


@dataclass(frozen=True)
class Alternatives:
    """Several counterfactuals a sample, nearest first.

    x: (B, N, *shape); success: (B, N) bool; distance: (B, N) float64, inf where none was found;
    label: (B, N) the class of each. distinct: (B,) int64, how many differ in class or in the set
    of features that they change by a hundredth of their largest change at least, in units of the
    threat. forwards, backwards: (B,) int64, of all together.
    """

    x: Tensor
    success: Tensor
    distance: Tensor
    label: Tensor
    distinct: Tensor
    forwards: Tensor
    backwards: Tensor


def alternatives(
    attack: Attack, model: Any, x: Tensor, y: Tensor, *, count: int = 4,
    target: Tensor | None = None, seed: int = 0,
) -> Alternatives:  # fmt: skip
    """Return several counterfactuals a sample, by restarts (Wachter et al. 2017).

    attack: as made by `counterfactual`. The first begins at the sample itself, and the others
    each at a random point about it, one unit of noise a feature, so that they end in other local
    optima where there are any: on a linear model there is one, and `distinct` says so.

    Raises InputError for a count below 1, KindError for another kind of attack.
    """
    if count < 1:
        raise InputError(f"count={count}: ask for one counterfactual at least")
    if not isinstance(attack.search, ElasticDescent):
        raise KindError(
            f"{attack.name} cannot begin elsewhere: give attacks.counterfactual(...) or ead"
        )
    n, held = len(x), as_model(model)
    found = [attack(held, x, y, target=target, seed=seed)]
    leaping = replace(attack, search=replace(attack.search, leap=True))
    for k in range(1, count):
        ids = torch.arange(n, device=x.device) + k * n
        found.append(leaping(held, x, y, target=target, seed=seed, ids=ids))
    order = torch.stack([r.distance for r in found], 1).argsort(dim=1, stable=True)

    def sorted_by_distance(parts: list[Tensor]) -> Tensor:
        together = torch.stack(parts, 1)
        return together[torch.arange(n, device=x.device)[:, None], order]

    points = sorted_by_distance([r.x for r in found])
    success = sorted_by_distance([r.success for r in found])
    label = sorted_by_distance([r.label for r in found])
    assert isinstance(attack.threat, L1)
    change = ((points - x[:, None]) / attack.threat.by_z(torch.ones_like(x))[:, None]).flatten(2)
    changed = change.abs() > 0.01 * change.abs().amax(2, keepdim=True)
    same = (changed[:, :, None] == changed[:, None]).all(3)
    same = same & (label[:, :, None] == label[:, None]) & success[:, None]
    new = ~same.tril(-1).any(2) & success  # not the like of an earlier one
    return Alternatives(
        points, success, sorted_by_distance([r.distance for r in found]), label, new.sum(1),
        torch.stack([r.forwards for r in found]).sum(0),
        torch.stack([r.backwards for r in found]).sum(0),
    )  # fmt: skip
