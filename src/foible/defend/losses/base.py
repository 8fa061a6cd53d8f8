"""A training loss: the one thing that the trainer knows of a defence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch.nn.functional as F
from torch import Tensor, nn

from foible.attacks.base import Attack
from foible.defend.batch import Batch
from foible.models.holding import TorchModel


class Loss(ABC):
    """From a batch to a loss (B,); a frozen value, so that a run can say what it trained on.

    Subclass it as a frozen dataclass and write `__call__`; the rest has defaults.
    """

    @property
    def extras(self) -> int:
        """How many tensors the data hold beside x and y."""
        return 0

    @property
    def replays(self) -> int:
        """How many steps are taken on each batch."""
        return 1

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of each sample (B,), on the graph of the parameters."""

    @property
    def against(self) -> Attack | None:
        """The attack that the loss trains against, if any: what validation measures."""
        return getattr(self, "attack", None)

    def withstands(self, model: TorchModel, x: Tensor, y: Tensor) -> Tensor | None:
        """Return which samples count as robust in validation, (B,) bool; None: ask `against`."""
        return None

    def prepare(self, net: nn.Module) -> nn.Module:
        """Return the net to train, from the copy that the trainer made; called once."""
        return net

    def finish(self, net: nn.Module) -> nn.Module:
        """Return the net to hand out, from a copy of the trained one."""
        return net

    def around(self, batch: Batch) -> AbstractContextManager[None]:
        """Return a context that holds one forward and backward, e.g. with other weights."""
        return nullcontext()


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample (B,)."""
    return F.cross_entropy(scores, y, reduction="none")
