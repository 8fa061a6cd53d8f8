"""Training on interval bounds: the worst logits that a box of inputs could give."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foible.core.errors import InputError
from foible.defend.batch import Batch
from foible.defend.certify.intervals import certified, propagated, worst_gaps
from foible.defend.losses.base import Loss, cross_entropy
from foible.models.holding import TorchModel


@dataclass(frozen=True)
class Interval(Loss):
    """kappa of the clean loss, and the rest of the worst within bounds; see `interval`."""

    eps: float
    kappa_end: float = 0.5
    ramp: float = 0.5

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise InputError(f"eps={self.eps}: above 0; without it train on `plain()`")
        for name in ("kappa_end", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: a share, in [0, 1]")

    def withstands(self, model: TorchModel, x: Tensor, y: Tensor) -> Tensor:
        """Return what is certified, (B,) bool: under attacks an epoch of loose bounds may win."""
        return certified(model, x, y, self.eps)

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        grown = min(1.0, batch.progress / self.ramp) if self.ramp else 1.0
        kappa = 1 - grown * (1 - self.kappa_end)
        scores, box = propagated(batch.model, batch.x, grown * self.eps)
        worst = cross_entropy(worst_gaps(box, batch.y), batch.y)
        return kappa * cross_entropy(scores, batch.y) + (1 - kappa) * worst


def interval(eps: float, kappa_end: float = 0.5, ramp: float = 0.5) -> Interval:
    """Return training on interval bounds (Gowal et al. 2018), for `certify.certified`.

    kappa * cross-entropy of the logits + (1 - kappa) * that of the worst logits that the bounds
    allow within eps in Linf. eps grows from 0 and kappa falls from 1 to kappa_end over the share
    `ramp` of the training: a net that meets the whole eps at once stays at chance. kappa_end: the
    lower, the more is certified and the less is right; 0.5 in the paper. About three forwards and
    backwards a step, and no attack.

    Validation counts what is certified. Nets: those that `certify.bounds` serves; a batch norm in
    training mode is refused by name.

    Departure: the paper trains some steps on clean inputs before eps begins to grow; here it grows
    from the first.

    Raises InputError for an eps that is not positive and shares out of [0, 1].

    >>> interval(0.1)
    Interval(eps=0.1, kappa_end=0.5, ramp=0.5)
    """
    return Interval(eps, kappa_end, ramp)
