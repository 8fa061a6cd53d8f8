"""Who fools whom: what is crafted on each model, judged by all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import Attack, check_batch
from foible.attacks.gradient import fgsm
from foible.attacks.rivals import Rivals
from foible.attacks.substitutes import substitute
from foible.attacks.transferring import transfer
from foible.attacks.trees import path_flip
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.oracle import Model, Oracle
from foible.core.randomness import Rng
from foible.core.rows import Rows, per_row
from foible.core.threat import Threat
from foible.models import as_model
from foible.models.standins import Plane, leaves_of, stand_in
from foible.parts.objectives import Nearest
from foible.parts.threats import Ball


@dataclass(frozen=True)
class TransferMatrix:
    """What `transfer_matrix` measured; row i crafts, column j judges.

    names: (M,) of the models. error: (M, M) float64, the share of the samples that models i and j
    both classify rightly which j loses to what i crafted; its diagonal is the success rate of the
    attack on i itself. noise: (M, M) the same for random changes of equal size, sample by sample.
    count: (M, M) int64, the samples that were judged; nan in the shares where there are none.
    how: (M,) how each row was crafted. x: (M, N, *shape) what it crafted.
    """

    names: tuple[str, ...]
    error: Tensor
    noise: Tensor
    count: Tensor
    how: tuple[str, ...]
    x: Tensor

    @property
    def lead(self) -> Tensor:
        """Return (M, M): by how much crafting beats noise of equal size."""
        return self.error - self.noise

    @property
    def carried(self) -> float:
        """Return the share of cells off the diagonal that lead noise by 10 points at least."""
        off = ~torch.eye(len(self.names), dtype=torch.bool)
        return float((self.lead[off] >= 0.1).double().mean())

    def __str__(self) -> str:
        """Show error (noise), in percent: a row crafts, a column judges."""
        width = max(12, *(len(name) + 2 for name in self.names))
        lines = [" " * width + "".join(name.rjust(width) for name in self.names)]
        for i, name in enumerate(self.names):
            shown = [
                f"{100 * e:.0f} ({100 * n:.0f})".rjust(width)
                for e, n in zip(self.error[i].tolist(), self.noise[i].tolist(), strict=True)
            ]
            lines.append(name.ljust(width) + "".join(shown))
        return "\n".join(lines)


def transfer_matrix(
    models: Mapping[str, Any],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    attack: Attack | None = None,
    seeds: Tensor | None = None,
    seed: int = 0,
) -> TransferMatrix:
    """Measure how what is crafted on each model fools every other one.

    Papernot et al. 2016 (A10). models: names and models with the same bounds: modules, wrapped
    ones, and scikit-learn classifiers by `foible.models.estimator`. x, y: the samples. threat: a
    norm ball with eps. attack: what models with gradients are attacked by, `fgsm(threat)` by
    default. seeds: inputs that substitutes are taught from, x itself by default. seed: fixes all
    randomness.

    A row is crafted by the attack where its model has gradients. A linear classifier is crossed
    in closed form, along the weights to the nearest class; a tree by `path_flip`, with the rest of
    eps spent uphill on the softened tree; nearest neighbours by the attack on their soft
    version; any other by the attack on a substitute that its labels have taught. The paper judges
    on all samples; here a cell holds those that both models classify rightly, so that an error that
    was there before is nobody's success. Noise has each crafted change's own size, in the
    threat's norm.

    Raises InputError for fewer than two models or bounds that differ, KindError for a threat that
    is no norm ball.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> nets = {name: foible.zoo.load(name) for name in ("standard", "hardened")}
    >>> found = transfer_matrix(nets, x[:20], y[:20], foible.Linf(0.1))
    >>> found.error.shape, found.how
    (torch.Size([2, 2]), ('fgsm', 'fgsm'))
    """
    held = {str(name): as_model(model) for name, model in models.items()}
    if len(held) < 2:
        raise InputError(f"models holds {len(held)}: a matrix needs two at least")
    spans = {model.bounds for model in held.values()}
    if len(spans) > 1:
        raise InputError(f"the models' bounds are {sorted(spans)}: hold all with the same ones")
    if not isinstance(threat, Ball):
        raise KindError(f"{type(threat).__name__} has no norm to measure noise by: use a ball")
    check_batch(x, y, None, next(iter(spans)))
    attack = fgsm(threat) if attack is None else attack.within(threat)
    crafted, how = [], []
    for model in held.values():
        best, words = _crafting(model, attack, x if seeds is None else seeds, seed)
        crafted.append(best(model, x, y, seed=seed).x)
        how.append(words)
    names, right = tuple(held), torch.stack([_right(m, x, y, seed) for m in held.values()])
    error, noise = (torch.zeros(len(held), len(held), dtype=torch.float64) for _ in range(2))
    count = torch.zeros(len(held), len(held), dtype=torch.int64)
    bound = threat.inside(next(iter(spans)))
    for i, made in enumerate(crafted):
        size = bound.distance(_rows(x, y), made)
        shaken = _shaken(bound, replace(_rows(x, y), eps=size.to(x)), seed)
        for j, judge in enumerate(held.values()):
            both = right[i] & right[j]
            count[i, j] = int(both.sum())
            error[i, j] = (~_right(judge, made, y, seed))[both].double().mean()
            noise[i, j] = (~_right(judge, shaken, y, seed))[both].double().mean()
    return TransferMatrix(names, error, noise, count, tuple(how), torch.stack(crafted))


def _crafting(model: Model, attack: Attack, seeds: Tensor, seed: int) -> tuple[Attack, str]:
    """Return the attack that crafts on a model, and in a few words what it is."""
    threat = attack.threat
    if model.access >= attack.searching:
        return attack, attack.name
    if leaves_of(model) is not None:
        return path_flip(model, threat, spend=True), "path flip"
    soft = stand_in(model)
    if soft is not None and isinstance(soft.net, Plane):
        # One full step towards the nearest class of a linear model is the closed form.
        closed = replace(fgsm(threat), objective=Nearest(), prepare=Rivals(threat))
        return transfer(closed, soft), "closed form"
    if soft is not None:
        return transfer(attack, soft), f"{attack.name} on its soft version"
    own = substitute(model, seeds, seed=seed)
    return transfer(attack, own.model), f"{attack.name} on a substitute"


def _rows(x: Tensor, y: Tensor) -> Rows:
    index = torch.arange(len(x), device=x.device)
    return Rows(index, index, x, y.to(index))


def _right(model: Model, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """Judge (N,) bool, on the CPU, which labels the model gives rightly."""
    rows, oracle = _rows(x, y), Oracle(model, len(x), Access.LABELS)
    parts = torch.arange(len(x), device=x.device).split(max(1, model.chunk(x)))
    with oracle.session(seed):
        found = [oracle.labels(x[part], rows.take(part)) == rows.y[part] for part in parts]
    return torch.cat(found).cpu()


def _shaken(threat: Ball, rows: Rows, seed: int) -> Tensor:
    """Return x with a random change of length rows.eps, as far as the box leaves room for it."""
    noise = Rng(seed).split(17).at(rows.id).normal(rows.shape, rows.x.dtype)
    noise = noise.sign() if threat.norm == "linf" else noise
    low, high = threat._room(rows)
    if threat.norm == "l0":
        far = (noise * 1e3).clamp(low, high)
        return threat.render(rows, threat.project(rows, far))
    length = threat.length(noise.flatten(1).double()).to(noise)
    scale = rows.radius() / per_row(length, noise)
    for _ in range(40):  # what the box cuts off is made up for elsewhere
        z = (noise * scale).clamp(low, high)
        got = per_row(threat.length(z.flatten(1).double()).to(noise), noise).clamp_min(1e-12)
        scale = scale * (rows.radius() / got).clamp(0.5, 2.0)
    return threat.render(rows, threat.project(rows, (noise * scale).clamp(low, high)))
