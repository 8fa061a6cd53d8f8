"""What a neuron does: the model without it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.oracle import Model, Oracle
from foible.core.rows import Rows
from foible.explain.base import as_labels, check_inputs
from foible.models import TorchModel, as_model

PUTS = ("zero", "mean")


@dataclass(frozen=True)
class NeuronEffect:
    """What each of a layer's U units does for N samples.

    logit: (N, U) float64, by how much the label's logit falls without the unit; loss: (N, U), by
    how much the cross-entropy rises. right: (N,) bool, whether the whole model names the label;
    still: (N, U) bool, whether it does without the unit. A unit is a channel of maps (C, H, W).
    layer: as it was asked for, None for the last that gives maps.
    """

    layer: str | None
    logit: Tensor
    loss: Tensor
    right: Tensor
    still: Tensor

    @property
    def accuracy(self) -> float:
        """The accuracy of the whole model."""
        return float(self.right.double().mean())

    @property
    def accuracy_drop(self) -> Tensor:
        """By how much the accuracy falls without each unit, (U,) float64."""
        return self.right.double().mean() - self.still.double().mean(0)

    @property
    def loss_rise(self) -> Tensor:
        """The mean rise of the cross-entropy, (U,): it sees what changes too few labels to tell."""
        return self.loss.mean(0)


def neuron_effect(
    model: Any,
    x: Tensor,
    y: Tensor | int | None = None,
    layer: str | None = None,
    put: str = "zero",
) -> NeuronEffect:
    """Return what every unit of a layer does, by do(unit = 0) (B32, L4; survey 3.2).

    The unit is set to zero, or (`put="mean"`) to its mean over x at every position, one unit at a
    time, and everything after it is computed anew: its causal effect in the model. x: (N, *shape);
    y: (N,) labels, one int, or None for the predicted ones. layer: a name of
    `foible.models.layers_of`, None for the last that gives maps.

    At most units + 1 forwards a sample, in full batches: where a unit already shows what would be
    put there nothing changes, so that nothing is asked and the effect is exactly 0. So it is of a
    dead unit. Needs INTERNALS access.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> found = neuron_effect(foible.zoo.load("standard"), x[:20], y[:20], "1")
    >>> found.logit.shape, found.accuracy_drop.shape
    (torch.Size([20, 32]), torch.Size([32]))
    """
    if put not in PUTS:
        raise InputError(f"put={put!r}: choose {' or '.join(map(repr, PUTS))}")
    held, labels = given(model, x), as_labels(x, y)
    oracle, x = Oracle(held, len(x), Access.INTERNALS), x.detach()
    with oracle.session(), torch.no_grad():
        scores, acts = tapped(oracle, x, layer)
        labels = scores.argmax(1) if labels is None else labels
        _check_labels(labels, scores.shape[1])
        put_there = torch.zeros_like(acts[:1]) if put == "zero" else acts.mean(0, keepdim=True)
        differs = (acts != put_there).flatten(2).any(2) if acts.dim() > 2 else acts != put_there
        count = acts.shape[1]
        after = scores[:, None].repeat(1, count, 1)
        pairs = differs.nonzero()
        for some in pairs.split(oracle.chunk(x)):
            row, unit = some.T

            def without(out: Tensor, unit: Tensor = unit) -> Tensor:
                out[torch.arange(len(unit), device=out.device), unit] = put_there[0, unit]
                return out

            rows = Rows(row, row, x[row], labels[row])
            after[row, unit] = oracle.scores_with(x[row], rows, layer, without)
    before, after = scores.double(), after.double()
    place = labels[:, None]
    logit = before.gather(1, place) - after.gather(2, place[:, None].expand(-1, count, 1)).squeeze(
        2
    )
    each = F.cross_entropy(
        after.flatten(0, 1), labels.repeat_interleave(count), reduction="none"
    ).view(-1, count)
    loss = each - F.cross_entropy(before, labels, reduction="none")[:, None]
    # The same scores go through other sums in another shape: what is not moved is 0, exactly.
    loss = torch.where(differs, loss, 0.0)
    return NeuronEffect(layer, logit, loss, before.argmax(1) == labels, after.argmax(2) == place)


def accuracy_without(model: Any, x: Tensor, y: Tensor, units: Mapping[str, Tensor]) -> float:
    """Return the accuracy of the model with several units at zero together (B32, L4).

    x: (N, *shape), y: (N,) labels. units: unit numbers by layer; none at all is the whole model.
    """
    held, labels = torch_model(model, x), as_labels(x, y)
    assert labels is not None
    oracle, right, there = Oracle(held, len(x), Access.INTERNALS), [], held.layers(x)
    for layer, chosen in units.items():
        if layer not in there or not chosen.numel():
            continue  # a name that does not fit is refused when the layer is looked into
        most = there[layer][0]
        if not 0 <= int(chosen.min()) <= int(chosen.max()) < most:
            raise InputError(f"layer {layer!r} has units 0..{most - 1}, not {chosen.tolist()}")
    with oracle.session(), torch.no_grad():
        for part in torch.arange(len(x), device=x.device).split(oracle.chunk(x)):
            with ExitStack() as hooks:
                for layer, chosen in units.items():

                    def off(out: Tensor, chosen: Tensor = chosen) -> Tensor:
                        out[:, chosen.to(out.device)] = 0
                        return out

                    hooks.enter_context(held.watch(x[part], layer, off))
                rows = Rows(part, part, x[part], labels[part])
                right.append(oracle.scores(x[part], rows).argmax(1) == labels[part])
    return float(torch.cat(right).double().mean())


def tapped(oracle: Oracle, x: Tensor, layer: str | None) -> tuple[Tensor, Tensor]:
    """Return the logits (N, K) and a layer's outputs (N, *layer shape), in chunks."""
    found = []
    for part in torch.arange(len(x), device=x.device).split(oracle.chunk(x)):
        found.append(oracle.tap(x[part], Rows(part, part, x[part], part), layer))
    scores, acts = zip(*found, strict=True)
    return torch.cat(scores), torch.cat(acts)


def given(model: Any, x: Tensor) -> Model:
    """Return the held model; refuse inputs that measure nothing."""
    check_inputs(x)
    if len(x) == 0:
        raise InputError("x is empty: what a neuron does is measured on samples")
    return as_model(model)


def torch_model(model: Any, x: Tensor) -> TorchModel:
    """Return the held model where it is a torch module's, whose layers have names."""
    held = given(model, x)
    if not isinstance(held, TorchModel):
        raise KindError(
            f"{type(held).__name__} has no neurons to take out: pass the nn.Module itself, or "
            "foible.wrap(net)"
        )
    return held


def _check_labels(labels: Tensor, classes: int) -> None:
    if int(labels.max()) >= classes:
        raise InputError(f"y holds class {int(labels.max())}, the model has 0..{classes - 1}")
