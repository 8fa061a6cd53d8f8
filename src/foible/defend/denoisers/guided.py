"""The guided denoiser: what is cleaned is what the classifier sees, not the pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from foible.attacks.base import Attack
from foible.attacks.transferring import transfer
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss
from foible.models.holding import TorchModel, as_module


class Denoised(nn.Module):
    """A frozen classifier behind a denoiser; gradients pass through both.

    denoiser: maps (B, *shape) to the same shape. held: the classifier, which sees what the denoiser
    gives; it stays in evaluation mode.
    """

    defence = "guided_denoiser"  # whose breaker an audit runs

    def __init__(self, denoiser: nn.Module, held: TorchModel) -> None:
        super().__init__()
        self.held = held.copied()
        self.denoiser, self.classifier = denoiser, self.held.net  # the same module, also in copies
        self.classifier.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the classifier's logits (B, K) of the denoised input."""
        return self.held.scores(self.denoiser(x))

    def train(self, mode: bool = True) -> Denoised:
        """Set the denoiser's mode; the classifier's stays."""
        super().train(mode)
        self.classifier.eval()
        return self


@dataclass(frozen=True)
class GuidedDenoiser(Loss):
    """How far the classifier sees a denoised adversarial from the clean input."""

    model: TorchModel = field(repr=False)
    attacks: tuple[Attack, ...]
    to: str = "logits"
    vary: bool = True

    @property
    def against(self) -> Attack:
        """The last attack, made on the bare classifier: what a denoiser is chosen by."""
        return transfer(self.attacks[-1], self.model)

    def prepare(self, net: nn.Module) -> nn.Module:
        """Put the classifier behind the denoiser that is trained."""
        return net if isinstance(net, Denoised) else Denoised(net, self.model)

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        net = batch.net
        if not isinstance(net, Denoised):
            raise KindError(
                f"a guided denoiser trains Denoised and got {type(net).__name__}: use "
                "foible.defend.train, or denoised(model, denoiser)"
            )
        x_adv = batch.craft(self.attack_of(batch), against=self.model)
        given: Tensor = net.denoiser(x_adv)
        if self.to == "pixels":
            return (given - batch.x).square().flatten(1).mean(1)
        with self.model.session(batch.seed):
            with torch.no_grad():
                clean = self.seen(batch, batch.x)
            return (self.seen(batch, given) - clean).abs().flatten(1).mean(1)

    def attack_of(self, batch: Batch) -> Attack:
        """Return this batch's attack; with `vary` every sample has an eps of its own."""
        drawn = int(batch.once(41).scalars(1) * len(self.attacks))
        attack = self.attacks[drawn]
        if not self.vary:
            return attack
        eps = batch.draw(43).scalars(1).squeeze(1) * float(attack.threat.eps)  # type: ignore[attr-defined]
        return attack.within(replace(attack.threat, eps=eps))  # type: ignore[call-arg]

    def seen(self, batch: Batch, x: Tensor) -> Tensor:
        """Return what the classifier makes of x: logits (B, K), or a layer's output."""
        oracle = Oracle(self.model, len(x), self.model.access)
        if self.to == "logits":
            return oracle.scores(x, batch.rows(x))
        return oracle.tap(x, batch.rows(x), self.to)[1]


def guided_denoiser(
    model: Any, attacks: Attack | Sequence[Attack], to: str = "logits", vary: bool = True
) -> GuidedDenoiser:
    """Return the loss of the high-level guided denoiser (N2, Liao et al. 2018).

    |f(denoise(x')) - f(x)|, the mean over logits or over a layer's units, with x' an adversarial of
    the bare classifier f, which stays as it is. `foible.defend.train(UNet(), data, loss=...)`
    trains the denoiser and returns the defended classifier, `denoised(model, denoiser)`.

    model: the classifier, bare or wrapped. attacks: one, or several of which each batch draws one.
    to: "logits" (the paper's LGD), the name of a layer (FGD), or "pixels": the mean squared error
    of pixels, the twin that the paper argues against, because a classifier amplifies what is left.
    vary: draw each sample's eps evenly from 0 to the attack's, so that weak noise is known too.

    Broken: it stops what was made on the bare classifier. Gradients pass through it, and PGD on the
    defended model finds what it lets through (Athalye and Carlini 2018).
    `breaker("guided_denoiser")` shows it.

    Raises KindError for a model that is no torch module, InputError for no attacks, or without one
    eps.

    >>> import foible
    >>> net = foible.zoo.load("standard")
    >>> guided_denoiser(net, foible.attacks.fgsm(foible.Linf(0.1))).to
    'logits'
    """
    held = as_module(model)
    several = (attacks,) if isinstance(attacks, Attack) else tuple(attacks)
    if not several:
        raise InputError("attacks is empty: a denoiser learns from adversarials")
    for attack in several:
        if vary and not isinstance(getattr(attack.threat, "eps", None), float):
            raise InputError(
                f"{attack.name} has no single eps to draw from: use one, or pass vary=False"
            )
    return GuidedDenoiser(held, several, to, vary)


def denoised(model: Any, denoiser: nn.Module) -> TorchModel:
    """Return a classifier behind a denoiser, as one model (N2, Liao et al. 2018).

    model: a classifier, bare or wrapped, whose bounds are kept; its preprocessing comes after the
    denoiser. denoiser: maps inputs (B, *shape) to the same shape, e.g. `UNet`. Both are copied.
    Every attack and explainer sees the whole: gradients pass, so that PGD on it is the white-box
    attack, which breaks what was trained against the bare classifier only.

    Raises KindError for a model that is no torch module.

    >>> import foible, torch
    >>> model = denoised(foible.zoo.load("standard"), foible.defend.UNet())
    >>> model(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    held = as_module(model)
    return TorchModel(Denoised(copy.deepcopy(denoiser), held), held.bounds, None, "logits")
