"""Ensemble adversarial training: on what fools other networks too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foible.attacks.base import Attack
from foible.core.errors import InputError
from foible.core.oracle import Model
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss, cross_entropy
from foible.defend.marking import marked
from foible.models import as_model


@dataclass(frozen=True)
class EnsembleTraining(Loss):
    """Half clean, half adversarials of one source a batch; see `ensemble_training`."""

    attack: Attack
    sources: tuple[Model, ...] = field(repr=False)

    def finish(self, net: nn.Module) -> nn.Module:
        """Name the defence, for its breaker."""
        return marked(net, "ensemble_training")

    def source(self, batch: Batch) -> Model:
        """Return the model that this batch's adversarials are made on."""
        drawn = int(batch.once(31).scalars(1) * (1 + len(self.sources)))
        return batch.model if drawn == 0 else self.sources[drawn - 1]

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        source = self.source(batch)
        with source.session(batch.seed), torch.no_grad():
            guess = source.scores(batch.x).argmax(1)
        # A label would leak: one step from it can be told from one step from the prediction.
        x_adv = batch.craft(self.attack, against=source, y=guess)
        clean = cross_entropy(batch.scores(batch.x), batch.y)
        return 0.5 * clean + 0.5 * cross_entropy(batch.scores(x_adv), batch.y)


def ensemble_training(attack: Attack, sources: Sequence[Any]) -> EnsembleTraining:
    """Return ensemble adversarial training (R3, Tramer et al. 2018).

    Each batch takes its adversarials from one source, drawn evenly among the net in training and
    the `sources`, and its loss is half that of clean inputs and half that of adversarials. So one
    step cannot make itself weak: most of what the net sees was not made on it.

    attack: one step in the paper, `fgsm` or `r_fgsm`; it is given the source's own prediction in
    place of the label, so that no label leaks. sources: frozen models with the same bounds.

    It helps against what is carried over from other nets. It is not robust: PGD on the net
    itself breaks it, and so do stronger transferred attacks (`foible.attacks.ti_dim`; Dong et al.
    2019). `breaker("ensemble_training")` shows the first.

    Raises InputError for no sources.

    >>> import foible
    >>> other = foible.zoo.load("standard")
    >>> len(ensemble_training(foible.attacks.fgsm(foible.Linf(0.1)), [other]).sources)
    1
    """
    if not sources:
        raise InputError(
            "sources is empty: give frozen models, or train on the net's own adversarials with "
            "adversarial(attack, clean=0.5)"
        )
    return EnsembleTraining(attack, tuple(as_model(source) for source in sources))
