"""A structural causal model of a net: how strongly the units of each layer move the next one's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.explain.neurons import tapped, torch_model

SUMMARIES = ("norm", "binary")


@dataclass(frozen=True)
class CausalModel:
    """Linear equations from the units of each layer to those of the next, and to the logits.

    layers: their names, in order. summary: what stands for a channel's map, "norm" (Frobenius) or
    "binary" (the variance of the map cut at the channel's mean); a unit that gives one number
    stands for itself. weights: per layer (U, children) float64; mean, spread: per layer (U,), and
    the logits' last. cuts: per layer, the channels' means that "binary" cuts at.
    """

    layers: tuple[str, ...]
    summary: str
    weights: tuple[Tensor, ...]
    mean: tuple[Tensor, ...]
    spread: tuple[Tensor, ...]
    cuts: tuple[Tensor, ...]

    def importance(self, layer: str, scaled: bool = True) -> Tensor:
        """Return sum over children |beta| (U,), the paper's importance; 0 for a unit that is dead.

        scaled: times the unit's spread, so that a unit's unit of measurement does not count; the
        paper's own is scaled=False.
        """
        place = self._place(layer)
        weight = self.weights[place].abs().sum(1)
        return weight * self.spread[place] if scaled else weight

    def effect(self, layer: str) -> Tensor:
        """Return the change of the mean logits under do(unit = 0), (U, K), through later layers."""
        place = self._place(layer)
        total = self.weights[place]
        for later in self.weights[place + 1 :]:
            total = total @ later
        return -self.mean[place][:, None] * total

    def fit(self, model: Any, x: Tensor) -> dict[str, Tensor]:
        """Return R^2 of every child on other data, by the layer of its parents.

        NaN for a child that does not vary there.
        """
        nodes = self._nodes(model, x)
        found = {}
        for place, layer in enumerate(self.layers):
            away = (nodes[place] - self.mean[place]) @ self.weights[place]
            child = nodes[place + 1]
            wrong = (child - self.mean[place + 1] - away).square().sum(0)
            whole = (child - child.mean(0)).square().sum(0)
            found[layer] = torch.where(whole > 0, 1 - wrong / whole, float("nan"))
        return found

    def _place(self, layer: str) -> int:
        if layer not in self.layers:
            raise InputError(f"layer {layer!r} is not in the model: choose from {self.layers}")
        return self.layers.index(layer)

    def _nodes(self, model: Any, x: Tensor) -> list[Tensor]:
        acts, scores = _read(model, x, self.layers)
        pairs = zip(acts, self.cuts, strict=True)
        return [*(_summed(a, self.summary, cut) for a, cut in pairs), scores.double()]


def causal_model(
    model: Any, x: Tensor, layers: Sequence[str] | None = None, summary: str = "norm"
) -> CausalModel:
    """Return the structural causal model of a net's units (B32, L4, Narendra et al. 2018).

    One construction, no repeated ablation: each child is regressed on all units of the layer
    before it, by least squares on x (N, *shape); take many more samples than a layer has units.
    layers: names of `foible.models.layers_of`, in order; None for the last run of equal shape
    after each module with weights (the activation, where there is one), without the logits.

    Departures: a layer's parents are all units of the layer before it in the list, so that what a
    skip connection brings past it is not in the equations.

    >>> import foible
    >>> x, _ = foible.zoo.sample()
    >>> found = causal_model(foible.zoo.load("standard"), x[:300])
    >>> found.layers, found.importance("1").shape
    (('1', '3', '6'), torch.Size([32]))
    """
    if summary not in SUMMARIES:
        raise InputError(f"summary={summary!r}: choose {' or '.join(map(repr, SUMMARIES))}")
    chosen = tuple(layers) if layers is not None else unit_layers(model, x)
    if not chosen:
        raise InputError("no layer is named and none was found: see foible.models.layers_of")
    acts, scores = _read(model, x, chosen)
    cuts = tuple(_middle(a) for a in acts)
    nodes = [_summed(a, summary, cut) for a, cut in zip(acts, cuts, strict=True)]
    nodes.append(scores.double())
    most = max(node.shape[1] for node in nodes[:-1])
    if len(x) <= most:
        raise InputError(
            f"{len(x)} samples for a layer of {most} units fit no regression: give more than {most}"
        )
    weights = tuple(_regressed(a, b) for a, b in pairwise(nodes))
    mean, spread = tuple(n.mean(0) for n in nodes), tuple(n.std(0) for n in nodes)
    return CausalModel(chosen, summary, weights, mean, spread, cuts)


def unit_layers(model: Any, x: Tensor) -> tuple[str, ...]:
    """Return, for each module with weights but the last, the last run of its shape after it."""
    held, groups = torch_model(model, x), []
    modules = dict(held.net.named_modules())
    shape: tuple[int, ...] | None = None
    for name, found in held.layers(x).items():
        module = modules[name.split("#")[0]]
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() > 1:
            groups.append(name)
            shape = found
        elif groups and found == shape:
            groups[-1] = name
        else:
            shape = None
    return tuple(groups[:-1])


def _read(model: Any, x: Tensor, layers: tuple[str, ...]) -> tuple[list[Tensor], Tensor]:
    held = torch_model(model, x)
    oracle, acts = Oracle(held, len(x), Access.INTERNALS), []
    with oracle.session(), torch.no_grad():
        for layer in layers:
            scores, act = tapped(oracle, x.detach(), layer)
            acts.append(act)
    return acts, scores


def _middle(act: Tensor) -> Tensor:
    return act.double().flatten(2).mean((0, 2)) if act.dim() > 2 else act.double().mean(0)


def _summed(act: Tensor, summary: str, cut: Tensor) -> Tensor:
    """Return one number a unit, (N, U) float64."""
    if act.dim() == 2:
        return act.double()
    flat = act.double().flatten(2)
    if summary == "norm":
        size: Tensor = torch.linalg.vector_norm(flat, dim=2)
        return size
    share = (flat > cut[None, :, None]).double().mean(2)
    return share * (1 - share)  # the variance of zeros and ones


def _regressed(parents: Tensor, children: Tensor) -> Tensor:
    """Return least-squares weights (U, V); rows of parents that do not vary are exactly 0."""
    a, b = parents - parents.mean(0), children - children.mean(0)
    live = (parents != parents[:1]).any(0)
    weight = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=a.device)
    if bool(live.any()):
        # Minimum norm where parents depend on each other.
        weight[live] = torch.linalg.pinv(a[:, live], rtol=1e-10) @ b
    return weight
