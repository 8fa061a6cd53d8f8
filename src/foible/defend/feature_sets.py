"""Data sets of robust and of non-robust features: what a net's features alone can teach."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foible.attacks.base import Attack, check_batch
from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.threat import Box
from foible.models.holding import TorchModel, as_model, as_module
from foible.parts.searches import Ascent
from foible.parts.threats import L2

LABELS = ("random", "next")


@dataclass(frozen=True)
class Alike:
    """Minus the squared distance of a layer's output from `rows.extra["wanted"]`."""

    layer: str
    access = Access.INTERNALS

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        _, seen = view.oracle.tap(view.x_adv, view.rows, self.layer)
        return -(seen - view.rows.extra["wanted"]).flatten(1).square().sum(1)


def penultimate(model: TorchModel, x: Tensor) -> str:
    """Return the name of the last layer whose output has another shape than the scores.

    Where that is a ReLU, the layer before it: through units that are off there is no way back.
    """
    layers = model.layers(x)
    names = [name for name, shape in layers.items() if shape != list(layers.values())[-1]]
    if len(names) > 1 and isinstance(model.net.get_submodule(names[-1].split("#")[0]), nn.ReLU):
        names.pop()
    if not names:
        raise InputError("the model has no layer before its scores: there are no features to keep")
    return names[-1]


def robust_features(
    model: Any,
    x: Tensor,
    y: Tensor,
    layer: str | None = None,
    steps: int = 200,
    step: float = 0.1,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return (x_r, y): inputs that a model's features cannot tell from x, and x's labels.

    R9, Ilyas et al. 2019, survey Eq. 20: x_r minimises |g(x_r) - g(x)|_2 from another input drawn
    at random, with g the features of `model`. With a robust model only what it uses is carried
    over, and a net that is trained plainly on (x_r, y) is robust to some degree: the paper's D_R.
    With a standard model nothing robust is: its D_NR.

    model: a torch module, bare or wrapped. x (N, *shape) inside its bounds, y (N,) int64: the
    labels go through. layer: g, as in `foible.models.layers_of`; None is the last layer whose
    output has another shape than the scores, before its ReLU if it is one. steps, step: of
    L2-normalised gradient descent within the box, 1000 of 0.1 in the paper; one forward and one
    backward each. seed: fixes where each begins.

    Raises InputError or KindError for inputs or layers that cannot be used.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> x_r, _ = robust_features(foible.zoo.load("hardened"), x[:8], y[:8], steps=3)
    >>> x_r.shape
    torch.Size([8, 1, 28, 28])
    """
    held = as_module(model)
    check_batch(x, y, None, held.bounds)
    if steps < 1 or not step > 0:
        raise InputError(f"steps={steps}, step={step}: at least one, above 0")
    x = x.detach()
    layer = penultimate(held, x) if layer is None else layer
    oracle = Oracle(held, len(x), Access.INTERNALS)
    index = torch.arange(len(x), device=x.device)
    begin = (Rng(seed).split(61).at(index).scalars(1).squeeze(1) * len(x)).long().to(x.device)
    # The whole box: no ball around where it begins.
    threat = L2(Box(*held.bounds).width * x[0].numel() ** 0.5).inside(held.bounds)
    attack = Attack("robust_features", threat, Ascent(steps, step), Alike(layer))
    with oracle.session(seed):
        rows = Rows(index, index, x[begin], y.to(index), eps=threat.radii(len(x), x))
        with torch.no_grad():
            parts = index.split(oracle.chunk(x))
            wanted = [oracle.tap(x[p], rows.take(p), layer)[1] for p in parts]
        rows.extra["wanted"] = torch.cat(wanted)
        problem = replace(attack.problem(oracle, threat), keep="last")
        return attack.search_all(problem, rows, seed)[0].detach(), y


def non_robust_features(
    model: Any, x: Tensor, y: Tensor, attack: Attack, labels: str = "random", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return (x', t): inputs that look like their old labels, with the labels that they fool to.

    R9, Ilyas et al. 2019: adversarials of a standard model towards a class t, *labelled* t. To a
    person every label is wrong; what a net learns from them and can use on clean test
    images are features that no person sees.

    attack: makes them, e.g. `pgd(foible.L2(0.5), steps=100, step=0.1)`. labels: "random" draws t
    evenly from all classes, so that robust features tell nothing (D_rand); "next" is y + 1, so that
    they mislead (D_det). seed: fixes both.

    Raises InputError for another `labels` and for inputs that cannot be attacked.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> attack = foible.attacks.pgd(foible.L2(0.5), steps=3)
    >>> _, t = non_robust_features(foible.zoo.load("standard"), x[:8], y[:8], attack, "next")
    >>> bool((t == (y[:8] + 1) % 10).all())
    True
    """
    if labels not in LABELS:
        raise InputError(f"labels is {labels!r}: choose {' or '.join(map(repr, LABELS))}")
    held = as_model(model)
    check_batch(x, y, None, held.bounds)
    with held.session(seed), torch.no_grad():
        classes = held.scores(x[:1]).shape[1]
    if labels == "next":
        target = (y + 1) % classes
    else:
        drawn = Rng(seed).split(67).at(torch.arange(len(y))).scalars(1).squeeze(1)
        target = (drawn * classes).long().to(y.device)
    return attack(held, x, y, target=target, seed=seed).x, target
