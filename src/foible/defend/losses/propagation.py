"""AdvProp: clean inputs and adversarials, each through batch norms of their own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from foible.attacks.base import Attack
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss, cross_entropy
from foible.defend.nets.norms import main_norms, split_norms, through_auxiliary


@dataclass(frozen=True)
class AdvProp(Loss):
    """Clean through the main norms plus adversarial through the auxiliary ones; see `advprop`."""

    attack: Attack

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        clean = cross_entropy(batch.scores(batch.x), batch.y)
        with through_auxiliary(batch.net):
            x_adv = batch.craft(self.attack)
            return clean + cross_entropy(batch.scores(x_adv), batch.y)

    def prepare(self, net: nn.Module) -> nn.Module:
        """Give every batch norm its twin; raises InputError where there is none."""
        return split_norms(net)

    def finish(self, net: nn.Module) -> nn.Module:
        """Keep the main norms: the class and the names of the net that was given."""
        return main_norms(net)


def advprop(attack: Attack) -> AdvProp:
    """Return AdvProp (R5, Xie et al. 2020, survey [121]): adversarials as further training data.

    The loss of clean inputs through the main batch norms plus that of adversarials, which are
    crafted and judged through auxiliary ones: two populations, each with statistics of its own.
    The net that training gives has the main ones only. attack: a weak one, one step to five of a
    small eps; the paper's is PGD of five steps.

    It is for accuracy on clean and on corrupted inputs, on large data; on 10,000 images of
    Fashion-MNIST it cost some of the first and gained some of the second. It is no defence: the
    main norms never met an adversarial, so the net that is handed out keeps less than one that
    trained on them (`adversarial(attack, clean=0.5)`), and `pgd` at a larger eps goes through.

    Departure: adversarials are crafted in evaluation mode, as in all of foible's losses, so with
    the running statistics of the auxiliary norms.

    >>> import foible
    >>> advprop(foible.attacks.pgd(foible.Linf(0.03), steps=1)).attack.search.steps
    1
    """
    return AdvProp(attack)
