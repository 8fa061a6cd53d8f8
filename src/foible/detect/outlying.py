"""One more class, for what is adversarial (T2)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foible.attacks.base import Attack
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.defend.losses import plain
from foible.defend.training import Settings, train
from foible.detect.base import Feature, State
from foible.models.holding import TorchModel, as_model


@dataclass(frozen=True)
class LastClass(Feature):
    """The log-odds of the last class, for a net that has one more than there are: (B, 1)."""

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, 1)."""
        with torch.set_grad_enabled(create_graph):
            scores = oracle.scores(rows.x, rows)
            return scores[:, -1:] - scores[:, :-1].logsumexp(1, keepdim=True)


def outlier_class(
    net: Any,
    data: tuple[Tensor, Tensor],
    attack: Attack,
    epochs: int = 5,
    *,
    settings: Settings | None = None,
) -> nn.Module:
    """Return a net with one class more, for adversarials (T2, Grosse et al. 2017).

    net: a trained torch module with K classes, bare or wrapped; it stays as it is. Its copy gets
    one more output at its last linear layer and goes on learning. data: (x, y) clean, which keep
    their labels. attack: makes one adversarial of each on the given net, once; those that fool it
    are of class K. epochs, settings: of `foible.defend.train`; the learning rate is 3e-4 unless
    settings say otherwise. What is returned takes what net.net takes.

    Class K is detection: `Detector("outlier", LastClass(), Largest(normed=False))` is a detector of
    the new net, which can be fitted to clean inputs alone and judged like any other. Broken as the
    binary classifier is: an attack on the new net finds what it has not seen (Carlini and Wagner
    2017).

    Raises KindError for a model that is no torch module or ends in no linear layer, InputError
    where nothing fools the net.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> attack = foible.attacks.fgsm(foible.Linf(0.1))
    >>> made = outlier_class(foible.zoo.load("standard"), (x[:64], y[:64]), attack, epochs=1)
    >>> made(x[:2]).shape
    torch.Size([2, 11])
    """
    held = as_model(net)
    if not isinstance(held, TorchModel):
        raise KindError(f"{type(net).__name__} is no torch module: pass the nn.Module itself")
    x, y = data
    seed = 0 if settings is None else settings.seed
    result = attack(held, x, y, seed=seed)
    fools = result.success & result.attacked.to(result.success.device)
    if not bool(fools.any()):
        raise InputError("no adversarial fools the net: take a stronger attack or a larger eps")
    with held.session(seed), torch.no_grad():
        classes = held.scores(x[:1]).shape[1]
    wider = held.copied()
    wider.net = widened(wider.net, classes, seed)
    inputs = torch.cat([x, result.x[fools]])
    labels = torch.cat([y, torch.full((int(fools.sum()),), classes, dtype=y.dtype).to(y)])
    return train(
        wider, (inputs, labels), plain(), epochs, settings=settings or Settings(lr=3e-4, seed=seed)
    )


def widened(net: nn.Module, classes: int, seed: int = 0) -> nn.Module:
    """Return a net whose last linear layer of `classes` outputs has one more, weights as drawn."""
    layers = [
        (name, part)
        for name, part in net.named_modules()
        if isinstance(part, nn.Linear) and part.out_features == classes
    ]
    if not layers:
        raise KindError(
            f"{type(net).__name__} has no nn.Linear with {classes} outputs to add a class to: give "
            "the net one more output yourself, and train it with foible.defend.train"
        )
    name, last = layers[-1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        more = nn.Linear(last.in_features, classes + 1, last.bias is not None)
    more = more.to(last.weight)
    with torch.no_grad():
        more.weight[:-1] = last.weight
        if last.bias is not None:
            more.bias[:-1] = last.bias
    if not name:
        return more
    net = copy.deepcopy(net)
    parent, _, own = name.rpartition(".")
    setattr(net.get_submodule(parent), own, more)
    return net
