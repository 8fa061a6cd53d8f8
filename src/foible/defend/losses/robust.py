"""Training on adversarials: alone (Madry), beside clean inputs (survey Eq. 15), or fast."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from foible.attacks.base import Attack, needs_eps
from foible.attacks.gradient import pgd
from foible.core.errors import InputError
from foible.core.threat import Threat
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss, cross_entropy
from foible.defend.marking import marked


@dataclass(frozen=True)
class Plain(Loss):
    """The cross-entropy of clean inputs."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        return cross_entropy(batch.scores(batch.x), batch.y)


@dataclass(frozen=True)
class Adversarial(Loss):
    """`clean` times the loss of clean inputs and the rest of adversarials; see `adversarial`."""

    attack: Attack
    clean: float = 0.0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.clean < 1:
            raise InputError(f"clean={self.clean}: the share of the clean loss lies in [0, 1)")
        if not 0 <= self.ramp <= 1:
            raise InputError(f"ramp={self.ramp}: a share of the training, in [0, 1]")

    def finish(self, net: nn.Module) -> nn.Module:
        """Name the defence where it is one that is broken: training on one step."""
        return marked(net, "fgsm") if self.attack.name == "fgsm" else net

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        x_adv = batch.craft(batch.grown(self.attack, self.ramp))
        loss = cross_entropy(batch.scores(x_adv), batch.y)
        if self.clean == 0:
            return loss
        return self.clean * cross_entropy(batch.scores(batch.x), batch.y) + (1 - self.clean) * loss


def plain() -> Plain:
    """Return ordinary training: the baseline of every claim.

    >>> plain()
    Plain()
    """
    return Plain()


def adversarial(attack: Attack, clean: float = 0.0, ramp: float = 0.0) -> Adversarial:
    """Return training on adversarials (R1, Madry et al. 2018, survey Eq. 16).

    attack: any attack with a budget; `pgd(threat, steps=10)` is Madry's, `fgsm(threat)` with
    clean=0.5 is Goodfellow's (R2, survey Eq. 15). clean: the share of the loss that clean inputs
    have, alpha of Eq. 15; 0 is Madry's. ramp: the share of the training over which eps grows from
    0 to its value; 0.3 lets MNIST at 0.3 off its plateau.

    FGSM training without a random start hides its gradient at a large eps: FGSM's figure is high
    and PGD's is near zero. `breaker("fgsm")` shows it.

    Raises InputError for shares out of range.

    >>> import foible
    >>> adversarial(foible.attacks.pgd(foible.Linf(0.1), steps=10)).clean
    0.0
    """
    return Adversarial(attack, clean, ramp)


def fast(threat: Threat) -> Adversarial:
    """Return fast adversarial training: a random start and one step of 1.25 eps (Wong et al. 2020).

    For the price of FGSM training. At a large eps and many epochs it may still collapse to a net
    that only FGSM finds robust (catastrophic overfitting): keep a validation set, on which the
    trainer watches PGD. threat: with eps, in the input's units.

    >>> import foible
    >>> fast(foible.Linf(0.1)).attack.search.steps
    1
    """
    eps = getattr(needs_eps(threat), "eps", None)
    if not isinstance(eps, float | int):
        raise InputError("fast training takes one eps for all samples: e.g. foible.Linf(0.1)")
    return Adversarial(pgd(threat, steps=1, step=1.25 * eps))
