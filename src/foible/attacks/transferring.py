"""Attacks made on one model and judged on another, and what makes them carry over."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import Attack, needs_eps
from foible.core.errors import AccessError, InputError, KindError
from foible.core.explainer import Explainer, Field
from foible.core.problem import Objective, View
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.models import as_model
from foible.parts.objectives import objective as named
from foible.parts.searches import Ascent
from foible.parts.smoothing import channels_last
from foible.parts.transforms import ResizePad, Transform


@dataclass(frozen=True)
class Diverse(Explainer):
    """A direction: the gradient at a randomly changed copy of the input (DI, Xie et al. 2019).

    transform: what changes it, by default a random resize and pad with probability 0.5; None for
    nothing.
    scales: the gradient is averaged over x, x / 2, x / 4, ... (SI, Lin et al. 2020); 1 for none.
    Each row draws for itself, afresh at every step. Works wherever an attack takes `direction`;
    the verdict is on the input itself, which is one forward more a step.
    """

    transform: Transform | None = field(default_factory=ResizePad)
    scales: int = 1

    def __post_init__(self) -> None:
        if self.scales < 1:
            raise InputError(f"scales={self.scales}: at least 1, which is the input alone")

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """`scales` forwards and backwards."""
        total = torch.zeros_like(rows.x)
        for k in range(self.scales):
            copies = draw.split(k)

            def value(leaf: Tensor, k: int = k, copies: Draw = copies) -> Tensor:
                x = self._changed(leaf, copies) / 2**k
                return field.score(View(field.oracle, rows, x))

            total = total + field.oracle.value_and_grad(
                value, rows.x, rows, create_graph=create_graph
            )[1]  # fmt: skip
        return total / self.scales

    def _changed(self, x: Tensor, draw: Draw) -> Tensor:
        if self.transform is None:
            return x
        if isinstance(self.transform, ResizePad) and channels_last(x):
            return self.transform(x.permute(0, 3, 1, 2), draw).permute(0, 2, 3, 1)
        return self.transform(x, draw)


def ti_dim(
    threat: Threat,
    steps: int = 10,
    decay: float = 1.0,
    diversity: float = 0.7,
    kernel: int = 3,
    scales: int = 1,
    objective: str | Objective = "cross_entropy",
) -> Attack:
    """Return the iterative method made to transfer: momentum, input diversity, shifts, scales.

    Dong et al. 2019 (TI-DIM) over Xie et al. 2019 and Dong et al. 2018 (A10). Every part can be
    left out: decay 0 is no momentum, diversity 0 no random resize and pad (it is the probability
    of one), kernel 1 no smoothing of the gradient over positions, and scales 1, the default, no
    copies at x / 2, x / 4, ... (SI, Lin et al. 2020). With all of them out it is BIM at steps of
    eps / steps. kernel: positions, odd; the paper takes 15 for images of 299 pixels, and 3 here
    fits 28. Tables and other inputs that are no images take diversity 0 and kernel 1.

    Search it on another model, or on an ensemble: see `transfer`.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> attack = foible.attacks.ti_dim(foible.Linf(0.1), steps=4)
    >>> carried = foible.attacks.transfer(attack, foible.zoo.load("hardened"))
    >>> carried(foible.zoo.load("standard"), x[:8], y[:8]).success.shape
    torch.Size([8])
    """
    if decay < 0:
        raise InputError(f"decay={decay}: the share of the old gradients is not negative")
    search = Ascent(steps, None, 1 / max(1, steps), momentum=decay or None, kernel=kernel)
    transform = ResizePad(p=diversity) if diversity else None
    direction = Diverse(transform, scales) if transform is not None or scales != 1 else None
    return Attack("ti_dim", needs_eps(threat), search, named(objective), direction)


def transfer(attack: Attack, source: Any) -> Attack:
    """Return an attack that is searched on `source`; the attacked model gives labels only.

    Papernot et al. 2016 (A10, S6). source: a module or wrapped model, `foible.models.ensemble` of
    several, or the `.model` of a `substitute`. The attacked model is asked for its label of the
    clean input and of the point found, and nothing else: a transferred attack runs on models
    without gradients. Samples that it gets wrong by itself are left alone ("wrong"). Result's
    forwards are of both models together.

    The point of the highest objective on the source is handed over. An attack that stops at
    success ends at the source's boundary and seldom carries further, so that stop="success"
    becomes "never"; a minimum-norm attack keeps its smallest success, which carries little as
    well. The attack holds a model, so that no plan can store it.

    Raises KindError for a source that is no model, AccessError for one that gives less than the
    attack searches with, and InputError when it runs where the two models' bounds differ.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> carried = transfer(foible.attacks.pgd(foible.Linf(0.1), 5), foible.zoo.load("hardened"))
    >>> carried.access.name, carried(foible.zoo.load("standard"), x[:4], y[:4]).success.shape
    ('LABELS', torch.Size([4]))
    """
    if not isinstance(attack, Attack):
        raise KindError(f"attack is {type(attack).__name__}: pass an attack, e.g. fgsm(Linf(0.1))")
    held = as_model(source)
    carried = replace(attack, source=held, stop="never")
    if carried.searching > held.access:
        raise AccessError(
            f"{attack.name} searches with {carried.searching.name} and the source gives only "
            f"{held.access.name}: train a substitute of it, foible.attacks.substitute"
        )
    return carried
