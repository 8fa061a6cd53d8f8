"""What the layers of a model give, several of them at one look, as rows of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.rows import Rows
from foible.models.holding import TorchModel

Layers = tuple[str, ...] | int
"""Names as in `foible.models.layers_of`, or a number: the last so many activation layers."""


def check_layers(layers: Layers) -> None:
    """Refuse an empty choice of layers."""
    if not layers or (isinstance(layers, int) and layers < 1):
        raise InputError(f"layers={layers!r}: name one at least, or say how many of the last")


def held_by(oracle: Oracle) -> TorchModel:
    """Return the model behind an oracle, whose layers can be looked into."""
    model: Any = oracle.model
    if not isinstance(model, TorchModel):
        raise KindError(
            f"{type(model).__name__} has no layers to look into: fit the detector to the "
            "nn.Module itself, or to foible.wrap(net)"
        )
    return model


def last_hidden(oracle: Oracle, x: Tensor) -> str:
    """Return the name of the last layer whose output has another shape than the scores."""
    layers = held_by(oracle).layers(x)
    names = [name for name, shape in layers.items() if shape != list(layers.values())[-1]]
    if not names:
        raise InputError("the model has no layer before its scores: name one, or add one")
    return names[-1]


def chosen(oracle: Oracle, x: Tensor, layers: Layers) -> tuple[str, ...]:
    """Return the names of layers; a number means the last runs of torch's activation modules.

    A net without such modules, whose ReLUs are functions, is asked at its last hidden layer.
    """
    if not isinstance(layers, int):
        return layers
    model = held_by(oracle)
    modules = dict(model.net.named_modules())
    kinds = {name: type(modules[name.partition("#")[0]]).__module__ for name in model.layers(x)}
    names = [n for n, kind in kinds.items() if kind == "torch.nn.modules.activation"]
    return tuple(names[-layers:]) or (last_hidden(oracle, x),)


def activations(
    oracle: Oracle, rows: Rows, layers: Layers, *, create_graph: bool = False, pooled: bool = True
) -> list[Tensor]:
    """Return (B, F) of each layer at rows.x, in one forward.

    pooled: maps (B, C, H, W) become the mean of each channel (B, C); else all positions are kept.
    """
    with torch.set_grad_enabled(create_graph):
        _, found = oracle.taps(rows.x, rows, chosen(oracle, rows.x, layers))
        return [a.flatten(2).mean(2) if pooled and a.dim() > 2 else a.flatten(1) for a in found]


def in_chunks(oracle: Oracle, rows: Rows, look: Callable[[Rows], list[Tensor]]) -> list[Tensor]:
    """Return what a look gives of all rows, a forward's worth at a time."""
    index = torch.arange(len(rows), device=rows.x.device)
    with torch.no_grad():
        parts = [look(rows.take(part)) for part in index.split(oracle.chunk(rows.x))]
    return [torch.cat(each) for each in zip(*parts, strict=True)]
