"""The input-gradient penalty: a loss that is flat around each input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from foible.core.errors import InputError
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss, cross_entropy
from foible.defend.marking import marked

OF = ("label", "all")


@dataclass(frozen=True)
class GradientPenalty(Loss):
    """The cross-entropy plus its squared gradient by the input; see `gradient_penalty`."""

    weight: float
    of: str = "label"

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InputError(f"weight={self.weight}: above 0; without it train on `plain()`")
        if self.of not in OF:
            raise InputError(f"of is {self.of!r}: choose {' or '.join(map(repr, OF))}")

    def finish(self, net: nn.Module) -> nn.Module:
        """Name the defence, for its breaker."""
        return marked(net, "gradient_penalty")

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        oracle, rows = batch.oracle(), batch.rows()
        x = batch.x.detach().requires_grad_()
        scores = oracle.scores(x, rows)
        loss = cross_entropy(scores, batch.y)
        held = loss if self.of == "label" else scores.log_softmax(1).sum(1)
        (grad,) = oracle.grad(held, (x,), rows, create_graph=True)
        return loss + self.weight * grad.flatten(1).square().sum(1)


def gradient_penalty(weight: float = 100.0, of: str = "label") -> GradientPenalty:
    """Return the input-gradient penalty: CE + weight * ||d CE / d x||^2 (R6).

    Ross and Doshi-Velez 2018, whom the survey means where it cites another paper. One
    backward through a backward; a net with ReLUs will do.

    weight: times the squared L2 norm of each *sample's own* gradient, inputs in the model's
    bounds; the trainer takes the mean over the batch. The published 56,234 is on another scale:
    half the squared norm, summed over a batch of 256, of the gradient of the batch's *mean*
    loss. It is 56,234 / (2 * 256) = 110 here. of: "label" is the gradient of the loss (their
    double backpropagation); "all" that of the sum of all classes' log-probabilities (their
    insensitive variant, whose published 1000 is 1.95 here).

    In a batch norm that is in training mode a sample's loss depends on its neighbours, and the
    penalty is on the gradient of the batch's summed loss, as in the authors' code.

    A modest defence: it makes one step of FGSM, and what is carried over from other nets, much
    weaker, and PGD gets through at a larger eps. `breaker("gradient_penalty")` shows it.

    Raises InputError for a weight that is not positive or another `of`.

    >>> gradient_penalty(110)
    GradientPenalty(weight=110, of='label')
    """
    return GradientPenalty(weight, of)
