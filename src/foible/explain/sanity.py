"""Does a map depend on the model, and would a model miss what the map names?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.errors import InputError, KindError
from foible.core.progress import tick
from foible.core.randomness import Rng
from foible.explain.base import Explanation, as_labels, check_inputs
from foible.explain.evaluate import agreement
from foible.explain.scoring import shuffled
from foible.models import TorchModel, as_model
from foible.parts.projections import places


@dataclass(frozen=True)
class Randomised:
    """How maps change as a net's layers lose what they learnt, from the last to the first.

    layers: the names, in the order of randomising; row i of the others is with layers 0..i
    randomised. rank, topk: (L, B), agreement with the trained net's map. maps: (L + 1, B, *shape),
    the trained net's first.
    """

    layers: tuple[str, ...]
    rank: Tensor
    topk: Tensor
    maps: Tensor


def randomisation(
    explainer: Explanation, model: Any, x: Tensor, target: Tensor | int | None = None, *,
    k: int = 100, seed: int = 0,
) -> Randomised:  # fmt: skip
    """Return the cascading randomisation test of a method (B33; Adebayo et al. 2018).

    A map that stays while the weights go explains the input and not the model. Layers are shuffled
    from the output backwards, and the maps of the shuffled nets compared with the first. target:
    None explains, everywhere, the class that the trained net predicts. k: for the top-k agreement.

    Departure: a weight's values are shuffled instead of drawn anew, which needs no initialiser and
    keeps their scale, so that no map changes only because activations explode. Running statistics
    of normalisation stay.
    """
    held = as_model(model)
    if not isinstance(held, TorchModel):
        raise KindError(f"{type(model).__name__} has no weights to shuffle: pass an nn.Module")
    check_inputs(x)
    labels = as_labels(x, target)
    if labels is None:
        with held.session(seed), torch.no_grad():
            pieces = x.detach().split(held.chunk(x))
            labels = torch.cat([held.scores(piece).argmax(1) for piece in pieces])
    net = copy.deepcopy(held.net)
    twin = TorchModel(net, held.bounds, held.preprocess, held.outputs)
    names = list(reversed(_weighted(net)))
    if not names:
        raise InputError("the net has no weights: there is nothing to randomise")
    k = min(k, x[0].numel())
    maps = [explainer(twin, x, labels, seed=seed).detach()]
    found = []
    for place, name in enumerate(names):
        _shuffle(net.get_submodule(name), seed, place)
        maps.append(explainer(twin, x, labels, seed=seed).detach())
        found.append(agreement(maps[0], maps[-1], k))
        tick(1)
    rank, topk = (torch.stack([f[key] for f in found]) for key in ("rank", "topk"))
    return Randomised(tuple(names), rank, topk, torch.stack(maps))


def _weighted(net: nn.Module) -> list[str]:
    """Return the modules that hold parameters of their own, in the order of registration."""
    return [name for name, m in net.named_modules() if any(True for _ in m.parameters(False))]


def _shuffle(module: nn.Module, seed: int, place: int) -> None:
    with torch.no_grad():
        for number, weight in enumerate(module.parameters(recurse=False)):
            draw = Rng(seed).split(17 + place).at(torch.tensor([number]))
            order = draw.uniform((weight.numel(),), torch.float64)[0].argsort()
            weight.copy_(weight.flatten()[order.to(weight.device)].view_as(weight))


@dataclass(frozen=True)
class Retrained:
    """Accuracy of nets trained without the features that a map names: (P,), one a share.

    shares: of the features removed; control: the same with the map's values shuffled; whole: with
    all features. The lower than the control, the more the map names what a model needs.
    """

    shares: tuple[float, ...]
    accuracy: Tensor
    control: Tensor
    whole: float


Fit = Callable[[Tensor, Tensor, int], Any]


def retraining(
    explainer: Explanation, fit: Fit, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor],
    shares: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9), *, seed: int = 0,
) -> Retrained:  # fmt: skip
    """Return accuracy after removing and retraining (ROAR; B33; Hooker et al. 2019).

    A fall after plain deletion may only show that the model has never seen such inputs; so each
    share of features, those of the largest map of the true label first, is replaced by the
    training mean in training and test set, and a new model trained. fit(x, y, seed) gives a
    trained model; it is called 1 + 2 * len(shares) times.
    """
    model = fit(*train, seed)
    mean = train[0].mean(0, keepdim=True)
    maps = [explainer(model, x, y, seed=seed).detach() for x, y in (train, test)]
    mixed = [shuffled(m, Rng(seed).split(19).at(torch.arange(len(m)))) for m in maps]

    def left(orders: Sequence[Tensor], share: float) -> float:
        sets = []
        for (x, y), order in zip((train, test), orders, strict=True):
            first = places(order.flatten(1)).view_as(order) < round(share * x[0].numel())
            sets.append((torch.where(first, mean, x), y))
        tick(1)
        return _accuracy(fit(*sets[0], seed), *sets[1])

    return Retrained(
        tuple(shares), torch.tensor([left(maps, share) for share in shares]),
        torch.tensor([left(mixed, share) for share in shares]), _accuracy(model, *test),
    )  # fmt: skip


def _accuracy(model: Any, x: Tensor, y: Tensor) -> float:
    held = as_model(model)
    with held.session(), torch.no_grad():
        seen = [held.scores(piece).argmax(1) for piece in x.split(max(1, held.chunk(x)))]
    return float((torch.cat(seen) == y).double().mean())
