"""Training in rounds on what was crafted from interpretations, and what each round overfits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from foible.attacks.base import Attack, check_batch
from foible.core.errors import InputError
from foible.defend.batch import Batch
from foible.defend.losses.robust import plain
from foible.defend.training import Settings, train
from foible.models.holding import TorchModel, as_module

ALL, CLEAN = "all", "clean"


@dataclass(frozen=True)
class Rounds:
    """What `rounds` measured.

    trained: (S,) what each training took its samples from, each source alone and then "all".
    attacks: (A,) what it was measured by, "clean" first. accuracy: (S, R + 1, A) float64, after
    each round; the round before the first is the net as it was given. nets: the last of each.
    """

    trained: tuple[str, ...]
    attacks: tuple[str, ...]
    accuracy: Tensor
    nets: Mapping[str, nn.Module] = field(repr=False)

    @property
    def matrix(self) -> Tensor:
        """Return (S, A), the accuracy after the last round: source x attack."""
        return self.accuracy[:, -1]

    @property
    def gain(self) -> Tensor:
        """Return (S, A): by how much all rounds raised the accuracy."""
        return self.accuracy[:, -1] - self.accuracy[:, 0]

    @property
    def overfit(self) -> Tensor:
        """Return (S,): accuracy under the own source less the mean under the others; nan for all.

        A large one says that the training has learnt this source and not to be robust.
        """
        found = torch.full((len(self.trained),), float("nan"), dtype=torch.float64)
        for i, name in enumerate(self.trained[:-1]):
            own = self.attacks.index(name)
            rest = [j for j in range(1, len(self.attacks)) if j != own]
            found[i] = self.matrix[i, own] - self.matrix[i, rest].mean() if rest else float("nan")
        return found

    def __str__(self) -> str:
        """Show the matrix in percent: a row is what it was trained on, a column the attack."""
        width = max(len(name) for name in (*self.trained, *self.attacks)) + 2
        lines = ["".ljust(width) + "".join(name.rjust(width) for name in self.attacks)]
        for name, row in zip(self.trained, self.matrix.tolist(), strict=True):
            cells = "".join(f"{100 * value:.0f}".rjust(width) for value in row)
            lines.append(name.ljust(width) + cells)
        return "\n".join(lines)


def rounds(
    net: nn.Module | TorchModel,
    data: tuple[Tensor, Tensor],
    attacks: Mapping[str, Attack],
    held_out: tuple[Tensor, Tensor],
    count: int = 5,
    epochs: int = 2,
    settings: Settings | None = None,
) -> Rounds:
    """Train in rounds on samples crafted along interpretations; return source x attack (S11).

    Survey Eq. 15 and the text around it: in every round the attacks craft on the net as it now is,
    their samples join those of all rounds before, and the net goes on training on the clean
    samples and the union. Once with each source alone and once with all together, so that the
    matrix shows what each one overfits: robust to its own source, and to no other.

    net: a trained classifier, which stays. data: (x, y) to train on. attacks: by name, e.g.
    `fgsm(threat)`, `smoothgrad_attack(threat)`, `surrogate_attack(threat, lime())` or `pgd(threat,
    direction=integrated_gradients())`; each is a source and a judge. held_out: (x, y) that accuracy
    is measured on. count: rounds. epochs: of each. settings: as of `train`; nothing is held out for
    validation, and by default no average of the weights is taken, because a round is short.

    Raises InputError for no attacks or no rounds, and for a source with the name "all" or "clean".

    >>> import foible, torch
    >>> x, y = torch.rand(64, 3), torch.arange(64) % 2
    >>> sources = {"fgs": foible.attacks.fgsm(foible.Linf(0.05))}
    >>> found = rounds(torch.nn.Linear(3, 2), (x, y), sources, (x, y), count=1, epochs=1)
    >>> found.trained, found.attacks, found.accuracy.shape
    (('fgs', 'all'), ('clean', 'fgs'), torch.Size([2, 2, 2]))
    """
    held = as_module(net)
    for x, y in (data, held_out):
        check_batch(x, y, None, held.bounds)
    if not attacks or count < 1:
        raise InputError(f"{len(attacks)} attacks, {count} rounds: at least one of each")
    taken = {ALL, CLEAN} & set(attacks)
    if taken:
        raise InputError(f"a source is named {taken.pop()!r}, which names a row or column here")
    how = replace(settings or Settings(average=0.0), hold_out=0.0)
    every: dict[str, tuple[str, ...]] = {**{name: (name,) for name in attacks}, ALL: tuple(attacks)}
    first = _accuracy(held, attacks, held_out, how.seed)
    accuracy, nets = [], []
    for sources in every.values():
        now, union, course = held, [data], [first]
        for number in range(count):
            seed = how.seed + number
            for name in sources:
                union.append((_crafted(now, attacks[name], data, seed), data[1]))
            parts = tuple(torch.cat(p) for p in zip(*union, strict=True))
            later = now.copied()
            later.net = train(now, parts, plain(), epochs, settings=replace(how, seed=seed))
            now = later
            course.append(_accuracy(now, attacks, held_out, how.seed))
        accuracy.append(torch.stack(course))
        nets.append(now.net)
    named = dict(zip(every, nets, strict=True))
    return Rounds(tuple(every), (CLEAN, *attacks), torch.stack(accuracy), named)


def _crafted(model: TorchModel, attack: Attack, data: tuple[Tensor, Tensor], seed: int) -> Tensor:
    """Return adversarials; an attack that ascends moves those too that the net gets wrong."""
    x, y = data
    return Batch(model, x, y, torch.arange(len(y)), seed=seed).craft(attack)


def _accuracy(
    model: TorchModel, attacks: Mapping[str, Attack], data: tuple[Tensor, Tensor], seed: int
) -> Tensor:
    """Return the accuracy (1 + A,) float64, on clean samples first."""
    x, y = data
    found: list[float] = []
    for attack in attacks.values():
        result = attack(model, x, y, seed=seed)
        if not found:
            found.append(float((result.clean_label.to(y.device) == y).double().mean()))
        found.append(float((~result.success).double().mean()))
    return torch.tensor(found, dtype=torch.float64)
