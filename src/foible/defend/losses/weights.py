"""Adversarial weight perturbation: a loss that is flat in the weights too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foible.attacks.base import Attack
from foible.core.errors import InputError, KindError
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss
from foible.models.holding import TorchModel


@dataclass(frozen=True)
class WeightPerturbation(Loss):
    """Any loss, at the weights nearby where it is largest; see `awp`."""

    loss: Loss
    gamma: float = 0.01
    warm: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.loss, Loss):
            raise KindError(f"loss is {type(self.loss).__name__}: pass one, e.g. trades(attack)")
        if self.loss.replays > 1:
            raise InputError(
                f"the loss looks {self.loss.replays} times at a batch and learns from each look: "
                "perturb the weights of one that looks once"
            )
        if not self.gamma > 0:
            raise InputError(f"gamma={self.gamma}: above 0; without it train on the loss itself")
        if not 0 <= self.warm < 1:
            raise InputError(f"warm={self.warm}: a share of the training, in [0, 1)")

    @property
    def extras(self) -> int:
        """As many as of the loss."""
        return self.loss.extras

    @property
    def against(self) -> Attack | None:
        """The attack of the loss."""
        return self.loss.against

    def withstands(self, model: TorchModel, x: Tensor, y: Tensor) -> Tensor | None:
        """Judge as the loss does."""
        return self.loss.withstands(model, x, y)

    def prepare(self, net: nn.Module) -> nn.Module:
        """Prepare as the loss does."""
        return self.loss.prepare(net)

    def finish(self, net: nn.Module) -> nn.Module:
        """Finish as the loss does."""
        return self.loss.finish(net)

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,), the loss at the weights as they are now."""
        batch.rewind()
        return self.loss(batch)

    @contextmanager
    def around(self, batch: Batch) -> Iterator[None]:
        """Hold the weights where the loss is larger; they are what they were after it."""
        if batch.progress < self.warm:
            with self.loss.around(batch):
                yield
            return
        moved = [p for p in batch.net.parameters() if p.requires_grad and p.dim() > 1]
        held = [p.detach().clone() for p in moved]
        with batch.remembering(), self.loss.around(batch):
            moves = self._moves(batch, moved)
            try:
                with torch.no_grad():
                    for p, move in zip(moved, moves, strict=True):
                        p.add_(move)
                yield
            finally:
                with torch.no_grad():
                    # Copied and not subtracted: rounding would leave a trace.
                    for p, value in zip(moved, held, strict=True):
                        p.copy_(value)

    def _moves(self, batch: Batch, moved: list[nn.Parameter]) -> list[Tensor]:
        """Return gamma times each weight's norm along its gradient; no buffer learns from it."""
        buffers = [(b, b.detach().clone()) for b in batch.net.buffers()]
        oracle = batch.oracle()
        grads = oracle.grad(self(batch), tuple(moved), batch.rows())
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
            return [
                self.gamma * p.norm() * grad / (grad.norm() + torch.finfo(grad.dtype).tiny)
                for p, grad in zip(moved, grads, strict=True)
            ]


def awp(loss: Loss, gamma: float = 0.01, warm: float = 0.0) -> WeightPerturbation:
    """Return adversarial weight perturbation around a loss (Wu et al. 2020).

    Each step first moves the weights along the gradient of the loss, each tensor by gamma times
    its own norm, and learns from the loss there: a minimum that is flat in the weights too, which
    lessens robust overfitting. For one forward and backward more a step; adversarials are made
    once, on the weights as they are. They are put back bit for bit before the optimiser moves
    them.

    loss: any loss that looks once at a batch. gamma: 0.005 to 0.01 in the paper. warm: the share of
    the training before it begins. Biases and norms (tensors of one dimension) stay, as in the
    authors' code. Where several processes train, each moves by its own part of the batch.

    Raises KindError for what is no loss, InputError for numbers out of range.

    >>> import foible
    >>> inner = foible.defend.trades(foible.attacks.pgd(foible.Linf(0.1), steps=10))
    >>> awp(inner).gamma
    0.01
    """
    return WeightPerturbation(loss, gamma, warm)
